"""What lies nearest to a path that is not there, for messages."""

from __future__ import annotations

import difflib
from pathlib import Path


def nearest_path(path: str | Path) -> Path | None:
    """A file or folder of nearly that name in the same place, or of that name where the folder above is misspelt; None
    where nothing is near."""
    place = Path(path).expanduser()
    parents = [place.parent] if place.parent.is_dir() else _alike(place.parent)
    for parent in parents:
        if (parent / place.name).exists():
            return parent / place.name
        if found := _alike(parent / place.name):
            return found[0]
    return None


def _alike(path: Path) -> list[Path]:
    """What lies beside a path under nearly its name."""
    try:
        names = sorted(each.name for each in path.parent.iterdir())
    except OSError:
        return []
    return [path.parent / name for name in difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)]
