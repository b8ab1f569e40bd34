"""What a run says of a corpus, for other runs to learn from: the engine of `voxzoo distil`.

Letters: B batch, S subwords, K stored words of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ...components.cards import weights_hash
from ...components.errors import UserError, few
from ...components.losses.cross_entropy import rows_of_chunk
from ...datamodules.manifest import Utterance, named, write_manifest
from ..processes.console import quiet_libraries
from ..runs.run import load_run
from ..teacher import StoredTeacher, most_probable, name_of, teacher_states, vocabulary_of
from ..text import side_of
from .translator import require_positive, search_options


def write_probabilities(
    path: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    manifest: str | list[str] | None = None,
    reads: str | None = None,
    top: int = 16,
    device: str = "auto",
    batch_size: int = 16,
) -> dict[str, Any]:
    """Store the most probable words of each target token of a corpus, as a run has them: `task.teacher.stored`.

    Args:
        path: a run folder or a checkpoint.
        out: the folder to write; it appears whole.
        split, manifest: of the run's data, or of another corpus.
        reads: `text` or `speech`; None: text, where the run reads it.
        top: K.
        device, batch_size: as of `evaluate_run`.

    Returns:
        Plain dict: `folder`, `rows`, `tokens`, `words`, `bytes`, `left_out` (reason -> ids), `card`.

    Raises:
        UserError: as `load_run`; a run without a text decoder, a folder that holds something, nothing to store.
    """
    require_positive(top=top, batch_size=batch_size)
    quiet_libraries()
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists and is not empty; give another folder")
    run = load_run(path, device=device)
    task: Any = run.task
    if getattr(task, "text_seq2seq", None) is None or task.tokenizer is None:
        raise UserError(f"{path}: a {type(task).__name__} has no text decoder, whose words could be stored")
    if reads is None:
        reads = "text" if "t2tt" in task.modes else "speech"
    wanted = _of_kind(task, reads, path)
    needs = frozenset({"target", "source" if reads == "text" else "speech"})
    data = run.datamodule(manifest, split)
    rows, left_out = _rows(data, split, wanted, needs)
    top = min(top, task.text_seq2seq.vocab_size)
    if manifest is None:
        origin = data.source() if hasattr(data, "source") else type(data).__name__
    else:
        origin = named(manifest)
    card = {
        "teacher": {"run": Path(path).name, "class": type(task).__name__, "reads": reads,
                    "weights": weights_hash(task.state_dict())},
        "vocabulary": vocabulary_of(task.tokenizer),
        "data": {"from": origin, "split": split, "rows": len(rows)},
        "words": top,
    }  # fmt: skip

    def found() -> Iterator[tuple[str, Tensor, Tensor]]:
        collate = data.collator(needs)
        for batch in _batches(rows, batch_size, "storing"):
            yield from _most_probable(task, collate(batch).to(task.device), reads, top)

    store = StoredTeacher.write(folder, card, found())
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {"status": "ok", "folder": str(folder), "rows": len(store.rows), "tokens": store.card["tokens"],
            "words": top, "bytes": size, "left_out": left_out, "card": store.card.to_dict()}  # fmt: skip


@torch.inference_mode()
def _most_probable(task: Any, batch: Any, reads: str, top: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, (n, K) words and log-probabilities of each row of a batch."""
    states = teacher_states(task, batch, reads)
    side = side_of(task.text_seq2seq, states)
    chunk = rows_of_chunk(task.text_seq2seq.vocab_size, states.device.type, share=2)
    for name, target, row in zip(batch.ids, batch.target.unpad(), states.unpad(), strict=True):
        parts = [most_probable(side, some, top) for some in row.split(chunk)]
        yield name_of(name, target), torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def write_targets(
    path: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    manifest: str | list[str] | None = None,
    task: str | None = None,
    beam: int | None = None,
    device: str = "auto",
    batch_size: int = 16,
) -> dict[str, Any]:
    """Write a manifest whose target texts are what a run writes: sequence-level distillation (Kim and Rush 2016).

    Args:
        path: a run folder or a checkpoint; also `asr+mt`.
        out: the manifest to write, `.jsonl` or `.tsv`; rows stay what they are but for `tgt_text`.
        split, manifest: of the run's data, or of another corpus.
        task: `s2tt` or `t2tt`; None: t2tt, where the run can.
        beam: as of `evaluate_run`.
        device, batch_size: likewise.

    Returns:
        Plain dict: `manifest`, `rows`, `empty` (ids of rows of which nothing was written), `left_out` (reason -> ids).

    Raises:
        UserError: as `load_run`; a task that the run cannot do, nothing to translate.
    """
    require_positive(beam=beam, batch_size=batch_size)
    quiet_libraries()
    if Path(out).suffix not in (".jsonl", ".tsv"):
        raise UserError(f"--out {out}: expected a manifest name that ends in .jsonl or .tsv")
    run = load_run(path, device=device, pack=True)
    model: Any = run.task
    mode = task or next((one for one in ("t2tt", "s2tt") if one in model.modes), None)
    if mode not in ("t2tt", "s2tt") or mode not in model.modes:
        can = ", ".join(sorted(model.modes & {"t2tt", "s2tt"})) or "neither t2tt nor s2tt"
        raise UserError(f"--task {mode}: this run can do {can}")
    data = run.datamodule(manifest, split)
    needs = frozenset({"source"} if mode == "t2tt" else {"speech"})
    rows, left_out = _rows(data, split, mode, needs)
    collate, options = model.collator(), search_options(model, beam)
    made: dict[str, str] = {}
    for batch in _batches(rows, batch_size, "translating"):
        found = model.predict(collate(batch).to(model.device), task=mode, options=options)
        made.update({row.id: prediction.text or "" for row, prediction in zip(batch, found, strict=True)})
    empty = [name for name, text in made.items() if not text.strip()]
    written = (row for row in data.rows(split) if made.get(row.id, "").strip())
    kept = [replace(row, tgt_text=made[row.id], references=()) for row in written]
    if not kept:
        raise UserError(f"{path}: wrote nothing for any of {len(rows)} rows; is it trained?")
    write_manifest(out, kept)
    return {"status": "ok", "manifest": str(out), "rows": len(kept), "empty": empty, "left_out": left_out}


def _of_kind(task: Any, reads: str, path: Any) -> str:
    """The task that rows are taken for. Raises UserError: the run does not read such."""
    mode = "t2tt" if reads == "text" else next((one for one in ("s2tt", "asr") if one in task.modes), "s2tt")
    if mode not in task.modes:
        raise UserError(f"--reads {reads}: {path} can do {', '.join(sorted(task.modes))}")
    return mode


def _rows(data: Any, split: str, mode: str, needs: frozenset[str]) -> tuple[list[Utterance], dict[str, list[str]]]:
    """What of a split can be read, in its order; reason -> ids of what cannot."""
    rows = list(data.utterances(split, tasks=(mode,), needs=needs))
    return rows, {reason: names for found in data.dropped.values() for reason, names in found.items()}


def _batches(rows: list[Utterance], size: int, doing: str) -> Iterator[list[Utterance]]:
    """Rows by length, so that little is padded; the longest first, so that memory runs out at once or not at all."""
    ordered = sorted(rows, key=lambda row: (row.duration or 0.0, len(row.src_text), len(row.tgt_text)), reverse=True)
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    console = Console(stderr=True)
    yield from track(batches, doing, console=console, transient=True, disable=not console.is_terminal)


def left_out_lines(left_out: dict[str, list[str]]) -> list[str]:
    """One line a reason."""
    return [f"left out: {len(names)} rows, {reason}: {few(names)}" for reason, names in left_out.items()]
