"""Manifests: one row per utterance, as JSON lines or as tab-separated values with a header.

Keys: `id`, `src_lang`; `audio` or `src_text` or both; `duration` (seconds), `tgt_lang`, `tgt_text`, `tgt_audio`,
`speaker`, `split`. `offset` (seconds) with `duration`, and `channel` (from 0), make `audio` a part of a longer
recording. Audio paths are relative to the folder of the manifest. Monolingual manifests may say `lang` and `text` for
`src_lang` and `src_text`. In JSON lines `tgt_text` may be a list of references. Several manifests may be one list of
rows.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
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
        src_text, tgt_text: "" where there is none; of several references the first.
        tgt_audio: path of the target speech, or None.
        speaker: label, or None.
        split: where the row belongs in a manifest that holds several splits; "" where it does not say.
        task: one of s2tt asr t2tt s2st t2st. Set by the data module, not read from manifests.
        speed: factor of speed perturbation. Set by the data module, not read from manifests.
        references: all target texts where there are several, else (). In a manifest, `tgt_text` is their list.
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
    references: tuple[str, ...] = ()


KEYS = tuple(item.name for item in fields(Utterance) if item.name not in ("task", "speed", "references"))
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
    """What is wrong with one line of a manifest; `row` is its id, "" where that cannot be said, and `file` its manifest
    where there are several."""

    line: int
    key: str
    message: str
    row: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"{self.place}, {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"

    @property
    def place(self) -> str:
        """The line, and the file where there are several."""
        return f"{self.file}, line {self.line}" if self.file else f"line {self.line}"


@dataclass
class Scan:
    """All that a manifest holds, good and bad.

    Attributes:
        utterances: the rows without fault.
        faults: the rest.
        extra: key -> rows that have it, for keys that are not ours.
        file: the manifest that is read now, where there are several.
    """

    utterances: list[Utterance] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    extra: Counter[str] = field(default_factory=Counter)
    file: str = ""


class Manifest(list[Utterance]):
    """The rows of a manifest; `extra` counts the keys that were ignored."""

    def __init__(self, rows: Iterable[Utterance] = (), *, extra: Counter[str] | None = None) -> None:
        super().__init__(rows)
        self.extra: Counter[str] = extra or Counter()


Paths = str | Path | Sequence[str | Path]
"""A manifest, or several that are one list of rows."""


def paths_of(manifests: Paths) -> list[Path]:
    """Each manifest."""
    return [Path(manifests)] if isinstance(manifests, str | Path) else [Path(path) for path in manifests]


def of_a_split(text: str) -> str | list[str]:
    """What a command line says of a split: a manifest, or several as an override writes them, `[a.jsonl,b.jsonl]`.

    Raises:
        UserError: an empty place in the list.
    """
    if not (text.startswith("[") and text.endswith("]")) or Path(text).exists():
        return text
    paths = [path.strip() for path in text[1:-1].split(",")]
    if not all(paths):
        raise UserError(f"{text}: expected manifests between commas, such as [a.jsonl,b.jsonl]")
    return paths


def named(manifests: Paths) -> str:
    """One manifest, or the first of several and how many more there are."""
    paths = paths_of(manifests)
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def read_manifest(path: Paths, *, max_faults: int = 20, most: int | None = None) -> Manifest:
    """Read a `.jsonl` or `.tsv` manifest, or several as one; ids are unique over all.

    Args:
        path: the manifest or manifests.
        max_faults: how many are listed.
        most: rows that are read, the first ones; None: all.

    Raises:
        UserError: a file is missing, there are no rows, or any row is at fault; lists up to `max_faults` of them.
    """
    scan = scan_manifest(path, most)
    path = named(path)
    if scan.faults:
        shown = "\n".join(f"  {fault}" for fault in scan.faults[:max_faults])
        more = len(scan.faults) - max_faults
        rest = f"\n  and {more} more" if more > 0 else ""
        raise UserError(f"{path}: {len(scan.faults)} fault{'s' if len(scan.faults) > 1 else ''}\n{shown}{rest}")
    if not scan.utterances:
        raise UserError(f"{path}: the manifest is empty; expected one utterance a line")
    return Manifest(scan.utterances, extra=scan.extra)


def scan_manifest(manifests: Paths, most: int | None = None) -> Scan:
    """Read a manifest, or several as one, or the first `most` rows, and keep going at faults. Raises UserError where a
    file cannot be read at all."""
    paths = paths_of(manifests)
    for path in paths:
        if path.suffix not in _READERS:
            raise UserError(f"{path}: expected a manifest that ends in {' or '.join(_READERS)}")
        if not path.is_file():
            raise UserError(f"{path}: no such manifest")
    scan = Scan()
    for number, values in islice(sound_rows(paths, scan), most):
        for key in PATHS:
            if key in values:
                values[key] = str(paths[number].parent / values[key])
        scan.utterances.append(Utterance(**values))
    return scan


def sound_rows(paths: Sequence[Path], scan: Scan) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of some manifests that are without fault, the first of each id: the number of the manifest, and values.

    Args:
        paths, scan: as of `manifest_rows`.
    """
    first: dict[str, tuple[int, int]] = {}
    for number, line, values, good in manifest_rows(paths, scan):
        name = values.get("id")
        if name in first:
            file, at = first[name]
            elsewhere = f" of {paths[file]}" if len(paths) > 1 else ""
            message = f"{name!r} was used on line {at}{elsewhere}; ids must be unique"
            scan.faults.append(Fault(line, "id", message, file=scan.file))
        elif good:
            first[values["id"]] = number, line
            yield number, values


def faulty_rows(scan: Scan) -> list[tuple[str, str]]:
    """(id, or else the line; what is wrong) of each faulty row."""
    found: dict[str, list[Fault]] = {}
    for fault in scan.faults:
        found.setdefault(fault.place, []).append(fault)
    return [(some[0].row or place, "; ".join(map(str, some))) for place, some in found.items()]


def manifest_rows(paths: Sequence[Path], scan: Scan) -> Iterator[tuple[int, int, dict[str, Any], bool]]:
    """Number of the manifest, line and values of each row, and whether it is without fault; audio paths are as they are
    written, and ids are not compared.

    Args:
        paths: `.jsonl` or `.tsv` files that exist.
        scan: gets the faults and the unknown keys.

    Raises:
        UserError: a file is no text.
    """
    for number, path in enumerate(paths):
        scan.file = str(path) if len(paths) > 1 else ""
        for line, row in _READERS[path.suffix](path):
            if isinstance(row, str):
                scan.faults.append(Fault(line, "", row, file=scan.file))
                continue
            before = len(scan.faults)
            values = _check(line, row, scan)
            yield number, line, values, len(scan.faults) == before


def written_rows(paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows of manifests as they are written, with all their keys, and the manifest that each is of; audio is an
    absolute path. For manifests that were read without a fault."""
    for path in paths:
        folder = os.path.abspath(path.parent)
        for _, row in _READERS[path.suffix](path):
            assert isinstance(row, dict)
            yield (
                path,
                {
                    key: os.path.join(folder, value) if key in PATHS and isinstance(value, str) and value else value
                    for key, value in row.items()
                },
            )


def path_from(folder: str | Path, name: str) -> str:
    """An absolute path as a manifest in `folder` says it: relative where it lies beside or below it."""
    inside = os.path.join(os.path.abspath(folder), "")
    path = os.path.abspath(name)
    return path.removeprefix(inside)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `.jsonl` or `.tsv`; audio paths become relative to the manifest where they lie beside or below it."""
    path = Path(path)
    rows = []
    for utterance in utterances:
        row = {key: value for key in KEYS if (value := getattr(utterance, key)) not in (None, "")}
        if utterance.references:
            row["tgt_text"] = list(utterance.references)
        for key in PATHS:
            if key in row and Path(row[key]).is_relative_to(path.parent):
                row[key] = Path(row[key]).relative_to(path.parent).as_posix()
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as out:
        if path.suffix == ".tsv":
            several = next((row["id"] for row in rows if isinstance(row.get("tgt_text"), list)), None)
            if several is not None:
                raise UserError(f"{path}: {several} has several references, which .tsv cannot hold; write .jsonl")
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


def _references(texts: list[Any], values: dict[str, Any], fault: Callable[[str, str], None]) -> None:
    """The target texts of a row that has a list of them; empty ones hold the place of none, as in sacreBLEU."""
    wrong = next((text for text in texts if text is not None and not isinstance(text, str)), None)
    if wrong is not None:
        fault("tgt_text", f"expected text or a list of texts, got {wrong!r} in the list")
        return
    found = tuple(stripped for text in texts if (stripped := (text or "").strip()))
    values["tgt_text"] = found[0] if found else ""
    if len(found) > 1:
        values["references"] = found


def _check(line: int, row: dict[str, Any], scan: Scan) -> dict[str, Any]:
    """The row's values in their types; faults and unknown keys go into `scan`."""

    name = row.get("id")
    known = str(name) if isinstance(name, str | int) else ""

    def fault(key: str, message: str) -> None:
        scan.faults.append(Fault(line, key, message, known, scan.file))

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
        elif key == "tgt_text" and isinstance(value, list):
            _references(value, values, fault)
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
        if not values.get(key) and key not in {f.key for f in scan.faults[-9:] if (f.line, f.file) == (line, scan.file)}
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
