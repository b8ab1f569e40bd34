"""Units of a corpus, found by id: one run of numbers, kept on disk and mapped by all processes where it is large.

Letters: U units of an utterance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..components.errors import UserError
from ..components.lines import open_text, parse_json, raw_lines
from .array_file import Arrays, Spill, Texts, TextWriter
from .derived import arrays_of

_VERSION = 1
_BLOCK = 8192


class Units(Mapping[str, np.ndarray]):
    """Utterance id -> (U,) int32."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._ids = Texts(arrays["ids"], arrays["ids.ends"])
        self._values, self._ends = arrays["values"], arrays["values.ends"]
        self._hashes, self._order = arrays["hashes"], arrays["order"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Units, (self._arrays,)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return (self._ids[int(place)] for place in np.sort(self._order))

    def __getitem__(self, name: str) -> np.ndarray:
        (place,) = self._places([name])
        if place < 0:
            raise KeyError(name)
        return self._values[int(self._ends[place - 1]) if place else 0 : int(self._ends[place])]

    def lengths(self, names: Iterable[str]) -> np.ndarray:
        """(N,) units of each utterance, -1 where there are none."""
        sizes = np.append(np.diff(self._ends, prepend=0), -1)
        rest, found = iter(names), [np.empty(0, np.int64)]
        while block := list(islice(rest, _BLOCK)):
            found.append(sizes[self._places(block)])
        return np.concatenate(found)

    def highest(self) -> tuple[int, str]:
        """The highest unit, and an utterance that has it; -1 and "" where there are none."""
        values, counts = self._values, np.zeros(len(self._ends), bool)
        counts[self._order] = True  # not the earlier lines of an id
        if not counts.all():
            values = np.where(np.repeat(counts, np.diff(self._ends, prepend=0)), values, -1)
        if not len(values):
            return -1, ""
        at = int(np.argmax(values))
        return int(values[at]), self._ids[int(np.searchsorted(self._ends, at, side="right"))]

    def _places(self, names: list[str]) -> np.ndarray:
        """(n,) lines of some ids, -1 where there are none."""
        wanted = np.array([_hash(name) for name in names], np.uint64)
        at = np.searchsorted(self._hashes, wanted)
        places = np.full(len(names), -1)
        for index in np.flatnonzero(at < len(self._hashes)):
            place = int(at[index])
            while place < len(self._hashes) and self._hashes[place] == wanted[index]:
                if self._ids[int(self._order[place])] == names[index]:
                    places[index] = self._order[place]
                    break
                place += 1
        return places


def read_units(path: Path, cache: str | Path | None = None) -> Mapping[str, np.ndarray]:
    """Read JSON lines of {"id", "units": [...]}; of several lines of an id the last one counts.

    Args:
        path: the file.
        cache: folder where the units of a large file are kept for all processes and later starts; None: nowhere.

    Raises:
        UserError: a line that is not of this form, with its number.
    """
    try:
        return Units(arrays_of(path, cache, "units", _VERSION, lambda folder: columns(_lines(path), folder)))
    except _NotFlat:
        return dict(_lines(path))


class _NotFlat(Exception):
    """Units that are no list of numbers."""


def _lines(path: Path) -> Iterator[tuple[Any, np.ndarray]]:
    with open_text(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                name, units = row["id"], _numbers(row["units"])
                hash(name)
            except (ValueError, KeyError, TypeError, OverflowError):
                raise UserError(f'{path}, line {number}: expected {{"id": ..., "units": [...]}}') from None
            yield name, units


def _numbers(units: Any) -> np.ndarray:
    """Whole numbers from 0, as int32. Raises ValueError, TypeError or OverflowError for anything else, which NumPy
    would cut to whole numbers."""
    found = np.asarray(units)
    if found.ndim == 0 or (found.size and (found.dtype.kind != "i" or found.min() < 0)):
        raise ValueError
    if found.size and found.max() > np.iinfo(np.int32).max:
        raise OverflowError
    return found.astype(np.int32)


def columns(
    lines: Iterable[tuple[Any, np.ndarray]], folder: Path | None
) -> tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]:
    """What `Units` reads, of ids with their numbers."""
    ids, values = TextWriter(folder), Spill(np.int32, folder)
    sizes: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    lines = ((name, units) for name, units in lines if isinstance(name, str))
    while block := list(islice(lines, _BLOCK)):
        if any(units.ndim != 1 for _, units in block):
            raise _NotFlat
        names = [name for name, _ in block]
        ids.add(names)
        hashes.append(np.array([_hash(name) for name in names], np.uint64))
        sizes.append(np.array([len(units) for _, units in block], np.int64))
        values.add(np.concatenate([units for _, units in block]).tobytes())
    found = np.concatenate([np.empty(0, np.uint64), *hashes])
    count = len(found)
    # Of equal ids, which stand near each other now, the last line comes first: the others are left out.
    order = np.lexsort((-np.arange(count), found)).astype(np.int32)
    found = found[order]
    written = ids.arrays()
    content = written[""]
    texts = Texts(content.array() if isinstance(content, Spill) else content, _array(written[".ends"]))
    keep = np.ones(count, bool)
    seen: set[str] = set()
    for place in np.flatnonzero(found[1:] == found[:-1]) + 1:
        if place == 1 or found[place - 1] != found[place - 2]:
            seen = {texts[int(order[place - 1])]}
        name = texts[int(order[place])]
        keep[place] = name not in seen
        seen.add(name)
    ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *sizes]))
    return {}, {
        "ids": content,
        "ids.ends": written[".ends"],
        "values": values,
        "values.ends": ends,
        "hashes": found[keep],
        "order": order[keep],
    }


def _array(one: np.ndarray | Spill) -> np.ndarray:
    return one.array() if isinstance(one, Spill) else one


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
