"""Whether a checkpoint still holds what was written: the CRC-32 that its archive stores of each record.

`torch.load` compares none of them. A disk or a transfer that changed one bit would go on as a model that is a little
worse.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from ...components.errors import UserError

CHEAP = 1 << 28
"""Bytes whose sums are compared whenever a checkpoint is read (a quarter of a second); a larger one is mapped, and
reading all of it would take what mapping saves."""

_BLOCK = 1 << 20


def require_sums(path: Path, *, whole: bool) -> None:
    """Compare the sums of a checkpoint: of a zip archive, which torch writes since 1.6; others have none.

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
                    while file.read(_BLOCK):
                        pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        at = f" at {record}" if record else ""
        raise UserError(
            f"{path}: damaged{at} ({' '.join(str(error).split())[:120]}): it holds other bytes than were written; copy "
            "it again, or take another checkpoint of the run"
        ) from None
