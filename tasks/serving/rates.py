"""What a codec loses at each bandwidth: the rate-distortion table.

Letters: N samples, T frames, K codebooks, V entries of one, D of an embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...components.errors import UserError
from ...components.layers.residual_quantizer import perplexity
from ...components.losses.reconstruction import MelLoss
from ...components.types import Padded
from ...datamodules.audio import SAMPLE_RATE, AudioFiles
from ...datamodules.manifest import Utterance
from ..distributed.devices import pick_device
from ..runs.run import load_run
from ..scoring.normalise import normalise
from ..scoring.normalise import signature as normaliser_signature
from ..scoring.text import error_rate_for
from ..scoring.voices import SpeakerEncoder, similarity
from ..units import Column, Progress
from .evaluation import open_recogniser

_TOGETHER = 16  # utterances that are heard at once


@torch.inference_mode()
def rates(
    run: Path | str,
    rows: Iterable[Utterance] | None = None,
    *,
    split: str = "test",
    codebooks: Sequence[int] = (),
    column: Column = "tgt_audio",
    limit: int | None = None,
    recogniser: str | None = None,
    quality: str = "all",
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode and decode speech with some numbers of codebooks.

    Args:
        run: a run folder or checkpoint with a codec.
        rows: utterances of a manifest, None: those of `split` in the run's data. Those without speech in `column` are
            left out.
        codebooks: numbers of them; empty: 1, 2, 4 ... up to all.
        column: which speech.
        limit: only the first so many.
        recogniser: its name; it hears the recordings and what became of them, for a word error rate against the texts.
        quality: `all`: also whose voice it is, where the weights for that are installed; `none`.
        device: `cpu`, `cuda`, `cuda:1` ..., or `auto`.
        progress: called with the rows done and their number.

    Returns:
        `rows`: for each number of codebooks `codebooks`, `kbps`, `mel` (mean distance of log-mels of five windows, at
        16 kHz), with a recogniser `wer` (both sides normalised; the mean over languages) and `wer_by_language`, and
        `speaker_similarity` to the recording; `use` and `perplexity`: of each codebook, the share of its entries that
        occur and the perplexity of how often; `utterances`, `seconds`, `left_out`, `notes`; with a recogniser
        `wer_of_recordings` (and `_by_language`) and its `recogniser`; `speaker_similarity_control`, of recordings to
        those of the next other voice.

    Raises:
        UserError: no codec, more codebooks than it has, or no speech.
    """
    place = pick_device(device)
    loaded = load_run(run, device=device)
    codec: Any = getattr(loaded.task, "codec", None)
    if codec is None:
        raise UserError(f"{run}: this run has no codec; train one with task=train_codec")
    counts = sorted(set(codebooks)) or [*_doubled(codec.num_codebooks)]
    if counts[0] < 1 or counts[-1] > codec.num_codebooks:
        raise UserError(f"--codebooks {' '.join(map(str, counts))}: the codec of {run} has 1 to {codec.num_codebooks}")
    every = list(loaded.datamodule(None, split).rows(split) if rows is None else rows)
    chosen = [row for row in every if getattr(row, column)]
    left_out, chosen = len(every) - len(chosen), chosen[:limit]
    if not chosen:
        raise UserError(f"no row has speech in {column}")
    notes: list[str] = []
    ears = _Ears(recogniser, column, notes)
    voices = _Voices(notes) if quality == "all" else None
    distance = MelLoss(SAMPLE_RATE).to(place)
    files, sums = AudioFiles(), dict.fromkeys(counts, 0.0)
    used = torch.zeros(counts[-1], codec.codebook_size, device=place)
    seconds = 0.0
    for number, row in enumerate(chosen, 1):
        samples = files.load(getattr(row, column), SAMPLE_RATE).to(place)
        speech = Padded(samples[None], torch.tensor([len(samples)]))
        seconds += len(samples) / SAMPLE_RATE
        codes = codec.encode(speech, counts[-1], SAMPLE_RATE)
        for book, one in enumerate(codes.data[0].T):
            used[book] += torch.bincount(one, minlength=codec.codebook_size)
        versions = {0: samples}
        for count in counts:
            again = _decoded(codec, codes, count, speech)
            made = Padded(again[None], speech.lengths)
            sums[count] += float(distance(made, speech, torch.ones(1, device=place)).total)
            versions[count] = again
        ears.add(row, versions)
        if voices is not None:
            voices.add(row, versions)
        if progress is not None:
            progress(number, len(chosen))
    errors = ears.rates()
    near = {} if voices is None else voices.similarities()
    table = [
        {
            "codebooks": count,
            "kbps": round(count * codec.frame_rate * _bits(codec.codebook_size) / 1000, 3),
            "mel": round(sums[count] / len(chosen), 4),
            **(_mean_and_each("wer", errors[count]) if count in errors else {}),
            **({"speaker_similarity": near[count]} if count in near else {}),
        }
        for count in counts
    ]
    result = {
        "rows": table,
        "use": [round(float(share), 3) for share in (used > 0).float().mean(1)],
        "perplexity": [round(float(one), 1) for one in perplexity(used)],
        "codebook_size": codec.codebook_size,
        "frame_rate": codec.frame_rate,
        "utterances": len(chosen),
        "seconds": round(seconds, 2),
        "left_out": left_out,
        "notes": notes,
    }
    if errors:
        result |= {**_mean_and_each("wer_of_recordings", errors[0]), "recogniser": ears.signature}
    if 0 in near:
        result["speaker_similarity_control"] = near[0]
    return result


class _Ears:
    """Word error rates of recordings (0) and of what became of them, by the number of codebooks."""

    def __init__(self, recogniser: str | None, column: Column, notes: list[str]) -> None:
        self.listener = None if recogniser is None else open_recogniser(recogniser, notes)
        self.column = column
        self._waiting: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
        self._heard: dict[tuple[int, str], list[str]] = defaultdict(list)
        self._texts: dict[str, list[str]] = defaultdict(list)

    @property
    def signature(self) -> str:
        assert self.listener is not None
        rules = "+".join(sorted({normaliser_signature(lang) for lang in self._texts}))
        return f"{self.listener.signature}|{rules}"

    def add(self, row: Utterance, versions: dict[int, Tensor]) -> None:
        if self.listener is None:
            return
        target = self.column == "tgt_audio"
        lang = row.tgt_lang if target else row.src_lang
        text = (row.tgt_text if target else row.src_text) or ""
        if not text.strip():
            return
        self._texts[lang].append(normalise(text, lang))
        for count, audio in versions.items():
            waiting = self._waiting[count, lang]
            waiting.append(audio.cpu())
            if len(waiting) == _TOGETHER:
                self._hear(count, lang)

    def _hear(self, count: int, lang: str) -> None:
        assert self.listener is not None
        said = self.listener.transcribe(self._waiting.pop((count, lang)), lang)
        self._heard[count, lang] += [normalise(text, lang) for text in said]

    def rates(self) -> dict[int, dict[str, float]]:
        """Of each language."""
        for count, lang in list(self._waiting):
            self._hear(count, lang)
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for (count, lang), said in sorted(self._heard.items()):
            metric = error_rate_for(lang)
            found[count][lang] = round(float(metric.score(metric.statistics(said, self._texts[lang]).sum(0))), 2)
        return dict(found)


class _Voices:
    """How near the voice of what became of recordings is to theirs, by the number of codebooks; 0: of recordings to
    the next one of another speaker."""

    def __init__(self, notes: list[str]) -> None:
        self._found: dict[int, list[float]] = defaultdict(list)
        self._recordings: list[tuple[str | None, Tensor | None]] = []
        self._encoder: SpeakerEncoder | None = None
        try:
            self._encoder = SpeakerEncoder()
        except UserError as error:
            notes.append(f"not measured: {error}")

    def add(self, row: Utterance, versions: dict[int, Tensor]) -> None:
        if self._encoder is None:
            return
        recording, *others = self._encoder.embed(list(versions.values()))
        self._recordings.append((row.speaker, recording))
        for count, one in zip([count for count in versions if count], others, strict=True):
            self._found[count].append(similarity(one, recording))

    def similarities(self) -> dict[int, float]:
        size = len(self._recordings)
        for place, (speaker, one) in enumerate(self._recordings):
            after = (self._recordings[(place + step) % size] for step in range(1, size))
            other = next((other for name, other in after if name and speaker and name != speaker), None)
            if other is not None:
                self._found[0].append(similarity(one, other))
        return {count: round(fmean(each), 4) for count, each in self._found.items()}


def _mean_and_each(name: str, of_languages: Mapping[str, float]) -> dict[str, Any]:
    """A mean over languages, and where there are several the value of each."""
    mean = {name: round(fmean(of_languages.values()), 2)}
    return {**mean, f"{name}_by_language": dict(of_languages)} if len(of_languages) > 1 else mean


def _decoded(codec: Any, codes: Padded, count: int, speech: Padded) -> Tensor:
    """(N,) as long as the speech, mono."""
    made = codec.decode(codes.with_data(codes.data[..., :count]), SAMPLE_RATE, codec.loudness(speech, SAMPLE_RATE))
    row = made.data[0, : int(speech.lengths[0])]
    return (row if row.dim() == 1 else row.mean(1)).clamp(-1, 1)


def _bits(size: int) -> float:
    return float(torch.tensor(float(size)).log2())


def _doubled(most: int) -> Iterable[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most
