"""Tar files as stores of recordings: what is in one and where, and new ones written member by member.

Members are named as `segments` name them, `shard.tar#bytes=1536,48044`, and read in place.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..components.errors import UserError
from ..components.whole import whole_file
from .members import Member

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Stored:
    """A member.

    Attributes:
        name: as the archive has it.
        place, size: its bytes in the archive.
    """

    name: str
    place: int
    size: int


def members(path: Path) -> Iterator[Stored]:
    """The files in a tar file, in order; reads headers alone, and holds one at a time.

    Raises:
        UserError: it is missing, compressed, cut off, or no tar file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                # It would keep them all.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if member.isreg():
                    yield Stored(member.name, member.offset_data, member.size)
            if path.stat().st_size < archive.offset:
                raise UserError(f"{path}: the tar file is cut off; copy it again")
    except FileNotFoundError:
        raise UserError(f"{path}: no such tar file") from None
    except tarfile.TarError as error:
        what = _compressed(path)
        if what:
            raise UserError(
                f"{path}: compressed by {what}, so that nothing in it can be read in place; `{what} -d` it first"
            ) from None
        raise UserError(f"{path}: no tar file, or a damaged one ({error})") from None


def _compressed(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(6)
    marks = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    return next((name for mark, name in marks.items() if head.startswith(mark)), "")


def read_member(path: Path, stored: Stored, most: int = 1 << 24) -> bytes:
    """The bytes of a small member. Raises UserError for one of more than `most`."""
    if stored.size > most:
        raise UserError(f"{path}: {stored.name} has {stored.size:,} bytes, which is no text of a recording")
    with Member(path, stored.place, stored.size) as member:
        return member.read()


_MARKS = (
    (b"RIFF", ".wav"), (b"RF64", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"FORM", ".aiff"),
    (b".snd", ".au"), (b"riff", ".w64"),
)  # fmt: skip


def audio_suffix(head: bytes) -> str:
    """How the name of a recording ends, by its first bytes; `.audio` where they say nothing."""
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return ".mp3"
    return next((suffix for mark, suffix in _MARKS if head.startswith(mark)), ".audio")


class ShardWriter:
    """Writes tar files `00000.tar`, `00001.tar` ... of about one size into a folder; each appears whole.

    Args:
        folder: where; made.
        most: bytes from which on the next one begins.
    """

    def __init__(self, folder: Path, most: int = 1 << 30) -> None:
        self.folder, self.most = folder, most
        self.count, self.written = 0, 0
        self._open: tuple[ExitStack, BinaryIO, str] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._end()
        elif self._open is not None:
            self._open[0].__exit__(kind, error, trace)  # pyright: ignore[reportArgumentType]

    def _end(self) -> None:
        """End the file that is written now."""
        if self._open is not None:
            stack, file, _ = self._open
            self._open = None
            file.write(b"\0" * 2 * _BLOCK)
            stack.close()

    def add(self, name: str, content: bytes | BinaryIO, size: int | None = None) -> tuple[str, int, int]:
        """Put in a member.

        Args:
            name: of it.
            content: its bytes, or a file from which `size` bytes are read.
            size: bytes of a file.

        Returns:
            The name of the shard, the first byte in it, and bytes.

        Raises:
            UserError: there are fewer bytes than `size`.
            OSError: it cannot be written, or read.
        """
        if isinstance(content, bytes):
            content, size = BytesIO(content), len(content)
        assert size is not None
        if self._open is not None and self._open[1].tell() + size > self.most and self._open[1].tell():
            self._end()
        if self._open is None:
            stack, shard = ExitStack(), f"{self.count:05d}.tar"
            self._open = stack, stack.enter_context(whole_file(self.folder / shard)), shard
            self.count += 1
        _, file, shard = self._open
        about = tarfile.TarInfo(name)
        about.size = size
        file.write(about.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        place, left = file.tell(), size
        while left and (block := content.read(min(left, 1 << 20))):
            file.write(block)
            left -= len(block)
        if left:
            raise UserError(f"{name}: {left:,} of {size:,} bytes are missing; was the file changed while it was read?")
        file.write(b"\0" * (-size % _BLOCK))
        self.written += size
        return shard, place, size


def open_recording(path: str, place: tuple[int, int] | None) -> tuple[BinaryIO, int]:
    """The bytes of a recording, and how many there are. Raises OSError, also where it is no regular file."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "no regular file", path)
    if place is None:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        return file, os.fstat(file.fileno()).st_size
    return Member(path, *place), place[1]  # pyright: ignore[reportReturnType]
