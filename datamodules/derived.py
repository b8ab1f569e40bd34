"""Arrays that are made of a text file, kept on disk for all processes and later starts until the file changes."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .array_file import Arrays, Spill, kept

WORTH_KEEPING = 1 << 20
"""Bytes of a file from which on what is made of it is kept: a smaller one is read in the time that takes."""
_SETTLED = 2_000_000_000  # ns: a file that is younger may change again without a new time

Make = Callable[[Path | None], tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]]
"""Folder for what is large, or None for memory -> what the arrays are about, and the arrays."""


def arrays_of(source: Path, cache: str | Path | None, kind: str, version: int, make: Make) -> Arrays:
    """What `make` makes of a file, at the first start and after each change of the file.

    Args:
        source: the file.
        cache: folder where arrays of large files are kept; None: nowhere.
        kind: of arrays, the end of their file's name.
        version: of `make`; others' arrays are made anew.
        make: may raise UserError; then nothing is kept.
    """
    if cache is not None and source.is_file() and source.stat().st_size >= WORTH_KEEPING:
        name = hashlib.sha256(os.path.realpath(source).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        folder = Path(cache) / "manifests"
        try:
            return kept(
                folder / f"{source.stem[:40]}-{name}.{kind}",
                lambda arrays: _is_of(arrays, source, version),
                lambda: _made(source, folder, version, make),
            )
        except OSError as error:
            warnings.warn(f"{folder}: {error}; what {source} holds is kept in memory instead", stacklevel=3)
    about, arrays = make(None)
    return Arrays(about, {name: one.array() if isinstance(one, Spill) else one for name, one in arrays.items()})


def _made(
    source: Path, folder: Path, version: int, make: Make
) -> tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]:
    state, now = _state(source), time.time_ns()
    about = {
        "version": version,
        "source": str(source),
        "state": state,
        "settled": now - max(state[1:]) > _SETTLED,
        "digest": _digest(source),
    }
    more, arrays = make(folder)
    return {**about, **more}, arrays


def _is_of(arrays: Arrays, source: Path, version: int) -> bool:
    """Whether arrays were made of the file as it is."""
    about = arrays.about
    if about.get("version") != version:
        return False
    state = _state(source)
    if state == about["state"] and about["settled"]:
        return True
    return state[0] == about["state"][0] and _digest(source) == about["digest"]


def _state(source: Path) -> list[int]:
    about = source.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _digest(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
