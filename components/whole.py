"""Files and folders that appear whole or not at all: made under another name beside the target, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """A new binary file that gets the name `path` when the block ends. What stands there before stays until then, and
    where the block raises; a process that is killed leaves what `remove_unfinished` deletes.

    Args:
        path: the file; its folder is made.
        sync: wait until the disk has the content, which is then there after a power cut too: for what cannot be made
            again.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the number of the process: on a shared disk another machine may have the same.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with part.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole (`whole_file`); its folder is made."""
    with whole_file(path) as file:
        file.write(content)


def link_whole(source: Path, target: Path) -> None:
    """Another name for a file that is only ever replaced, never written into; a copy where there are no such names."""
    part = target.with_name(f".{target.name}.tmp")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)


def remove_unfinished(folder: Path, names: str = "*") -> None:
    """Delete what killed processes left of files of a folder (`names`, a pattern); nobody may be writing them."""
    for path in folder.glob(f".{names}.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that gets the name `path` when the block ends; nothing is left of it where the block raises. One
    process may make it at a time.

    Raises:
        OSError: it cannot be written, or something stands at `path` that is no empty folder.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
