"""What a codec loses at each bandwidth: the rate-distortion table.

Letters: N samples, T frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...components.errors import UserError
from ...components.losses.reconstruction import MelLoss
from ...components.types import Padded
from ...datamodules.audio import SAMPLE_RATE, AudioFiles
from ...datamodules.manifest import Utterance
from ..distributed.devices import pick_device
from ..runs.run import load_run
from ..scoring.text import error_rate_for
from ..units import Column, Progress
from .evaluation import open_recogniser


@torch.inference_mode()
def rates(
    run: Path | str,
    rows: Iterable[Utterance],
    *,
    codebooks: Sequence[int] = (),
    column: Column = "tgt_audio",
    limit: int | None = None,
    recogniser: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode and decode speech with some numbers of codebooks.

    Args:
        run: a run folder or checkpoint with a codec.
        rows: utterances of a manifest; those without speech in `column` are left out.
        codebooks: numbers of them; empty: 1, 2, 4 ... up to all.
        column: which speech.
        limit: only the first so many.
        recogniser: its name; it hears the recordings and what became of them, for a word error rate against the texts.
        device: `cpu`, `cuda`, `cuda:1` ..., or `auto`.
        progress: called with the rows done and their number.

    Returns:
        `rows`: for each number of codebooks `codebooks`, `kbps`, `mel` (mean distance of log-mels of five windows, at
        16 kHz) and, with a recogniser, `wer`; `use`: of each codebook, the share of its entries that occur;
        `utterances`, `seconds`, `left_out`, `notes`, and with a recogniser `wer_of_recordings` and its `recogniser`.

    Raises:
        UserError: no codec, more codebooks than it has, or no speech.
    """
    place = pick_device(device)
    codec: Any = getattr(load_run(run, device=device).task, "codec", None)
    if codec is None:
        raise UserError(f"{run}: this run has no codec; train one with task=train_codec")
    counts = sorted(set(codebooks)) or [*_doubled(codec.num_codebooks)]
    if counts[0] < 1 or counts[-1] > codec.num_codebooks:
        raise UserError(f"--codebooks {' '.join(map(str, counts))}: the codec of {run} has 1 to {codec.num_codebooks}")
    every = list(rows)
    chosen = [row for row in every if getattr(row, column)]
    left_out, chosen = len(every) - len(chosen), chosen[:limit]
    if not chosen:
        raise UserError(f"no row has speech in {column}")
    notes: list[str] = []
    listener = None if recogniser is None else open_recogniser(recogniser, notes)
    texts = [(row.tgt_text if column == "tgt_audio" else row.src_text) or "" for row in chosen]
    langs = [(row.tgt_lang if column == "tgt_audio" else row.src_lang) for row in chosen]
    distance = MelLoss(SAMPLE_RATE).to(place)
    files, sums = AudioFiles(), dict.fromkeys(counts, 0.0)
    seen = torch.zeros(counts[-1], codec.codebook_size, dtype=torch.bool, device=place)
    heard: dict[int, list[str]] = {count: [] for count in (0, *counts)}
    seconds = 0.0
    for number, (row, lang) in enumerate(zip(chosen, langs, strict=True), 1):
        samples = files.load(getattr(row, column), SAMPLE_RATE).to(place)
        speech = Padded(samples[None], torch.tensor([len(samples)]))
        seconds += len(samples) / SAMPLE_RATE
        codes = codec.encode(speech, counts[-1], SAMPLE_RATE)
        for book in range(counts[-1]):
            seen[book, codes.data[0, :, book]] = True
        versions = {0: samples}
        for count in counts:
            again = _decoded(codec, codes, count, speech)
            made = Padded(again[None], speech.lengths)
            sums[count] += float(distance(made, speech, torch.ones(1, device=place)).total)
            versions[count] = again
        if listener is not None:
            for count, audio in versions.items():
                heard[count] += listener.transcribe([audio.cpu()], lang)
        if progress is not None:
            progress(number, len(chosen))
    found = [
        {
            "codebooks": count,
            "kbps": round(count * codec.frame_rate * _bits(codec.codebook_size) / 1000, 3),
            "mel": round(sums[count] / len(chosen), 4),
            **({} if listener is None else {"wer": _wer(heard[count], texts, langs[0])}),
        }
        for count in counts
    ]
    result = {
        "rows": found,
        "use": [round(float(share), 3) for share in seen.float().mean(1)],
        "utterances": len(chosen),
        "seconds": round(seconds, 2),
        "left_out": left_out,
        "notes": notes,
    }
    if listener is not None:
        result |= {"wer_of_recordings": _wer(heard[0], texts, langs[0]), "recogniser": listener.signature}
    return result


def _decoded(codec: Any, codes: Padded, count: int, speech: Padded) -> Tensor:
    """(N,) as long as the speech, mono."""
    made = codec.decode(codes.with_data(codes.data[..., :count]), SAMPLE_RATE, codec.loudness(speech, SAMPLE_RATE))
    row = made.data[0, : int(speech.lengths[0])]
    return (row if row.dim() == 1 else row.mean(1)).clamp(-1, 1)


def _wer(hypotheses: list[str], texts: list[str], lang: str) -> float:
    metric = error_rate_for(lang)
    return round(float(metric.score(metric.statistics(hypotheses, texts).sum(0))), 2)


def _bits(size: int) -> float:
    return float(torch.tensor(float(size)).log2())


def _doubled(most: int) -> Iterable[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most
