"""Files that are locked."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from .errors import UserError


def open_lock(path: Path) -> IO[str]:
    """Open a file to lock, made where there is none. What it holds stays, and no link is followed: who can write into a
    shared folder could otherwise have a file of somebody else's opened, made or emptied.

    Raises:
        UserError: it is a symbolic link.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8")
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise UserError(f"{path}: a symbolic link where a file to lock belongs; remove it") from None
        raise
