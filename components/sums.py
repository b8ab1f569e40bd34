"""Whether weights still are what was written: CRC-32, which finds every change of a byte. It finds damage, not intent.

A zip archive of torch stores one of each record, and `torch.load` compares none of them. A disk or a transfer that
changed one bit would go on as a model that is a little worse.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

CHEAP = 1 << 28
"""Bytes whose sums are compared whenever weights are read (a quarter of a second); larger files are mapped, and reading
all of them would take what mapping saves."""

BLOCK = 1 << 20

ADVICE = "it holds other bytes than were written; copy it again"


def sum_of_tensor(tensor: Tensor) -> str:
    """Of the dtype, the shape and the bytes of a tensor, as eight hexadecimal digits."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{zlib.crc32(content.data, kind):08x}"


def require_sum(tensor: Tensor, expected: object, key: str, where: object) -> None:
    """Raise UserError where a tensor is not what was written; names it and the file."""
    if sum_of_tensor(tensor) != expected:
        raise UserError(f"{where}: damaged at {key}: {ADVICE}")


def stored_sums(content: Any, where: object) -> dict[str, str]:
    """Sums by key, as a file of JSON says them; none where it says nothing.

    Raises:
        UserError: something else stands there.
    """
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(one, str) for pair in content.items() for one in pair):
        raise UserError(f"{where}: damaged: its crc32 is no list of sums by key")
    return dict(content)


def sums_of_file(path: Path) -> tuple[int, int]:
    """CRC-32 of the header of a safetensors file, which says what lies where, and of all of it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = head = zlib.crc32(_header(file))
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    return head, found


def sum_of_header(path: Path) -> int:
    """CRC-32 of the header of a safetensors file. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return zlib.crc32(_header(file))


def _header(file: Any) -> bytes:
    """Its length and itself; a length that is damaged reads no more than headers have."""
    size = file.read(8)
    return size + file.read(min(int.from_bytes(size, "little"), 100_000_000))


def require_archive_sums(path: Path, *, whole: bool) -> None:
    """Compare the sums of a checkpoint in one file: a zip archive, which torch writes since 1.6; others have none.

    Args:
        path: the file.
        whole: all records; otherwise the smallest ones, which say what the rest means, up to `CHEAP` bytes in all.

    Raises:
        UserError: it is damaged; names the record.
    """
    left, record = CHEAP, ""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.infolist(), key=lambda one: one.file_size):
                left -= entry.file_size
                if left < 0 and not whole:
                    return
                record = entry.filename
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{path}: {record} is packed; no checkpoint of torch is: refused")
                with archive.open(entry) as file:
                    while file.read(BLOCK):
                        pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        where = f"{path}: damaged{f' at {record}' if record else ''}"
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{where} ({reason}): {ADVICE}, or take another checkpoint of the run") from None
