"""Looks at every row and every file of a manifest and says what is wrong, before a night of training does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .audio import AudioError, level, read_audio
from .manifest import Paths, Scan, Utterance, did_you_mean, scan_manifest
from .selection import LONGEST_TEXT

TOLERANCE = 0.1
"""Seconds by which a manifest's duration may differ from the file's."""


@dataclass
class Finding:
    """One kind of trouble: whether it stops training, and where it was seen (id or line: what)."""

    kind: str
    is_error: bool
    places: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What `validate` found in one manifest."""

    path: str
    utterances: int
    seconds: float
    findings: list[Finding]

    @property
    def num_errors(self) -> int:
        return sum(len(finding.places) for finding in self.findings if finding.is_error)


@dataclass(frozen=True)
class _File:
    """What was measured of an audio file, or why it could not be."""

    seconds: float = 0.0
    silent: bool = False
    clipped: bool = False
    error: str = ""


def validate(
    path: Paths,
    *,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Report:
    """Check the rows of a manifest, or of several that are one split, and read all their audio.

    Args:
        path: a `.jsonl` or `.tsv` manifest, or several.
        min_seconds, max_seconds: audio outside is reported, not refused.
        progress: called with files read and files in all.

    Raises:
        UserError: the manifest itself cannot be read.
    """
    scan = scan_manifest(path)
    files = _measure(scan.utterances, progress)
    found: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for fault in scan.faults:
        found["faulty row", True].append(f"{fault.row}: {fault}" if fault.row else str(fault))
    seconds = 0.0
    for row in scan.utterances:
        if row.audio:
            seconds += files[row.audio].seconds
        for kind, is_error, detail in _row_trouble(row, files, min_seconds, max_seconds):
            found[kind, is_error].append(f"{row.id}: {detail}" if detail else row.id)
    for kind, places in _repetitions(scan).items():
        found[kind, False] += places
    for key, count in scan.extra.items():
        found["unknown key, ignored", False].append(f"{key!r} in {count} rows{did_you_mean(key)}")
    if not scan.utterances and not scan.faults:
        found["empty manifest", True].append("no rows")
    findings = [Finding(kind, is_error, places) for (kind, is_error), places in found.items()]
    findings.sort(key=lambda finding: not finding.is_error)
    return Report(_written(path), len(scan.utterances), round(seconds, 3), findings)


def _written(manifests: Paths) -> str:
    """As an override has it."""
    return str(manifests) if isinstance(manifests, str | os.PathLike) else f"[{','.join(map(str, manifests))}]"


def shared_texts(paths: Sequence[Paths]) -> list[tuple[str, str, int, str]]:
    """Texts that two splits share, a leak where one is a test: (first, second, rows of the second, one id)."""
    known: list[tuple[str, set[tuple[str, str]], list[Utterance]]] = []
    for path in paths:
        rows = scan_manifest(path).utterances
        known.append(
            (_written(path), {(row.src_text, row.tgt_text) for row in rows if row.src_text or row.tgt_text}, rows)
        )
    shared = []
    for place, (first, texts, _) in enumerate(known):
        for second, _, rows in known[place + 1 :]:
            ids = [row.id for row in rows if (row.src_text, row.tgt_text) in texts]
            if ids:
                shared.append((first, second, len(ids), ids[0]))
    return shared


def _measure(rows: Sequence[Utterance], progress: Callable[[int, int], Any]) -> dict[str, _File]:
    paths = list(dict.fromkeys(path for row in rows for path in (row.audio, row.tgt_audio) if path))
    files = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding leaves the interpreter lock
        for done, (path, file) in enumerate(zip(paths, pool.map(_look_at, paths)), 1):
            files[path] = file
            progress(done, len(paths))
    return files


def _look_at(path: str) -> _File:
    try:
        waveform, rate = read_audio(path)
    except AudioError as error:
        return _File(error=str(error))
    loud = level(waveform)
    return _File(len(waveform) / rate, loud.silent, loud.clipped)


def _row_trouble(
    row: Utterance, files: dict[str, _File], min_seconds: float, max_seconds: float
) -> list[tuple[str, bool, str]]:
    """(kind, is an error, detail) of one row."""
    found = []
    for path, side in ((row.audio, "source"), (row.tgt_audio, "target")):
        if not path:
            continue
        file = files[path]
        if file.error:
            found.append((f"unusable {side} audio", True, file.error))
            continue
        if side == "source":
            off = file.seconds - (file.seconds if row.duration is None else row.duration)
            if abs(off) > TOLERANCE:
                detail = f"says {row.duration:.2f} s, the file has {file.seconds:.2f} s ({off:+.2f})"
                found.append(("wrong duration", True, detail))
            if file.seconds < min_seconds:
                found.append((f"shorter than {min_seconds:g} s", False, f"{file.seconds:.2f} s"))
            if file.seconds > max_seconds:
                found.append((f"longer than {max_seconds:g} s", False, f"{file.seconds:.2f} s"))
        if file.silent:
            found.append((f"silent {side} audio", False, ""))
        if file.clipped:
            found.append((f"clipped {side} audio", False, ""))
    if row.audio and row.duration is None:
        found.append(("no duration (read from the file each time)", False, ""))
    for text, side in ((row.src_text, "source"), (row.tgt_text, "target")):
        if len(text) > LONGEST_TEXT:
            kind = f"{side} text of more than {LONGEST_TEXT:,} characters; left out if it is as many tokens"
            found.append((kind, False, f"{len(text):,}"))
    if not row.tgt_text:
        found.append(("no target text", False, ""))
    if not row.src_text:
        found.append(("no source text", False, ""))
    return found


def _repetitions(scan: Scan) -> dict[str, list[str]]:
    """Audio files and pairs of texts that stand in more than one row."""
    found: dict[str, list[str]] = {}
    for kind, key in (
        ("same audio twice", lambda row: row.audio),
        ("same texts twice", lambda row: (row.src_text, row.tgt_text) if row.src_text or row.tgt_text else None),
    ):
        first: dict[Any, str] = {}
        places = []
        for row in scan.utterances:
            value = key(row)
            if value is None:
                continue
            if value in first:
                places.append(f"{row.id}: as {first[value]}")
            first.setdefault(value, row.id)
        if places:
            found[kind] = places
    return found
