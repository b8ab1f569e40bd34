"""Manifests: one row per utterance, as JSON lines or as tab-separated values with a header.

Keys: `id`, `src_lang`; `audio` or `src_text` or both; `duration` (seconds), `tgt_lang`, `tgt_text`, `tgt_audio`,
`speaker`, `split`. `offset` (seconds) with `duration`, and `channel` (from 0), make `audio` a part of a longer
recording. Audio paths are relative to the folder of the manifest. Monolingual manifests may say `lang` and `text` for
`src_lang` and `src_text`.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..components.errors import UserError
from ..components.languages import language_name
from ..components.lines import json_line, open_text, parse_json, raw_lines
from .segments import segment_name


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row of a manifest, and what is asked for it.

    Attributes:
        id: unique in its manifest.
        audio: path of the source speech, or a part of it (`segments`), or None for text.
        duration: seconds of `audio`, or None where the manifest does not say.
        src_lang, tgt_lang: codes as `components.languages` writes them; tgt_lang is "" where there is no target.
        src_text, tgt_text: "" where there is none.
        tgt_audio: path of the target speech, or None.
        speaker: label, or None.
        split: where the row belongs in a manifest that holds several splits; "" where it does not say.
        task: one of s2tt asr t2tt s2st t2st. Set by the data module, not read from manifests.
        speed: factor of speed perturbation. Set by the data module, not read from manifests.
    """

    id: str
    audio: str | None = None
    duration: float | None = None
    src_lang: str = ""
    tgt_lang: str = ""
    src_text: str = ""
    tgt_text: str = ""
    tgt_audio: str | None = None
    speaker: str | None = None
    split: str = ""
    task: str = "s2tt"
    speed: float = 1.0


KEYS = tuple(item.name for item in fields(Utterance) if item.name not in ("task", "speed"))
PATHS = ("audio", "tgt_audio")
"""Keys whose values are relative to the folder of the manifest."""
_PLAIN = frozenset(KEYS) - {"duration", "src_text", "tgt_text"}
_ALIASES = {"lang": "src_lang", "text": "src_text"}
_PART = ("offset", "channel")
"""Keys that make `audio` a part of a recording (`segments`)."""
_ELSEWHERE = {
    **dict.fromkeys(("audio_filepath", "audio_path", "file_name", "path", "wav"), "audio"),
    **dict.fromkeys(("start", "begin", "start_time", "start_offset"), "offset"),
    **dict.fromkeys(("end", "stop", "end_time", "end_offset"), "duration"),
    **dict.fromkeys(("sentence", "transcript", "transcription"), "src_text"),
    "translation": "tgt_text",
}
"""What other manifests call the keys that decide what a row means: not read, and never passed over."""


def did_you_mean(key: str) -> str:
    """`, did you mean tgt_text?` of a key that is not ours and nearly is; "" of any other."""
    near = difflib.get_close_matches(key.lower(), (*KEYS, *_PART, *_ALIASES), n=1, cutoff=0.75)
    return f", did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line of a manifest; `row` is its id, "" where that cannot be said."""

    line: int
    key: str
    message: str
    row: str = ""

    def __str__(self) -> str:
        return f"line {self.line}, {self.key}: {self.message}" if self.key else f"line {self.line}: {self.message}"


@dataclass
class Scan:
    """All that a manifest holds, good and bad.

    Attributes:
        utterances: the rows without fault.
        lines: line number of each of them.
        faults: the rest.
        extra: key -> rows that have it, for keys that are not ours.
    """

    utterances: list[Utterance] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    extra: Counter[str] = field(default_factory=Counter)


class Manifest(list[Utterance]):
    """The rows of a manifest; `extra` counts the keys that were ignored."""

    def __init__(self, rows: Iterable[Utterance] = (), *, extra: Counter[str] | None = None) -> None:
        super().__init__(rows)
        self.extra: Counter[str] = extra or Counter()


def read_manifest(path: str | Path, *, max_faults: int = 20) -> Manifest:
    """Read a `.jsonl` or `.tsv` manifest.

    Raises:
        UserError: the file is missing or empty, or any row is at fault; lists up to `max_faults` of them.
    """
    scan = scan_manifest(path)
    if scan.faults:
        shown = "\n".join(f"  {fault}" for fault in scan.faults[:max_faults])
        more = len(scan.faults) - max_faults
        rest = f"\n  and {more} more" if more > 0 else ""
        raise UserError(f"{path}: {len(scan.faults)} fault{'s' if len(scan.faults) > 1 else ''}\n{shown}{rest}")
    if not scan.utterances:
        raise UserError(f"{path}: the manifest is empty; expected one utterance a line")
    return Manifest(scan.utterances, extra=scan.extra)


def scan_manifest(path: str | Path) -> Scan:
    """Read a manifest and keep going at faults. Raises UserError where the file cannot be read at all."""
    path = Path(path)
    if path.suffix not in _READERS:
        raise UserError(f"{path}: expected a manifest that ends in {' or '.join(_READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    scan = Scan()
    for line, values in _unique_rows(path, scan):
        for key in PATHS:
            if key in values:
                values[key] = str(path.parent / values[key])
        scan.utterances.append(Utterance(**values))
        scan.lines.append(line)
    return scan


def _unique_rows(path: Path, scan: Scan) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values of each row without fault, the first of each id; as `manifest_rows`."""
    first: dict[str, int] = {}
    for line, values, good in manifest_rows(path, scan):
        if values.get("id") in first:
            message = f"{values['id']!r} was used on line {first[values['id']]}; ids must be unique"
            scan.faults.append(Fault(line, "id", message))
        elif good:
            first[values["id"]] = line
            yield line, values


def sound_rows(path: Path, scan: Scan) -> Iterator[dict[str, Any]]:
    """The values of the rows of a manifest that are without fault, the first of each id.

    Args:
        path, scan: as of `manifest_rows`.
    """
    return (values for _, values in _unique_rows(path, scan))


def faulty_rows(scan: Scan) -> list[tuple[str, str]]:
    """(id, or else the line; what is wrong) of each faulty row."""
    found: dict[int, list[Fault]] = {}
    for fault in scan.faults:
        found.setdefault(fault.line, []).append(fault)
    return [(some[0].row or f"line {line}", "; ".join(map(str, some))) for line, some in found.items()]


def manifest_rows(path: Path, scan: Scan) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Line number and values of each row, and whether it is without fault; audio paths are as they are written, and
    ids are not compared.

    Args:
        path: a `.jsonl` or `.tsv` file that exists.
        scan: gets the faults and the unknown keys.

    Raises:
        UserError: the file is no text.
    """
    for line, row in _READERS[path.suffix](path):
        if isinstance(row, str):
            scan.faults.append(Fault(line, "", row))
            continue
        before = len(scan.faults)
        values = _check(line, row, scan)
        yield line, values, len(scan.faults) == before


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `.jsonl` or `.tsv`; audio paths become relative to the manifest where they lie beside or below it."""
    path = Path(path)
    rows = []
    for utterance in utterances:
        row = {key: value for key in KEYS if (value := getattr(utterance, key)) not in (None, "")}
        for key in PATHS:
            if key in row and Path(row[key]).is_relative_to(path.parent):
                row[key] = Path(row[key]).relative_to(path.parent).as_posix()
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as out:
        if path.suffix == ".tsv":
            used = [key for key in KEYS if any(key in row for row in rows)]
            writer = csv.DictWriter(out, used, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, escapechar=None,
                                    lineterminator="\n", restval="")  # fmt: skip
            writer.writeheader()
            try:
                writer.writerows(rows)
            except csv.Error:
                raise UserError(
                    f"{path}: a text has a tab or a line break, which .tsv cannot hold; write .jsonl"
                ) from None
        elif path.suffix == ".jsonl":
            out.writelines(json_line(row) + "\n" for row in rows)
        else:
            raise UserError(f"{path}: expected a manifest name that ends in .jsonl or .tsv")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open_text(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode())
            except UnicodeDecodeError as error:
                yield number, _no_text(line, error)
                continue
            except ValueError as error:
                yield number, str(error)
                continue
            yield number, row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"


def _tsv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open_text(path) as file:
        lines = raw_lines(file, path)
        header = next(lines, b"").decode(errors="replace").split("\t")
        if "id" not in header:
            yield 1, f"the header has no column 'id'; it has {', '.join(map(repr, header))}"
            return
        for number, line in enumerate(lines, 2):
            if not line.strip():
                continue
            try:
                values = line.decode().split("\t")
            except UnicodeDecodeError as error:
                yield number, _no_text(line, error)
                continue
            if len(values) != len(header):
                yield number, f"{len(values)} columns where the header has {len(header)}"
                continue
            yield number, {key: value for key, value in zip(header, values) if value != ""}


def _no_text(line: bytes, error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text: byte {line[error.start]:#04x} at column {error.start + 1}; save the manifest as UTF-8"


_READERS = {".jsonl": _json_rows, ".tsv": _tsv_rows}


_IN_SECONDS = {"offset": " (seconds from the beginning)", "duration": " (seconds)"}


def _part(key: str, value: Any, fault: Callable[[str, str], None]) -> float | int | None:
    """The value of `offset` or `channel`."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number >= 0):
        fault(key, f"{value!r}: expected {'seconds' if key == 'offset' else 'a number'} from 0")
        return None
    if key == "channel" and number != int(number):
        fault(key, f"{value!r}: expected a whole number, 0 for the first channel")
        return None
    return int(number) if key == "channel" else number


def _check(line: int, row: dict[str, Any], scan: Scan) -> dict[str, Any]:
    """The row's values in their types; faults and unknown keys go into `scan`."""

    name = row.get("id")
    known = str(name) if isinstance(name, str | int) else ""

    def fault(key: str, message: str) -> None:
        scan.faults.append(Fault(line, key, message, known))

    values: dict[str, Any] = {}
    part: dict[str, Any] = {}
    for name, value in row.items():
        if name in _PLAIN and type(value) is str:
            values[name] = value
            continue
        key = _ALIASES[name] if name in _ALIASES and _ALIASES[name] not in row else name
        if key in _PART:
            if value is not None:
                part[key] = _part(key, value, fault)
        elif key not in KEYS:
            meant = _ELSEWHERE.get(key)
            if meant is not None and row.get(meant) is None and value is not None:
                fault(key, f"not read here: say {meant}{_IN_SECONDS.get(meant, '')}")
            else:
                scan.extra[key] += 1
        elif value is None:
            continue
        elif key == "duration":
            try:
                values[key] = float(value)
            except (TypeError, ValueError, OverflowError):
                fault(key, f"{value!r} is no number of seconds")
                continue
            if not (math.isfinite(values[key]) and values[key] > 0):
                fault(key, f"{value!r}: expected seconds above 0")
        elif key == "id" and isinstance(value, int) and not isinstance(value, bool):
            values[key] = str(value)
        elif not isinstance(value, str):
            fault(key, f"expected text, got {value!r}")
        else:
            values[key] = value.strip() if key.endswith("text") else value
    if part and values.get("audio"):
        values["audio"] = segment_name(values["audio"], part.get("offset"), values.get("duration"), part.get("channel"))
    for key in ("src_lang", "tgt_lang"):
        if code := values.get(key):
            try:
                values[key] = language_name(code)
            except ValueError as error:
                fault(key, str(error))
    get = values.get
    if get("id") and get("src_lang") and (get("audio") or get("src_text")) and (get("tgt_lang") or not get("tgt_text")):
        return values if all(values.values()) else {key: value for key, value in values.items() if value != ""}
    missing = [
        key
        for key in ("id", "src_lang")
        if not values.get(key) and key not in {f.key for f in scan.faults[-9:] if f.line == line}
    ]
    if not values.get("audio") and not values.get("src_text"):
        missing.append("audio (or src_text)")
    if values.get("tgt_text") and not values.get("tgt_lang"):
        missing.append("tgt_lang")
    for key in missing:
        near = difflib.get_close_matches(key.split()[0], [name for name in row if name not in KEYS], 1, 0.6)
        fault(
            key,
            f"missing; there is {near[0]!r}: rename it"
            if near
            else f"missing; the row has {', '.join(row) or 'no keys'}",
        )
    return {key: value for key, value in values.items() if value != ""}
