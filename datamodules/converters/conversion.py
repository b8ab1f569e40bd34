"""From a corpus to a manifest, row by row: what all layouts have in common."""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...components.errors import UserError
from ...components.languages import language_name
from ...components.lines import json_line
from ...components.nearby import nearest_path
from ...components.whole import whole_file
from ..manifest import KEYS, path_from
from ..segments import segment_name, segment_of
from . import KINDS

Row = dict[str, Any]
"""Keys of a manifest, and `offset` and `channel`; audio as a path that can be opened, or the name of a member."""

WRITTEN = (*KEYS, "offset", "channel")
_SHOWN = 5
_TOGETHER, _THREADS = 1024, 8  # rows whose audio is looked at together, and by how many


@dataclass
class LeftOut:
    """What of a corpus does not become a row.

    Attributes:
        counts: reason -> how many.
        first: reason -> the first few of them.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, reason: str, name: object) -> None:
        self.counts[reason] += 1
        if len(self.first[reason]) < _SHOWN:
            self.first[reason].append(str(name))


@dataclass(frozen=True)
class Asked:
    """What is asked of a corpus.

    Attributes:
        out: the manifest that is written.
        src_lang, tgt_lang: in place of what the corpus says; "" where it is taken at its word.
        split: the one that is read; "": all.
        beside: the folder of another corpus that belongs to it.
        columns: key of a manifest -> what the corpus calls it.
        left_out: is told of each thing that does not become a row.
        said: lines for the user.
    """

    out: Path
    src_lang: str = ""
    tgt_lang: str = ""
    split: str = ""
    beside: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    said: list[str] = field(default_factory=list)

    def wants(self, split: str) -> bool:
        return self.split in ("", split)

    def needs_beside(self, kind: str, what: str) -> Path:
        """The folder of the other corpus. Raises UserError where none was given, or there is none."""
        if self.beside is None:
            raise UserError(f"{kind}: say --with FOLDER: {what}")
        if not self.beside.exists():
            raise UserError(f"--with {self.beside}: no such folder: {what}")
        return self.beside


@dataclass(frozen=True)
class Converted:
    """What became of a corpus.

    Attributes:
        rows: in the manifest.
        seconds: of their source speech, as far as it is known.
        splits: split -> rows.
        left_out: reason -> how many.
        first: reason -> the first few.
        said: lines for the user.
    """

    rows: int
    seconds: float
    splits: dict[str, int]
    left_out: dict[str, int]
    first: dict[str, list[str]]
    said: list[str]


def convert(
    kind: str,
    source: Path,
    asked: Asked,
    *,
    durations: bool = True,
    progress: Callable[[int], Any] = lambda done: None,
) -> Converted:
    """Write the manifest of a corpus.

    Args:
        kind: a name of `KINDS`.
        source: the corpus.
        asked: what of it, and where to.
        durations: read the headers of audio whose length the corpus does not say; a file that has none is left out.
        progress: called with the rows so far.

    Raises:
        UserError: the corpus is not of this kind, is damaged as a whole, or says no language.
    """
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{kind}: no layout of this name{meant or '.'} There are {', '.join(KINDS)}")
    if asked.out.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"--out {asked.out}: expected the name of a manifest, which ends in .jsonl or .tsv")
    if not source.exists():
        near = nearest_path(source)
        raise UserError(f"{source}: no such file or folder" + (f"; did you mean {near}?" if near else ""))
    module = import_module(f".{kind}", __package__)
    for option, given in (("beside", asked.beside), ("columns", asked.columns)):
        if given and option not in getattr(module, "TAKES", ()):
            raise UserError(f"{kind}: takes no {'--with' if option == 'beside' else '--column'}; leave it out")
    found = module.rows(source, asked)
    made = _Made(asked, kind)
    rows = _looked_at(made.sound(found), asked.left_out, durations)
    with whole_file(asked.out) as file:
        made.write(rows, file, progress)
        if not made.count:
            why = "; ".join(f"{count} {reason}" for reason, count in asked.left_out.counts.most_common(_SHOWN))
            raise UserError(f"{source}: nothing in it becomes a row{f': {why}' if why else ''}")
    made.without_repetitions()
    if asked.tgt_lang and not made.translated:
        asked.said.append(f"no row has a translation: --tgt-lang {asked.tgt_lang} is of none")
    left = asked.left_out
    return Converted(
        made.count, made.seconds, dict(made.splits), dict(left.counts.most_common()), dict(left.first), asked.said
    )


class _Made:
    """The manifest that is made."""

    def __init__(self, asked: Asked, kind: str) -> None:
        self.asked, self.kind = asked, kind
        self.count, self.seconds = 0, 0.0
        self.splits: Counter[str] = Counter()
        self.translated = 0
        self._ids = array("q")

    def sound(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows in which all is said that a row must say. Raises UserError where no row can say it."""
        left_out = self.asked.left_out
        for row in rows:
            row = {key: value for key, value in row.items() if value not in (None, "", [])}
            name = row["id"] = str(row.get("id", ""))
            reason = _texts(row) or self._languages(row) or _parts(row)
            if self.asked.split and not row.get("split"):
                raise UserError(f"{self.kind}: this corpus names no splits: leave out --split {self.asked.split}")
            if not name:
                reason = "no id"
            elif not row.get("audio") and not row.get("src_text"):
                reason = "neither audio nor source text"
            if reason:
                left_out(reason, name or row.get("audio", "?"))
            else:
                yield row

    def _languages(self, row: Row) -> str | None:
        for key, told in (("src_lang", self.asked.src_lang), ("tgt_lang", self.asked.tgt_lang)):
            needed = key == "src_lang" or bool(row.get("tgt_text") or row.get("tgt_audio"))
            code = told or row.get(key)
            if not needed:
                row.pop(key, None)
            elif not code:
                option, side = f"--{key[:3]}-lang", "source" if key == "src_lang" else "target"
                raise UserError(f"{self.kind}: {row['id']} says no {side} language: say {option} CODE, such as spa")
            else:
                try:
                    row[key] = language_name(str(code))
                except ValueError as error:
                    return str(error)
        return None

    def write(self, rows: Iterable[Row], file: BinaryIO, progress: Callable[[int], Any]) -> None:
        folder = self.asked.out.parent
        tabular = self.asked.out.suffix == ".tsv"
        if tabular:
            file.write(("\t".join(WRITTEN) + "\n").encode())
        for row in rows:
            for key in ("audio", "tgt_audio"):
                if key in row:
                    row[key] = path_from(folder, row[key])
            line = _tabbed(row) if tabular else json_line({key: row[key] for key in WRITTEN if key in row})
            if line is None:
                self.asked.left_out("a tab, a line break or several references, which .tsv cannot hold", row["id"])
                continue
            try:
                file.write(line.encode() + b"\n")
            except UnicodeEncodeError:
                self.asked.left_out("a name that is no UTF-8", ascii(row["id"]))
                continue
            self.count += 1
            self.seconds += row.get("duration", 0.0)
            self.splits[row.get("split", "")] += 1
            self.translated += "tgt_lang" in row
            self._ids.append(hash(row["id"]))
            if self.count % 1000 == 0:
                progress(self.count)

    def without_repetitions(self) -> None:
        """Ids are unique: of several rows of one id the first stays. Where there are any, the file is read again."""
        hashes = np.frombuffer(self._ids, np.int64)
        values, counts = np.unique(hashes, return_counts=True)
        if len(values) == len(hashes):
            return
        suspects, seen = set(values[counts > 1].tolist()), set[str]()
        out = self.asked.out
        for key in ("count", "seconds"):
            setattr(self, key, 0)
        self.splits.clear()
        with out.open("rb") as before, whole_file(out) as after:
            for place, line in enumerate(before):
                if out.suffix == ".tsv" and place == 0:
                    after.write(line)
                    continue
                row = _again(line, out.suffix)
                name = row["id"]
                if hash(name) in suspects:
                    if name in seen:
                        self.asked.left_out("an id that an earlier row has", name)
                        continue
                    seen.add(name)
                after.write(line)
                self.count += 1
                self.seconds += float(row.get("duration") or 0)
                self.splits[row.get("split", "")] += 1


def _again(line: bytes, suffix: str) -> Row:
    import json

    return json.loads(line) if suffix == ".jsonl" else dict(zip(WRITTEN, line.decode().rstrip("\n").split("\t")))


def _texts(row: Row) -> str | None:
    """Texts of a row as such, or what is wrong with one."""
    for key in ("src_text", "tgt_text", "speaker", "split", "src_lang", "tgt_lang", "audio", "tgt_audio"):
        value = row.get(key)
        if isinstance(value, str):
            row[key] = value.strip() if key.endswith("text") else value
        elif isinstance(value, int | float):
            row[key] = str(value)
        elif value is not None and not (
            key == "tgt_text" and isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            return f"a {key} that is no text"
    return None


def _parts(row: Row) -> str | None:
    """Numbers of a row in their types, or what is wrong with them."""
    for key, least in (("duration", 0.0), ("offset", 0.0)):
        if key not in row:
            continue
        try:
            row[key] = round(float(row[key]), 7)
        except (TypeError, ValueError):
            return f"a {key} that is no number"
        if not math.isfinite(row[key]) or row[key] < least or (key == "duration" and row[key] == 0):
            return f"a {key} of no time" if key == "duration" else "an offset before the beginning"
    if row.get("offset") == 0 and "duration" not in row:
        del row["offset"]
    return None


def _tabbed(row: Row) -> str | None:
    values = [row.get(key, "") for key in WRITTEN]
    if any(isinstance(value, list) or any(mark in str(value) for mark in "\t\n\r") for value in values):
        return None
    return "\t".join(map(str, values))


def _looked_at(rows: Iterator[Row], left_out: LeftOut, durations: bool) -> Iterator[Row]:
    """Rows whose audio is there, with its length."""

    def look(some: Sequence[Row]) -> list[tuple[float | None, str]]:
        return [_look(row, durations) for row in some]

    with ThreadPoolExecutor(_THREADS) as pool:  # files are waited for without the interpreter lock
        while some := list(islice(rows, _TOGETHER)):
            parts = [some[start::_THREADS] for start in range(_THREADS)]
            looked: list[Any] = [None] * len(some)
            for start, found in enumerate(pool.map(look, parts)):
                looked[start::_THREADS] = found
            for row, (seconds, wrong) in zip(some, looked):
                if wrong:
                    left_out(wrong, row["id"])
                    continue
                if seconds is not None:
                    row["duration"] = round(seconds, 4)
                yield row


def _look(row: Row, durations: bool) -> tuple[float | None, str]:
    """Seconds of the audio of a row that does not say them, and what is wrong with its files."""
    for key in ("audio", "tgt_audio"):
        if key in row and not os.path.isfile(segment_of(row[key]).path):
            return None, "no such audio file" if key == "audio" else "no such target audio file"
    if "audio" not in row or "duration" in row or not durations:
        return None, ""
    from ..audio import AudioError, audio_seconds  # torch loads only where it is needed

    try:
        return audio_seconds(segment_name(row["audio"], row.get("offset"), None, row.get("channel"))), ""
    except AudioError:
        return None, "audio that cannot be read"
