"""Discrete units of a corpus: fitting an extractor, writing units, keeping an extractor as a folder.

Letters: B batch, N samples, U units.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..components.cards import Card
from ..components.errors import UserError
from ..components.joint_vocabulary import JointVocabulary
from ..components.lines import open_text, parse_json, raw_lines, read_json
from ..components.roles import Codec, UnitExtractor
from ..components.types import Padded
from ..datamodules.audio import SAMPLE_RATE, AudioFiles
from ..datamodules.codes import line_of, read_codes
from ..datamodules.manifest import Utterance
from .checkpoints.files import write_atomically
from .recordings import recording_of, require_same_recordings

Column = Literal["audio", "tgt_audio"]
Progress = Callable[[float, float], None]

Sides = Literal["tgt_audio", "audio", "both"]

BATCH_SECONDS = 20.0
"""Larger batches cost more a second on a CPU: their spectra no longer fit its caches."""


def sides(kind: str, column: Sides) -> dict[str, Column]:
    """Name of the file of `units` or `codes` -> the speech it is of. `both` has two, the target's first."""
    if column != "both":
        return {kind: column}
    return {kind: "tgt_audio", f"source_{kind}": "audio"}


def both_sides(rows: Iterable[Utterance]) -> Iterator[Utterance]:
    """Each recording of some rows once, as the target speech of a row."""
    seen: set[Any] = set()
    for row in rows:
        for audio in (row.tgt_audio, row.audio):
            if audio and audio not in seen:
                seen.add(audio)
                yield replace(row, tgt_audio=audio)


def fit_units(
    extractor: UnitExtractor,
    rows: Iterable[Utterance],
    column: Column = "tgt_audio",
    max_hours: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    audio: AudioFiles = AudioFiles(),  # noqa: B008 - has no state
) -> dict[str, Any]:
    """Fit `extractor` on a random part of the speech of `rows`.

    Args:
        extractor: what is fitted, in place.
        rows: utterances of a manifest; those without speech in `column` are left out.
        column: which speech.
        max_hours: stop after this much; rows are drawn in random order.
        seed: of that order, of the sample of frames and of the clustering.
        progress: called with hours read and `max_hours`.
        audio: reads what rows name as their audio.

    Returns:
        The statistics of `UnitExtractor.fit`, and `utterances`, `hours`, `card`.

    Raises:
        UserError: no row has such speech, or it is too short for that many units.
    """
    if max_hours <= 0:
        raise UserError(f"max_hours={max_hours}: give a positive number of hours to fit on")
    chosen = [row for row in rows if _source(row, column)]
    if not chosen:
        raise UserError(f"no row has a value in column {column!r}: there is no speech to fit units on")
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
    heard = {"utterances": 0, "samples": 0}
    limit = max_hours * 3600 * extractor_rate(extractor)

    def batches() -> Iterator[Padded]:
        rate = extractor_rate(extractor)
        for _, batch in _batches((chosen[i] for i in order), column, rate, BATCH_SECONDS, audio):
            yield batch.to(extractor.device)
            heard["utterances"] += len(batch)
            heard["samples"] += int(batch.lengths.sum())
            if progress is not None:
                progress(min(heard["samples"], limit) / limit * max_hours, max_hours)
            if heard["samples"] >= limit:
                return

    try:
        statistics = extractor.fit(batches(), seed=seed)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    hours = heard["samples"] / extractor_rate(extractor) / 3600
    return {**statistics, "utterances": heard["utterances"], "hours": round(hours, 4), "card": card_of(extractor)}


def extract_units(
    extractor: UnitExtractor,
    rows: Iterable[Utterance],
    column: Column = "tgt_audio",
    path: Path | str = "units.jsonl",
    progress: Progress | None = None,
    batch_seconds: float = BATCH_SECONDS,
    audio: AudioFiles = AudioFiles(),  # noqa: B008 - has no state
    other: Path | None = None,
) -> dict[str, Any]:
    """Write one JSON line `{"id": ..., "recording": ..., "units": [...]}` per row with speech, one unit per frame.

    The file appears under its name when it is complete. A call that was killed goes on where it stopped, and rows that
    were added to the corpus are added to the file; units of another extractor are written anew. The card of the
    extractor goes beside it (`units.card.json`).

    Args:
        extractor: a fitted one.
        rows: utterances of a manifest.
        column: which speech.
        path: the file to write.
        progress: called with rows done and rows in all.
        batch_seconds: audio in a batch, padding included.
        audio: reads what rows name as their audio.
        other: the file of the other column of the same rows: units of a recording that it holds are taken from there.

    Returns:
        `utterances`, `units`, `new` (utterances extracted by this call), `without_speech`, `path`.

    Raises:
        UserError: an id that stands for two recordings, in the rows or in the file that is there; an extractor that is
            not fitted, a disk that is full.
    """

    def lines(batch: Padded) -> Iterator[tuple[_Line, int]]:
        for ids in _units(extractor, batch):
            yield partial(_unit_line, ids), len(ids)

    kind = _Kind("units", extractor_rate(extractor), card_of(extractor), lines, _unit_sizes)
    return _extract(kind, rows, column, Path(path), progress, batch_seconds, audio, other)


def extract_codes(
    codec: Codec,
    rows: Iterable[Utterance],
    column: Column = "tgt_audio",
    path: Path | str = "codes.jsonl",
    num_codebooks: int | None = None,
    progress: Progress | None = None,
    batch_seconds: float = BATCH_SECONDS,
    audio: AudioFiles = AudioFiles(),  # noqa: B008 - has no state
    other: Path | None = None,
) -> dict[str, Any]:
    """Write one line per row with speech: its codec frames (`datamodules.codes`). As `extract_units`, with the card of
    the codec beside the file.

    Args:
        codec: a trained one.
        num_codebooks: streams; None: all.
        rows, column, path, progress, batch_seconds, audio, other: as for `extract_units`.

    Returns:
        `utterances`, `frames`, `new`, `without_speech`, `path`.

    Raises:
        UserError: as `extract_units`, or more codebooks than the codec has.
    """
    streams = codec.num_codebooks if num_codebooks is None else num_codebooks
    if not 1 <= streams <= codec.num_codebooks:
        raise UserError(f"{streams} codebooks: the codec has {codec.num_codebooks}; expected 1 to that")

    def lines(batch: Padded) -> Iterator[tuple[_Line, int]]:
        with torch.inference_mode():
            found = codec.encode(batch.to(codec.device), streams, SAMPLE_RATE)
        for codes in Padded(found.data.cpu(), found.lengths.cpu()).unpad():
            yield partial(line_of, codes=codes.numpy()), len(codes)

    # The first streams of two files of one codec are the same: only the codec counts.
    kind = _Kind("frames", SAMPLE_RATE, codec.card().to_dict(), lines, partial(_code_sizes, streams))
    return _extract(kind, rows, column, Path(path), progress, batch_seconds, audio, other)


_Line = Callable[..., str]
"""(id, recording=what it was made of) -> a line of the file."""


@dataclass(frozen=True)
class _Kind:
    """What is extracted.

    Attributes:
        count: what is counted: `units`, `frames`.
        rate: Hz of the samples that it is made of.
        card: of what makes it.
        lines: (B, N) samples -> of each row what makes its line, and its size.
        sizes: id -> size, of a file that is there.
    """

    count: str
    rate: int
    card: dict[str, Any]
    lines: Callable[[Padded], Iterator[tuple[_Line, int]]]
    sizes: Callable[[Path], dict[str, int]]


def _copied(
    other: Path, rows: Iterable[Utterance], todo: Iterable[Utterance], column: Column
) -> dict[str, tuple[str, str]]:
    """Id -> line, and the id that has it, of those rows whose recording is the other side of a row."""
    across: Column = "audio" if column == "tgt_audio" else "tgt_audio"
    ids = {_source(row, across): row.id for row in rows if _source(row, across)}
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for row in todo:
        if _source(row, column) in ids:
            wanted[ids[_source(row, column)]].append(row.id)
    found: dict[str, tuple[str, str]] = {}
    with open_text(other) as file:
        for line in raw_lines(file, other):
            entry = parse_json(line)
            for name in wanted.get(entry["id"], ()):
                found[name] = json.dumps({**entry, "id": name}, separators=(",", ":")) + "\n", entry["id"]
    return found


def _unit_line(ids: list[int], name: str, recording: str) -> str:
    return json.dumps({"id": name, "recording": recording, "units": ids}, separators=(",", ":")) + "\n"


def _unit_sizes(path: Path) -> dict[str, int]:
    return {name: len(units) for name, units in read_units(path)}


def _code_sizes(streams: int, path: Path) -> dict[str, int]:
    """Empty where the file has another number of streams: then it is written anew."""
    found = read_codes(path)
    return {name: len(codes) for name, codes in found.items()} if found.streams == streams else {}


def _extract(
    kind: _Kind,
    rows: Iterable[Utterance],
    column: Column,
    path: Path,
    progress: Progress | None,
    batch_seconds: float,
    audio: AudioFiles,
    other: Path | None,
) -> dict[str, Any]:
    rows = list(rows)
    chosen: dict[str, Utterance] = {}
    silent = 0
    for row in rows:
        if not _source(row, column):
            silent += 1
            continue
        # The same row may come once per task that it is asked for.
        if _source(chosen.setdefault(row.id, row), column) != _source(row, column):
            raise UserError(
                f"{path}: two recordings have the id {row.id!r}: {kind.count} are found by id, so ids must be unique"
            )
    partly = path.with_name(f".{path.name}.partial")
    names = {row.id: _source(row, column) for row in chosen.values()}
    require_same = partial(require_same_recordings, audio=names, files=audio, sample_rate=kind.rate)
    done = _resume(path, partly, kind, set(chosen), require_same)
    total = sum(done.values())
    todo = [row for row in chosen.values() if row.id not in done]
    count, wanted = len(done), len(chosen)
    result = {"utterances": len(chosen), "new": len(todo), "without_speech": silent, "path": str(path)}
    if not todo and path.exists():
        return {**result, kind.count: total}
    try:
        with open(partly, "a", encoding="utf-8") as file:
            if other is not None:
                there, sizes = _copied(other, rows, todo, column), kind.sizes(other)
                for line, source in there.values():
                    file.write(line)
                    total += sizes[source]
                todo = [row for row in todo if row.id not in there]
                count += len(there)
            for batch_rows, batch in _batches(todo, column, kind.rate, batch_seconds, audio):
                for row, samples, (line, size) in zip(batch_rows, batch.unpad(), kind.lines(batch), strict=True):
                    file.write(line(row.id, recording=str(recording_of(names[row.id], samples))))
                    total += size
                count += len(batch_rows)
                if progress is not None:
                    progress(count, wanted)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partly, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; free some space and run the same command again") from error
    return {**result, kind.count: total}


def _units(extractor: UnitExtractor, batch: Padded) -> list[list[int]]:
    try:
        with torch.inference_mode():
            found = extractor(batch.to(extractor.device))
    except RuntimeError as error:
        if "no centroids yet" in str(error):
            raise UserError(str(error)) from error
        raise
    return [row.tolist() for row in Padded(found.data.cpu(), found.lengths.cpu()).unpad()]


def _resume(
    path: Path, partly: Path, kind: _Kind, chosen: set[str], require_same: Callable[[Path], None]
) -> dict[str, int]:
    """Sizes per id that earlier calls with this card wrote; what they left becomes `partly`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = card_path(path)
    if not beside.exists() or read_json(beside, advice="; delete it to extract anew") != kind.card:
        partly.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        write_atomically(beside, lambda file: file.write((json.dumps(kind.card, indent=1) + "\n").encode()))
        return {}
    if path.exists():
        known = kind.sizes(path)
        if not known:
            return known
        require_same(path)
        if set(known) >= chosen:
            return known
        os.replace(path, partly)  # rows were added: go on from it
        return known
    if not partly.exists():
        return {}
    with open(partly, "rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # a line that a kill cut off
    known = kind.sizes(partly)
    if known:
        require_same(partly)
    else:
        partly.unlink()
    return known


def read_units(path: Path | str) -> Iterator[tuple[str, list[int]]]:
    """Yield (id, units) of a units file.

    Raises:
        UserError: a line that is not `{"id": text, "units": [whole numbers]}`, with its number.
    """
    try:
        with open_text(Path(path)) as file:
            for number, line in enumerate(raw_lines(file, path), 1):
                if not line.strip():
                    continue
                try:
                    entry = parse_json(line)
                    name, units = entry["id"], entry["units"]
                    if not (isinstance(name, str) and isinstance(units, list)) or not all(
                        type(unit) is int and unit >= 0 for unit in units
                    ):
                        raise TypeError
                except (ValueError, TypeError, KeyError):
                    expected = '{"id": "...", "units": [3, 3, 17]}'
                    found = line.strip()[:80].decode(errors="replace")
                    raise UserError(f"{path}, line {number}: expected {expected}, found {found!r}") from None
                yield name, units
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def card_path(units: Path) -> Path:
    """Where the card of a units file lies."""
    return units.with_name(units.name.removesuffix(".jsonl") + ".card.json")


def card_of(extractor: UnitExtractor) -> dict[str, Any]:
    """The card of an extractor; parts of your own without a `card` method get one from their role."""
    make = getattr(extractor, "card", None)
    if callable(make):
        card = make()
        assert isinstance(card, dict)
        return card
    return {"features": type(extractor).__name__, "num_units": extractor.num_units, "frame_rate": extractor.frame_rate}


def unit_card(extractor: UnitExtractor) -> Card:
    """`card_of`, as a `Card`."""
    return Card("units", card_of(extractor))


def card_beside(path: Path) -> Card | None:
    """The card beside a file of units or codes; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    beside = card_path(path)
    if not beside.exists():
        return None
    try:
        content = json.loads(beside.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{beside}: no card ({error}); write the file beside it anew") from None
    return Card.from_dict(content if "kind" in content else {"kind": "units", **content}, str(beside))


def card_of_vocabulary(
    vocabulary: JointVocabulary,
    cards: Mapping[str, Card | None],
    extractor: UnitExtractor | None,
    codec: Codec | None,
) -> Card:
    """The card of a joint vocabulary, with those of what made its units and codes.

    Args:
        cards: field of the data -> card beside its file; None where there is none.
        extractor, codec: that a task holds; an extractor that is not fitted says nothing.

    Raises:
        UserError: cards that differ.
    """
    given: list[tuple[str, str, Card | None]] = [
        ("codec" if name.endswith("codes") else "units", f"data.{name}", card) for name, card in cards.items()
    ]
    if extractor is not None and bool(getattr(extractor, "fitted", True)):
        given.append(("units", "unit_extractor", unit_card(extractor)))
    if codec is not None:
        given.append(("codec", "codec", codec.card()))
    found: dict[str, tuple[str, Card]] = {}
    for kind, where, card in given:
        if card is None:
            continue
        first, expected = found.setdefault(kind, (where, card))
        card.require(expected, f"{where}, other {kind} than those of {first}", "prepare both with the same one")
    return vocabulary.card(*(found[kind][1] if kind in found else None for kind in ("units", "codec")))


def extractor_rate(extractor: UnitExtractor) -> int:
    """Hz of the samples an extractor reads."""
    return int(getattr(extractor, "sample_rate", 16000))


# Speech


def _source(row: Utterance, column: Column) -> Any:
    return getattr(row, column)


def _batches(
    rows: Iterable[Utterance], column: Column, sample_rate: int, seconds: float, audio: AudioFiles
) -> Iterator[tuple[list[Utterance], Padded]]:
    """Rows with their speech, as many at a time as fit into `seconds`, padding included."""
    kept: list[tuple[Utterance, Tensor]] = []
    longest = 0
    for row in rows:
        samples = audio.load(_source(row, column), sample_rate)
        if kept and max(longest, len(samples)) * (len(kept) + 1) > seconds * sample_rate:
            yield [r for r, _ in kept], Padded.from_list([s for _, s in kept])
            kept, longest = [], 0
        kept.append((row, samples))
        longest = max(longest, len(samples))
    if kept:
        yield [r for r, _ in kept], Padded.from_list([s for _, s in kept])


# An extractor as a folder
