"""What systems wrote and what is right, read from files and matched by id: nothing is ever paired by chance.

Files are plain text (a sentence a line, matched by line), `.tsv` with a header, or `.jsonl` (also what `voxzoo
evaluate` writes); the last two have ids. A line ends at LF or CRLF and nowhere else, and a byte order mark is left off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.errors import UserError, few
from ...components.lines import open_text, parse_json, raw_lines
from .counted import References

HYPOTHESIS = ("hypothesis", "translation", "text")
REFERENCE = ("reference", "tgt_text", "text")
SEVERAL = "references"
"""Key of all references of a row, where it has several."""
IDS = ("id", "utt_id")
LONGEST = 1 << 17
"""Characters of one text, those of the longest row that is trained on (4,096 tokens of 32)."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        path: as it was given.
        rows: key -> value; of plain text `text` alone.
        ids: of the rows, unique; None of plain text.
        lines: number of the line of each row.
    """

    path: str
    rows: list[dict[str, Any]]
    ids: list[str] | None
    lines: list[int]

    def where(self, place: int) -> str:
        return f"{self.path}, line {self.lines[place]}"

    def texts(self, field: str | None, usual: Sequence[str]) -> list[str]:
        """One text a row, without white space at its end; line breaks in it become spaces.

        Args:
            field: key of the text; None: the first of the usual ones that the rows have.

        Raises:
            UserError: there is no such key, or a value is no text, or too long.
        """
        if self.ids is None:
            return [self._short(place, row["text"]) for place, row in enumerate(self.rows)]
        found = [key for key in ((field,) if field else usual) if any(key in row for row in self.rows)]
        if not found:
            keys = few(list(dict.fromkeys(key for row in self.rows for key in row)), 12)
            asked = repr(field) if field else " or ".join(map(repr, usual))
            raise UserError(f"{self.path}: no field {asked}; the rows have {keys}. Name the one with the text")
        return [self._text(place, found[0]) for place in range(len(self.rows))]

    def references(self, field: str | None, usual: Sequence[str]) -> list[References]:
        """As `texts`, of rows that may have a list of references in the place of a text, or in `references`, as what
        `voxzoo evaluate` wrote. Empty ones hold the place of none."""
        several = {
            place: row[key]
            for place, row in enumerate(self.rows)
            for key in ([field] if field else [SEVERAL, *usual])
            if isinstance(row.get(key), list)
        }
        if not several:
            return [*self.texts(field, usual)]
        found: list[References] = []
        for place, row in enumerate(self.rows):
            if place not in several:
                alone = Rows(self.path, [row], None if self.ids is None else self.ids[:1], [self.lines[place]])
                found += alone.texts(field, usual)
                continue
            parts = [
                Rows(self.path, [{**row, SEVERAL: text}], [""], [self.lines[place]])
                for text in several[place]
                if text is not None
            ]
            texts = [text for part in parts for text in part.texts(SEVERAL, ()) if text]
            found.append(texts if len(texts) > 1 else "".join(texts))
        return found

    def _text(self, place: int, key: str) -> str:
        value = self.rows[place].get(key)
        if not isinstance(value, str):
            said = "missing" if key not in self.rows[place] else f"expected text, got {value!r}"
            raise UserError(f"{self.where(place)}, {key} of {self.rows[place]['id']!r}: {said}")
        if "\0" in value:
            raise UserError(f"{self.where(place)}, {key}: has a NUL character: this is no text")
        return self._short(place, value.replace("\r\n", " ").replace("\n", " ").replace("\r", " ").rstrip())

    def _short(self, place: int, text: str) -> str:
        if len(text) > LONGEST:
            raise UserError(
                f"{self.where(place)}: a text of {len(text):,} characters; at most {LONGEST:,} are scored: a row is a "
                "sentence, or a few"
            )
        return text

    def of_task(self, task: str | None) -> Rows:
        """The rows of one task of what `voxzoo evaluate` wrote.

        Raises:
            UserError: there are several and none was chosen, or none of that task.
        """
        known = list(dict.fromkeys(str(row["task"]) for row in self.rows if row.get("task") is not None))
        if task is None and len(known) > 1:
            raise UserError(f"{self.path}: rows of several tasks ({', '.join(known)}): choose one by --task")
        if task is None or not known:
            return self
        kept = [place for place, row in enumerate(self.rows) if row.get("task") == task]
        if not kept:
            raise UserError(f"--task {task}: {self.path} has no such rows; its tasks are {', '.join(known)}")
        ids = None if self.ids is None else [self.ids[place] for place in kept]
        return Rows(self.path, [self.rows[place] for place in kept], ids, [self.lines[place] for place in kept])


def read_rows(path: str, task: str | None = None) -> Rows:
    """Read a file by what its name ends in: `.jsonl`, `.tsv`, or plain text.

    Args:
        task: the rows of one task alone, where rows say theirs.

    Raises:
        UserError: no such file, or no text in UTF-8; a row without id, a doubled id, a column too many or too few; no
            rows at all. Names file and line.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file")
    suffix = file.suffix.lower()
    reader = {".jsonl": _json_rows, ".tsv": _tsv_rows}.get(suffix, _plain_rows)
    lines, rows = [], []
    for number, row in reader(file, path):
        lines.append(number)
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: empty: no sentence to score")
    if reader is _plain_rows:
        return Rows(path, rows, None, lines)
    for number, row in zip(lines, rows, strict=True):
        _name(path, number, row)
    found = Rows(path, rows, [row["id"] for row in rows], lines).of_task(task)
    doubled = [name for name, times in Counter(found.ids).items() if times > 1]
    if doubled:
        raise UserError(f"{path}: {_count(doubled, 'id')} used more than once: {few(doubled)}; ids must be unique")
    return found


def matched(reference: Rows, system: Rows) -> list[int]:
    """For each row of the reference, the place of its row in the system's file.

    Raises:
        UserError: plain text has another number of lines; ids are missing or too many. Names them.
    """
    if reference.ids is None or system.ids is None:
        if len(reference.rows) != len(system.rows):
            raise UserError(
                f"{system.path} has {len(system.rows)} lines and {reference.path} {len(reference.rows)}: "
                f"plain text is matched by line{_last(reference, system)}"
            )
        return list(range(len(reference.rows)))
    places = {name: place for place, name in enumerate(system.ids)}
    wanted = set(reference.ids)
    missing = [name for name in reference.ids if name not in places]
    extra = [name for name in system.ids if name not in wanted]
    faults = [
        *([f"{_count(missing, 'id')} of {reference.path} missing: {few(missing)}"] if missing else []),
        *([f"{_count(extra, 'id')} not in {reference.path}: {few(extra)}"] if extra else []),
    ]
    if faults:
        raise UserError(f"{system.path}: {'; '.join(faults)}. Scores are of the same utterances or of none")
    return [places[name] for name in reference.ids]


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _last(reference: Rows, system: Rows) -> str:
    longer = max(reference, system, key=lambda rows: len(rows.rows))
    empty = longer.ids is None and not longer.rows[-1]["text"].strip()
    return f". The last line of {longer.path} is empty: does it stand for a sentence?" if empty else ""


def _name(path: str, number: int, row: dict[str, Any]) -> None:
    key = next((key for key in IDS if key in row), None)
    if key is None:
        raise UserError(f"{path}, line {number}: no id; the row has {few(list(row), 12)}")
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{path}, line {number}, {key}: {value!r}: expected a name")
    row["id"] = str(value)


def _lines(file: Path, path: str) -> Iterator[tuple[int, str]]:
    with open_text(file) as opened:
        for number, line in enumerate(raw_lines(opened, path), 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {line[error.start]:#04x} at column {error.start + 1}"
                raise UserError(f"{path}, line {number}: not UTF-8 text: {byte}; save the file as UTF-8") from None
            if "\0" in text:
                raise UserError(f"{path}, line {number}: has a NUL byte: this is no text in UTF-8")
            yield number, text


def _plain_rows(file: Path, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(file, path):
        yield number, {"text": text.replace("\r", " ").rstrip()}


def _json_rows(file: Path, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(file, path):
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _tsv_rows(file: Path, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _lines(file, path)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    if not set(IDS) & set(names):
        raise UserError(f"{path}, line 1: the header has no column 'id'; it has {few(list(map(repr, names)), 12)}")
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise UserError(f"{path}, line 1: the header has column {doubled[0]!r} twice")
    for number, text in lines:
        if not text.strip():
            continue
        values = text.split("\t")
        if len(values) != len(names):
            raise UserError(f"{path}, line {number}: {len(values)} columns where the header has {len(names)}")
        yield number, dict(zip(names, values, strict=True))
