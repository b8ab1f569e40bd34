"""Files of arrays that processes share: written once under a lock, mapped by all, so that none holds a copy.

Bytes: a mark, the length of the header, the header (JSON: what the file is about, and each array's type, size and
place), the arrays, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..components.locks import open_lock
from ..components.whole import remove_unfinished, whole_file

_MARK = b"voxzoo arrays 1\n"
_ALIGN = 64
_COPIED = 1 << 20


class Arrays(Mapping[str, np.ndarray]):
    """Named (N,) arrays, in memory or mapped from a file. Those of a file are pickled as its path.

    Attributes:
        about: plain values that say what the arrays are.
        path: the file they are mapped from, or None.
    """

    def __init__(self, about: dict[str, Any], arrays: Mapping[str, np.ndarray], path: Path | None = None) -> None:
        self.about, self.path = about, path
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Arrays, (self.about, self._arrays)
        return _open_again, (self.path, self.about["written"])


class Spill:
    """Bytes that are collected for one array: in memory, or in a file without a name in `folder`."""

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        self.dtype = np.dtype(dtype)
        self.num_bytes = 0
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        if folder is not None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this

    def add(self, content: bytes) -> None:
        self.num_bytes += len(content)
        self._parts.append(content)
        if self._file is not None:
            self._file.writelines(self._parts)
            self._parts.clear()

    def blocks(self) -> Iterator[bytes]:
        """All that was added, in order."""
        if self._file is not None:
            self._file.seek(0)
            while block := self._file.read(_COPIED):
                yield block
        yield from self._parts

    def array(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.blocks()), self.dtype)


def open_arrays(path: Path) -> Arrays | None:
    """Map a file of `kept`; None where it is missing or is no whole file of this kind."""
    try:
        with path.open("rb") as file:
            mark = file.read(len(_MARK) + 8)
            if mark[: len(_MARK)] != _MARK:
                return None
            size = int.from_bytes(mark[len(_MARK) :], "little")
            header = json.loads(file.read(size))
            if os.fstat(file.fileno()).st_size != header["bytes"]:
                return None
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, KeyError):
        return None
    start = _aligned(len(mark) + size)
    arrays = {
        name: np.frombuffer(content, dtype, count, start + offset) if count else np.empty(0, dtype)
        for name, (dtype, count, offset) in header["arrays"].items()
    }
    return Arrays(header["about"], arrays, path)


def write_arrays(path: Path, about: dict[str, Any], arrays: Mapping[str, np.ndarray | Spill]) -> None:
    """Write a file that appears whole or not at all. Raises OSError."""
    places, offset = {}, 0
    for name, array in arrays.items():
        size = array.num_bytes if isinstance(array, Spill) else array.nbytes
        places[name] = (array.dtype.str, size // array.dtype.itemsize, offset)
        offset = _aligned(offset + size)
    header: dict[str, Any] = {"about": {**about, "written": uuid.uuid4().hex}, "arrays": places}
    content = json.dumps({**header, "bytes": 0}).encode()
    # The number of bytes stands in the header whose length it depends on: room for its digits is left.
    size = len(content) + 20
    start = _aligned(len(_MARK) + 8 + size)
    content = json.dumps({**header, "bytes": start + offset}).encode().ljust(size)
    with whole_file(path) as file:
        file.write((_MARK + size.to_bytes(8, "little") + content).ljust(start, b"\0"))
        for name, array in arrays.items():
            file.seek(start + places[name][2])
            if isinstance(array, Spill):
                file.writelines(array.blocks())
            else:
                file.write(np.ascontiguousarray(array).data)
        file.truncate(start + offset)


def kept(
    path: Path,
    is_current: Callable[[Arrays], bool],
    make: Callable[[], tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]],
) -> Arrays:
    """The arrays of `path`, made first where there is no such file or it is no longer right.

    One process makes them while others that want them wait; one that is killed leaves nothing that is read. Where the
    file system has no locks, each makes its own.

    Args:
        path: the file; its folder is made.
        is_current: whether what is there may be used.
        make: what the file is about, and its arrays.

    Raises:
        OSError: the folder cannot be written to.
    """
    found = open_arrays(path)
    if found is not None and is_current(found):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path) as locked:
        found = open_arrays(path)
        if found is not None and is_current(found):
            return found
        if locked:
            remove_unfinished(path.parent, f"{path.name}.*")
        about, arrays = make()
        write_arrays(path, about, arrays)
        found = open_arrays(path)
    if found is None:
        raise OSError(f"{path} cannot be read back")
    return found


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold the lock of a file; False where there are no locks. It ends with the process that holds it."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open_lock(path.with_name(f".{path.name}.lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _open_again(path: Path, written: str) -> Arrays:
    found = open_arrays(path)
    if found is None or found.about["written"] != written:
        raise RuntimeError(f"{path} was written anew or removed while this run was reading it: start the run again")
    return found


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class Texts(Sequence[str]):
    """(N,) texts as one run of UTF-8 bytes.

    Args:
        content: (bytes,) uint8.
        ends: (N,) where each text ends.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        begin = int(self.ends[index - 1]) if index else 0
        return self.content[begin : int(self.ends[index])].tobytes().decode("utf-8", "surrogatepass")

    def sizes(self) -> np.ndarray:
        """(N,) bytes of each."""
        return np.diff(self.ends, prepend=self.ends.dtype.type(0))

    def characters(self) -> np.ndarray:
        """(N,) characters of each."""
        counts = np.zeros(len(self.ends), np.int64)
        begin = 0
        for start in range(0, len(self.ends), _ROWS):
            ends = self.ends[start : start + _ROWS].astype(np.int64)
            # All bytes but those that go on a character.
            leads = np.cumsum((self.content[begin : ends[-1]] & 0xC0) != 0x80)
            upto = np.concatenate([[0], leads])[ends - begin]
            counts[start : start + len(ends)] = np.diff(upto, prepend=0)
            begin = int(ends[-1])
        return counts


_ROWS = 65536


class TextWriter:
    """Collects the content and the ends of `Texts`; in `folder`, if one is given."""

    def __init__(self, folder: Path | None) -> None:
        self._content = Spill(np.uint8, folder)
        self._sizes: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        content = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._content.add(b"".join(content))
        self._sizes.append(np.fromiter(map(len, content), np.int64, len(content)))

    def arrays(self) -> dict[str, np.ndarray | Spill]:
        """The content as "" and the ends as ".ends"."""
        ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *self._sizes]))
        small = self._content.num_bytes < 2**32
        return {"": self._content, ".ends": ends.astype(np.uint32) if small else ends}
