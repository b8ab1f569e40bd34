"""Rows of a manifest as columns: an `Utterance` is made of a row when it is touched.

A large manifest is read once; its columns are kept in a file beside others of the cache folder and mapped by every
process that trains on it. They are made anew when the manifest changes. Letters: N rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, overload

import numpy as np

from ..components.errors import UserError
from .array_file import Arrays, Spill, Texts, TextWriter
from .derived import arrays_of
from .manifest import (
    KEYS,
    PATHS,
    Paths,
    Scan,
    Utterance,
    faulty_rows,
    manifest_rows,
    paths_of,
    read_manifest,
    scan_manifest,
    sound_rows,
)
from .segments import segment_of

_VERSION = 3
_BLOCK = 8192  # rows that are turned into columns at a time
_TABLE = 1 << 16  # labels that are kept as text, once read
_REFERENCES = "references"
"""Column of the lists of those rows that have several, as JSON."""
_TEXTS = ("id", "audio", "src_text", "tgt_text", "tgt_audio", _REFERENCES)
_LABELS = ("src_lang", "tgt_lang", "speaker", "split")
_FOLDERS = tuple(f"{key}_folder" for key in PATHS)
_MANIFEST = "manifest"
"""Of several manifests the one that a row is of, `0:`, `1:` ..., which the folders of its paths begin with."""


class Labels(Sequence[str]):
    """(N,) texts of which many are equal: numbers into a table."""

    def __init__(self, codes: np.ndarray, table: Texts, change: Callable[[str], str] = str) -> None:
        self.codes, self.table = codes, table
        self._change = change
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        code = int(self.codes[index])
        text = self._known.get(code)
        if text is None:
            text = self._change(self.table[code])
            if len(self._known) < _TABLE:
                self._known[code] = text
        return text

    def code(self, text: str) -> int:
        """Number of a text; -1 where no row has it."""
        return next((code for code in range(len(self.table)) if self.table[code] == text), -1)


class Rows(Sequence[Utterance]):
    """The rows of a manifest, or of several as one, or some of them, in order.

    Args:
        arrays: the columns.
        folders: of each manifest.
        chosen: (n,) which rows; None: all.

    Attributes:
        extra: how many rows had each of the keys that were ignored.
        faults: (id or line, what is wrong) of the rows of the manifest that are left out.
    """

    def __init__(self, arrays: Arrays, folders: Sequence[Path], chosen: np.ndarray | None = None) -> None:
        self.arrays, self._folders, self.chosen = arrays, tuple(folders), chosen
        self.extra: Counter[str] = Counter(arrays.about["extra"])
        self.faults: list[tuple[str, str]] = [(name, what) for name, what in arrays.about.get("faults", ())]
        self._texts = {name: Texts(arrays[name], arrays[f"{name}.ends"]) for name in _TEXTS}
        self._labels = {
            name: Labels(
                arrays[name],
                Texts(arrays[f"{name}.table"], arrays[f"{name}.table.ends"]),
                self._absolute if name in _FOLDERS else str,
            )
            for name in (*_LABELS, *_FOLDERS)
        }
        self._duration = arrays["duration"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.arrays, self._folders, self.chosen)

    def __len__(self) -> int:
        return len(self._duration) if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Utterance | Rows:
        if isinstance(index, slice):
            return self.take(self.numbers(np.arange(len(self), dtype=np.int32)[index]))
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        return self._utterance(index % count if self.chosen is None else int(self.chosen[index]))

    def __iter__(self) -> Iterator[Utterance]:
        places = range(len(self._duration)) if self.chosen is None else self.chosen
        return (self._utterance(int(place)) for place in places)

    def take(self, chosen: np.ndarray | None) -> Rows:
        """Some rows, by their (n,) numbers in the manifest."""
        return Rows(self.arrays, self._folders, chosen)

    def whole(self) -> Rows:
        """All rows of the manifest."""
        return self if self.chosen is None else self.take(None)

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """Numbers in the manifest of some of these rows."""
        return indices if self.chosen is None else self.chosen[indices]

    def _utterance(self, place: int) -> Utterance:
        texts, labels = self._texts, self._labels
        duration = float(self._duration[place])
        several = texts[_REFERENCES][place]
        return Utterance(
            id=texts["id"][place],
            audio=self._path("audio", place),
            duration=None if math.isnan(duration) else duration,
            src_lang=labels["src_lang"][place],
            tgt_lang=labels["tgt_lang"][place],
            src_text=texts["src_text"][place],
            tgt_text=texts["tgt_text"][place],
            tgt_audio=self._path("tgt_audio", place),
            speaker=labels["speaker"][place] or None,
            split=labels["split"][place],
            references=tuple(json.loads(several)) if several else (),
        )

    def _path(self, key: str, place: int) -> str | None:
        name = self._texts[key][place]
        if not name:
            return None
        folder = self._labels[f"{key}_folder"][place]
        if name == "." or name.startswith("/"):  # the folder itself, or the root
            return str(Path(folder) / name)
        return folder + name

    def _absolute(self, folder: str) -> str:
        """A folder as `Path` joins it with that of its manifest, with the mark behind it."""
        number = "0"
        if len(self._folders) > 1:
            number, _, folder = folder.partition(":")
        if folder.startswith("/"):
            return folder
        before = str(self._folders[int(number)])
        return folder if before == "." else f"{before.rstrip('/')}/{folder}"

    def by_manifest(self) -> list[Rows]:
        """The rows of each manifest."""
        ends = self._ends()
        if len(ends) == 1:
            return [self]
        places, number = self._places(), self.manifest_numbers()
        return [self.take(places[number == manifest]) for manifest in range(len(ends))]

    def manifest_numbers(self) -> np.ndarray:
        """(n,) which of the manifests each row is of, from 0."""
        return np.searchsorted(self._ends(), self._places(), side="right")

    def _ends(self) -> np.ndarray:
        return np.cumsum(self.arrays.about.get("counts", [len(self._duration)]))

    def _places(self) -> np.ndarray:
        return np.arange(len(self._duration), dtype=np.int32) if self.chosen is None else self.chosen

    # Columns of these rows

    def durations(self) -> np.ndarray:
        """(n,) float64 seconds, NaN where the manifest does not say."""
        return self._of_these(self._duration)

    def has(self, key: str) -> np.ndarray:
        """(n,) bool: whether `key`, of a text or a path, is there."""
        return self._of_these(self._texts[key].sizes() > 0)

    def characters(self, key: str) -> np.ndarray:
        """(n,) characters of the texts of `key`."""
        return self._of_these(self._texts[key].characters())

    def texts(self, key: str) -> Iterator[str]:
        """The texts of `key`, "" where there is none."""
        texts = self._texts[key]
        return (texts[int(place)] for place in (range(len(texts)) if self.chosen is None else self.chosen))

    def text(self, key: str, index: int) -> str:
        """The text of `key` in one row."""
        return self._texts[key][index if self.chosen is None else int(self.chosen[index])]

    def paths(self, key: str, indices: np.ndarray) -> Iterator[str | None]:
        """The paths of `key` in some rows."""
        return (self._path(key, int(place)) for place in self.numbers(indices))

    def labels(self, key: str) -> set[str]:
        """What there is of `key`, of a language, `speaker` or `split`; "" where a row says nothing."""
        labels = self._labels[key]
        return {labels.table[int(code)] for code in np.unique(self._of_these(labels.codes))}

    def codes(self, key: str) -> tuple[np.ndarray, list[str]]:
        """(n,) numbers of what the rows say of `key`, of a language, `speaker` or `split`, and the (k,) texts that they
        stand for, sorted; "" where a row says nothing."""
        labels = self._labels[key]
        there, codes = np.unique(self._of_these(labels.codes), return_inverse=True)
        return labels_of([(codes, [labels.table[int(code)] for code in there])])

    def recordings(self, key: str = "audio") -> np.ndarray:
        """(n,) number of the recording that each row's audio, or `tgt_audio`, is of, or is part of; -1 where there is
        none. Rows of one recording have one number."""
        found = np.full(len(self), -1, np.int64)
        places = np.flatnonzero(self.has(key))
        names = (segment_of(path or "") for path in self.paths(key, places))
        hashes = np.fromiter((hash((one.path, one.place)) for one in names), np.int64, len(places))
        found[places] = np.unique(hashes, return_inverse=True)[1]
        return found

    def labelled(self, key: str, names: Iterable[str]) -> np.ndarray:
        """(n,) bool: whether what a row says of `key` is one of `names`."""
        labels = self._labels[key]
        return np.isin(self._of_these(labels.codes), [labels.code(name) for name in names])

    def of_split(self, split: str) -> Rows:
        """The rows that say they are of `split`."""
        return self.take(self.numbers(np.flatnonzero(self.labelled("split", [split])).astype(np.int32)))

    def _of_these(self, column: np.ndarray) -> np.ndarray:
        return column if self.chosen is None else column[self.chosen]


def open_rows(path: Paths, cache: str | Path | None = None, *, skip: bool = False, most: int | None = None) -> Rows:
    """Read a manifest, or several as one, as columns, as `read_manifest` reads it as a list.

    Args:
        path: a `.jsonl` or `.tsv` manifest, or several.
        cache: folder where the columns of large manifests are kept for all processes and later starts; None: nowhere.
        skip: leave faulty rows out (`Rows.faults`) where there are others.
        most: rows that are read, the first ones, and kept nowhere; None: all.

    Raises:
        UserError: as `read_manifest`.
    """
    paths = paths_of(path)
    kind = "sound" if skip else "rows"
    kept = cache if most is None else None
    arrays = arrays_of(paths, kept, kind, _VERSION, lambda folder: _columns(paths, folder, skip, most))
    return Rows(arrays, [one.parent for one in paths])


def _columns(
    paths: Sequence[Path], folder: Path | None, skip: bool = False, most: int | None = None
) -> tuple[dict[str, Any], Mapping[str, np.ndarray | Spill]]:
    """What manifests hold, or their first `most` rows, and their columns; large ones are collected in `folder`, if one
    is given. `skip`: without their faulty rows.

    Raises:
        UserError: as `read_manifest`.
    """
    if any(path.suffix not in (".jsonl", ".tsv") or not path.is_file() for path in paths):
        scan_manifest(paths)  # says what is wrong
    scan, counts = Scan(), [0] * len(paths)

    def counted(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        for number, values in islice(rows, most):
            counts[number] += 1
            if len(paths) > 1:
                values[_MANIFEST] = f"{number}:"
            yield values

    about: dict[str, Any] = {"counts": counts}
    if skip:
        arrays, _ = _gather(_blocks(counted(sound_rows(paths, scan))), folder)
        if not len(arrays["duration"]):  # pyright: ignore[reportArgumentType]
            read_manifest(paths, most=most)  # says what is wrong
        return {**about, "extra": dict(scan.extra), "faults": faulty_rows(scan)}, arrays
    rows = counted((number, values) for number, _, values, _ in manifest_rows(paths, scan))

    def blocks() -> Iterator[list[dict[str, Any]]]:
        while not scan.faults and (block := list(islice(rows, _BLOCK))):
            if scan.faults:
                return
            yield block

    arrays, unique = _gather(blocks(), folder)
    if scan.faults or not unique:
        read_manifest(paths, most=most)  # says what is wrong
    return {**about, "extra": dict(scan.extra)}, arrays


def rows_of(utterances: Iterable[Utterance], name: str) -> Rows:
    """Utterances as columns, in order; audio is named as they name it.

    Args:
        utterances: each with an id of its own, `src_lang`, `audio` or `src_text`, and `tgt_lang` where it has
            `tgt_text`.
        name: of what they are, for messages.

    Raises:
        UserError: there are none, or one lacks something.
    """
    arrays, unique = _gather(_blocks(_values(utterance, name) for utterance in utterances), None)
    if not len(arrays["duration"]):  # pyright: ignore[reportArgumentType]
        raise UserError(f"{name}: there are no utterances")
    made = {key: one.array() if isinstance(one, Spill) else one for key, one in arrays.items()}
    found = Rows(Arrays({"extra": {}}, made), [Path()])
    if not unique:
        counts = Counter(found.texts("id"))
        twice = next((one for one, count in counts.items() if count > 1), None)
        if twice is not None:
            raise UserError(f"{name}: the id {twice!r} is used {counts[twice]} times; ids must be unique in a split")
    return found


def _blocks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while block := list(islice(rows, _BLOCK)):
        yield block


def _values(utterance: Utterance, name: str) -> dict[str, Any]:
    """What an utterance says, as a row of a manifest does."""
    values = {key: value for key in KEYS if (value := getattr(utterance, key)) not in (None, "")}
    for key in PATHS:
        if isinstance(values.get(key), PurePath):
            values[key] = str(values[key])
    wrong = next((key for key, value in values.items() if key != "duration" and not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{name}: utterance {values.get('id')!r}: {wrong}={values[wrong]!r}: expected text")
    for key in ("src_text", "tgt_text"):
        if key in values:
            values[key] = values[key].strip()
    if utterance.references:
        values.setdefault("tgt_text", utterance.references[0])
        values[_REFERENCES] = utterance.references
    missing = [key for key in ("id", "src_lang") if not values.get(key)]
    if not values.get("audio") and not values.get("src_text"):
        missing.append("audio (or src_text)")
    if values.get("tgt_text") and not values.get("tgt_lang"):
        missing.append("tgt_lang")
    if missing:
        raise UserError(f"{name}: utterance {values.get('id', '')!r} has no {', '.join(missing)}")
    if not 0 < values.get("duration", 1) < math.inf:
        seconds = values["duration"]
        raise UserError(f"{name}: utterance {values['id']!r}: duration={seconds!r}: expected seconds above 0")
    return values


def _gather(blocks: Iterable[list[dict[str, Any]]], folder: Path | None) -> tuple[dict[str, np.ndarray | Spill], bool]:
    """Columns of rows, and whether there are some and no two ids have one hash."""
    texts = {name: TextWriter(folder) for name in _TEXTS}
    labels = {name: _LabelColumn() for name in (*_LABELS, *_FOLDERS)}
    durations, names = [np.empty(0, np.float64)], [np.empty(0, np.int64)]
    for block in blocks:
        ids = [values["id"] for values in block]
        names.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        durations.append(np.array([values.get("duration", math.nan) for values in block], np.float64))
        texts["id"].add(ids)
        for key in ("src_text", "tgt_text"):
            texts[key].add([values.get(key, "") for values in block])
        several = [values.get(_REFERENCES) for values in block]
        texts[_REFERENCES].add([json.dumps(found) if found else "" for found in several])
        for key in _LABELS:
            labels[key].add([values.get(key, "") for values in block])
        for key in PATHS:
            parts = [_parted(values.get(key, "")) for values in block]
            of = [values.get(_MANIFEST, "") for values in block]
            labels[f"{key}_folder"].add([number + before for number, (before, _) in zip(of, parts)])
            texts[key].add([name for _, name in parts])
    hashes = np.sort(np.concatenate(names))
    arrays: dict[str, np.ndarray | Spill] = {"duration": np.concatenate(durations)}
    for name, column in (*texts.items(), *labels.items()):
        arrays.update({name + behind: array for behind, array in column.arrays().items()})
    return arrays, len(hashes) > 0 and not (hashes[1:] == hashes[:-1]).any()


def _parted(path: str) -> tuple[str, str]:
    """Folder, with the mark behind it, and name of a path, as `Path` would write it."""
    if "//" in path or "/." in path or path.startswith(".") or path.endswith("/"):
        path = str(PurePath(path))
    cut = path.rfind("/") + 1
    return (path[:cut], path[cut:]) if cut < len(path) else ("", path)


def groups_of(rows: Rows, by: str, manifests: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """(n,) number of the group of each row, and the names of the groups, sorted.

    Args:
        rows: n of them.
        by: `languages`, `src_lang`, `tgt_lang`, `speaker` or `manifest`.
        manifests: their names, in the order of the rows.

    Raises:
        UserError: the rows are of no manifests.
    """
    if by == "manifest":
        if not manifests:
            raise UserError("data.mix.by=manifest: these data are no manifests; mix by something that rows say")
        return labels_of([(rows.manifest_numbers(), manifests)])
    return labels_of([rows.codes(key) for key in (("src_lang", "tgt_lang") if by == "languages" else (by,))])


def labels_of(columns: Sequence[tuple[np.ndarray, Sequence[str]]], behind: str = "-") -> tuple[np.ndarray, list[str]]:
    """(n,) numbers of what several columns say together, and what they stand for, sorted.

    Args:
        columns: (n,) numbers and the texts of them.
        behind: what joins the texts.
    """
    codes = np.zeros(len(columns[0][0]), np.int64)
    for numbers, names in columns:
        codes = codes * max(len(names), 1) + numbers
    there, codes = np.unique(codes, return_inverse=True)
    called = []
    for code in there.tolist():
        parts = []
        for _, names in reversed(columns):
            code, number = divmod(code, max(len(names), 1))
            parts.append(names[number])
        called.append(behind.join(filter(None, reversed(parts))))
    order = sorted(range(len(called)), key=called.__getitem__)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place[codes], [called[number] for number in order]


class _LabelColumn:
    def __init__(self) -> None:
        self._table: dict[str, int] = {}
        self._codes = [np.empty(0, np.int32)]

    def add(self, texts: Sequence[str]) -> None:
        table = self._table
        self._codes.append(np.array([table.setdefault(text, len(table)) for text in texts], np.int32))

    def arrays(self) -> dict[str, np.ndarray | Spill]:
        table = TextWriter(None)
        table.add([*self._table])
        written = table.arrays()
        return {"": np.concatenate(self._codes), ".table": written[""], ".table.ends": written[".ends"]}


assert {"duration", *_TEXTS, *_LABELS} == {*KEYS, _REFERENCES}
