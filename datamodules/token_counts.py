"""Tokens of the texts of a manifest, counted once for a vocabulary and kept beside the manifest's columns."""

from __future__ import annotations

import hashlib
import pickle
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..components.roles import Tokenizer
from .array_file import kept
from .rows import Rows

_VOCABULARIES = 4  # whose counts are kept
_FEW = 20  # of a file with so many times as many rows, rows are counted by themselves
_READ = 1 << 18  # characters of a text that are cut into tokens; the rest counts as the beginning does


def count_tokens(rows: Rows, key: str, places: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(k,) tokens of the texts of `key` of some rows, without those around them.

    They are kept where the columns are, for tokenizers of voxzoo: what others do may change without being seen.
    """
    if _FEW * len(places) > len(rows):
        found = _kept_counts(rows, key, tokenizer)
        if found is not None:
            return found[rows.numbers(places)]
    texts = (rows.text(key, int(place)) for place in places)
    return np.fromiter((_count(text, tokenizer) for text in texts), np.int64, len(places))


def _count(text: str, tokenizer: Tokenizer) -> int:
    found = len(tokenizer.encode(text[:_READ]))
    return found if len(text) <= _READ else found * len(text) // _READ


def _kept_counts(rows: Rows, key: str, tokenizer: Tokenizer) -> np.ndarray | None:
    path = rows.arrays.path
    if path is None or not type(tokenizer).__module__.startswith("voxzoo.components."):
        return None
    name = hashlib.sha256(f"{version('voxzoo')} {type(tokenizer).__qualname__}".encode() + pickle.dumps(tokenizer))
    before = f"{path.stem}.{key}-"
    file = path.with_name(f"{before}{name.hexdigest()[:16]}.tokens")
    columns = rows.arrays.about["written"]

    def make() -> tuple[dict[str, str], dict[str, np.ndarray]]:
        _leave(path.parent, before, _VOCABULARIES - 1)
        whole = rows.whole()
        counts = np.fromiter((_count(text, tokenizer) for text in whole.texts(key)), np.int32, len(whole))
        return {"columns": columns}, {"counts": counts}

    try:
        return kept(file, lambda arrays: arrays.about.get("columns") == columns, make)["counts"]
    except (OSError, UnicodeError):
        return None  # a folder that is full, or a text that is none: said where it is used, if it is


def _leave(folder: Path, before: str, count: int) -> None:
    """Remove all but the last counts of other vocabularies."""
    files = [path for path in folder.iterdir() if path.name.startswith(before) and path.suffix == ".tokens"]
    for path in sorted(files, key=lambda path: path.stat().st_mtime)[: max(0, len(files) - count)]:
        path.unlink(missing_ok=True)
