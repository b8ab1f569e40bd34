"""Units to audio files through the vocoder of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...components.errors import UserError, printable
from ...components.layers.runs import reduce_runs
from ...components.lines import read_json
from ...components.types import Padded
from ...datamodules.selection import LONGEST_UNITS
from ..distributed.devices import pick_device
from ..runs.run import load_run
from ..scoring.speech import write_wav
from ..units import Progress, card_of, card_path, read_units
from .names import FileNames


@torch.inference_mode()
def resynthesise(
    run: Path | str,
    units: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    predict_durations: bool = False,
    speaker: int | None = None,
    lang: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write one wav for each row of units.

    Args:
        run: a run folder or checkpoint with a vocoder.
        units: JSON lines of units, one per frame.
        out: folder of the wav files.
        limit: only the first so many rows.
        predict_durations: merge runs, and let the vocoder say how long each unit lasts.
        speaker, lang: indices, for a vocoder of several.
        batch_size: rows at a time.
        device: `cpu`, `cuda`, `cuda:1` ..., or `auto`.
        progress: called with the rows done and their number.

    Raises:
        UserError: no vocoder, units that it does not know, a speaker or language that it needs or has not.
    """
    place = pick_device(device)
    task = load_run(run, device=device).task
    vocoder = getattr(task, "vocoder", None)
    if vocoder is None:
        raise UserError(f"{run}: this run has no vocoder")
    _same_card(Path(units), getattr(task, "unit_extractor", None), run)
    rows = list(islice(read_units(units), limit))
    if not rows:
        raise UserError(f"{units}: no units in it")
    for name, ids in rows:
        if ids and max(ids) >= vocoder.num_units:
            raise UserError(f"{units}: {name} has unit {max(ids)}, but the vocoder knows 0 to {vocoder.num_units - 1}")
    empty = [name for name, ids in rows if not ids]
    too_long = [name for name, ids in rows if len(ids) > LONGEST_UNITS]
    for name in too_long:
        print(printable(f"left out {name}: more than {LONGEST_UNITS:,} units"), file=sys.stderr)
    rows = [(name, ids) for name, ids in rows if 0 < len(ids) <= LONGEST_UNITS]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files, seconds, names = [], 0.0, FileNames()
    for chunk in _chunks(rows, batch_size):
        batch = Padded.from_list([torch.tensor(row) for _, row in chunk]).to(place)
        durations = None if predict_durations else batch.with_data(torch.ones_like(batch.data)).zeroed()
        if predict_durations:
            batch, _ = reduce_runs(batch)
        conditions = [None if v is None else torch.full((len(chunk),), v, device=place) for v in (lang, speaker)]
        try:
            audio = vocoder(batch, *conditions, durations=durations)
        except (ValueError, IndexError) as error:
            raise UserError(f"{run}: {error} (see --speaker and --lang)") from error
        for (name, _), samples in zip(chunk, audio.unpad(), strict=True):
            path = folder / f"{names.free(name)}.wav"
            write_wav(path, samples, vocoder.sample_rate)
            files.append(str(path))
            seconds += len(samples) / vocoder.sample_rate
        if progress is not None:
            progress(len(files), len(rows))
    return {
        "folder": str(folder),
        "utterances": len(files),
        "seconds": round(seconds, 2),
        "empty": empty,
        "too_long": too_long,
        "files": files,
    }


def _chunks(rows: list[tuple[str, list[int]]], most: int) -> Iterator[list[tuple[str, list[int]]]]:
    """Rows in their order, up to `most` at a time and no more units than one row may have, padding included."""
    chunk: list[tuple[str, list[int]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row[1]))
        if chunk and (len(chunk) == most or longest * (len(chunk) + 1) > LONGEST_UNITS):
            yield chunk
            chunk, longest = [], len(row[1])
        chunk.append(row)
    if chunk:
        yield chunk


def _same_card(units: Path, extractor: Any, run: Path | str) -> None:
    beside = card_path(units)
    if extractor is None or not beside.exists():
        return
    theirs, ours = read_json(beside), card_of(extractor)
    if theirs != ours:
        differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        raise UserError(
            f"{units}: these units are not those that the vocoder of {run} was trained on; their cards differ in "
            f"{', '.join(differing)}. Extract them with that run: `voxzoo units extract {run} MANIFEST --out {units}`"
        )
