"""Arrays that are made of a text file, kept on disk for all processes and later starts until the file changes."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .array_file import Arrays, Spill, kept

WORTH_KEEPING = 1 << 20
"""Bytes of a file from which on what is made of it is kept: a smaller one is read in the time that takes."""
_SETTLED = 2_000_000_000  # ns: a file that is younger may change again without a new time

Make = Callable[[Path | None], tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]]
"""Folder for what is large, or None for memory -> what the arrays are about, and the arrays."""


def arrays_of(source: Path | Sequence[Path], cache: str | Path | None, kind: str, version: int, make: Make) -> Arrays:
    """What `make` makes of a file, or of several together, at the first start and after each change of one.

    Args:
        source: the file, or files in their order.
        cache: folder where arrays of large files are kept; None: nowhere.
        kind: of arrays, the end of their file's name.
        version: of `make`; others' arrays are made anew.
        make: may raise UserError; then nothing is kept.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    worth = all(one.is_file() for one in sources) and sum(one.stat().st_size for one in sources) >= WORTH_KEEPING
    if cache is not None and worth:
        paths = "\0".join(map(os.path.realpath, sources))
        name = hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        folder = Path(cache) / "manifests"
        try:
            return kept(
                folder / f"{sources[0].stem[:40]}-{name}.{kind}",
                lambda arrays: _is_of(arrays, sources, version),
                lambda: _made(sources, folder, version, make),
            )
        except OSError as error:
            what = " and ".join(map(str, sources))
            warnings.warn(f"{folder}: {error}; what {what} holds is kept in memory instead", stacklevel=3)
    about, arrays = make(None)
    return Arrays(about, {name: one.array() if isinstance(one, Spill) else one for name, one in arrays.items()})


def _made(
    sources: Sequence[Path], folder: Path, version: int, make: Make
) -> tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]:
    states, now = [_state(one) for one in sources], time.time_ns()
    about = {
        "version": version,
        "sources": list(map(str, sources)),
        "states": states,
        "settled": now - max(time for _, *times in states for time in times) > _SETTLED,
        "digests": [_digest(one) for one in sources],
    }
    more, arrays = make(folder)
    return {**about, **more}, arrays


def _is_of(arrays: Arrays, sources: Sequence[Path], version: int) -> bool:
    """Whether arrays were made of the files as they are."""
    about = arrays.about
    if about.get("version") != version or len(about.get("states", ())) != len(sources):
        return False
    states = [_state(one) for one in sources]
    if states == about["states"] and about["settled"]:
        return True
    sizes = [[state[0] for state in found] for found in (states, about["states"])]
    return sizes[0] == sizes[1] and [_digest(one) for one in sources] == about["digests"]


def _state(source: Path) -> list[int]:
    about = source.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _digest(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
