"""What every unit vocoder starts from: embedded units with their durations, and crops to train on.

Letters: B batch, R runs (reduced units), U units (one per frame), N samples, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers.duration import DurationPredictor
from ..layers.runs import expand_runs, reduce_runs
from ..types import Loss, Padded


class UnitStates(nn.Module):
    """Embeddings of units, speaker and language, and the duration of each unit (S2UT, arXiv 2107.05604, section 3.3).

    Args:
        num_units: size of the unit table.
        dim: D.
        num_speakers, num_langs: 0 leaves the condition out.
        duration_dim: hidden width of the duration predictor.
        dropout: of the duration predictor.
    """

    def __init__(
        self,
        num_units: int,
        dim: int,
        num_speakers: int = 0,
        num_langs: int = 0,
        duration_dim: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.units = nn.Embedding(num_units, dim)
        self.speakers = nn.Embedding(num_speakers, dim) if num_speakers else None
        self.langs = nn.Embedding(num_langs, dim) if num_langs else None
        self.durations = DurationPredictor(dim, duration_dim, 3, dropout)

    def forward(self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None) -> Padded:
        """(B, U) units -> (B, U, D), zero beyond the length. A table of one row needs no index."""
        states = self.units(units.data)
        for name, table, index in (("speaker", self.speakers, speaker), ("lang", self.langs, lang)):
            if table is None:
                continue
            if index is None and table.num_embeddings == 1:
                index = torch.zeros(len(units), dtype=torch.int64, device=states.device)
            if index is None:
                raise ValueError(
                    f"this vocoder has {table.num_embeddings} values of `{name}`: give {name} (B,) int64, or build it "
                    f"with num_{name}s=0"
                )
            states = states + table(index.to(states.device))[:, None]
        return units.with_data(states).zeroed()

    def expand(
        self, units: Padded, lang: Tensor | None, speaker: Tensor | None, durations: Padded | None, factor: float = 1.0
    ) -> Padded:
        """(B, R) units -> (B, U, D), each unit as long as `durations` says or, without, as predicted times `factor`."""
        states = self(units, lang, speaker)
        if durations is None:
            durations = self.durations.predict(states, factor)
        else:
            require_one_each(durations, units)
        return expand_runs(states.data, durations)

    def duration_loss(self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None) -> Loss:
        """(B, U) units, one per frame -> squared error of log(1 + duration), per run."""
        reduced, durations = reduce_runs(units)
        return self.durations.loss(self(reduced, lang, speaker), durations)


def require_one_each(durations: Padded, units: Padded) -> None:
    """Raises ValueError: not one duration for each unit."""
    if durations.data.shape != units.data.shape:
        raise ValueError(
            f"durations {tuple(durations.data.shape)} must have the shape of the units, {tuple(units.data.shape)}"
        )


def to_frames(states: Padded, upsample: nn.Linear) -> Padded:
    """(B, U, D) states through a linear layer (D -> r x D) -> (B, r x U, D): r frames side by side become steps."""
    rate = upsample.out_features // upsample.in_features
    return Padded(upsample(states.data).unflatten(2, (rate, -1)).flatten(1, 2), states.lengths * rate)


def mel_loss(predicted: Padded, target: Tensor) -> Loss:
    """Absolute error of (B, T, F) log-mels, mean over bins, per frame."""
    mask = predicted.mask
    error = (predicted.data.float() - target).abs().mean(2)
    return Loss(error.masked_fill(~mask, 0).sum(), mask.sum())


def random_crops(units: Padded, speech: Padded, crop_units: int, hop_length: int, margin: int) -> tuple[Padded, Tensor]:
    """The same random stretch of units and of samples from each row.

    Args:
        units: (B, U), one per frame.
        speech: (B, N) samples, N about U * hop_length.
        crop_units: C, the longest stretch; shorter rows are taken whole.
        hop_length: samples to a unit.
        margin: samples of context to keep on both sides.

    Returns:
        (B, C) units, and (B, C * hop_length + 2 * margin) samples, zero beyond the speech.

    Raises:
        ValueError: units and samples of a row differ by two units or more, so they cannot belong together.
    """
    gap = (units.lengths.to(speech.lengths.device) * hop_length - speech.lengths).abs()
    if bool((gap >= 2 * hop_length).any()):
        row = int(gap.argmax())
        raise ValueError(
            f"row {row} has {int(units.lengths[row])} units of {hop_length} samples but "
            f"{int(speech.lengths[row])} samples: units must stand one per frame (not reduced) and come from this audio"
        )
    width = min(crop_units, int(units.lengths.max()))
    lengths = units.lengths.to(units.device)
    room = (lengths - width + 1).clamp(min=1)
    starts = (torch.rand(len(units), device=units.device) * room).long().clamp(max=room - 1)
    index = starts[:, None] + torch.arange(width, device=units.device)
    cropped = Padded(units.data.gather(1, index.clamp(max=units.data.shape[1] - 1)), units.lengths.clamp(max=width))
    samples = speech.zeroed().data
    longest = units.data.shape[1] * hop_length
    # Cut to whole units: an extractor that drops a tail leaves samples that no unit describes.
    samples = functional.pad(samples, (margin, margin + max(longest - samples.shape[1], 0) + width * hop_length))
    where = starts[:, None] * hop_length + torch.arange(width * hop_length + 2 * margin, device=units.device)
    return cropped.zeroed(), samples.gather(1, where)


def limit_peak(audio: Padded, peak: float = 0.95) -> Padded:
    """(B, N) samples -> the same, rows above `peak` scaled down to it: a loud row gets quieter, nothing is clipped."""
    highest = audio.zeroed().data.abs().amax(1, keepdim=True)
    return audio.with_data(audio.data * (peak / highest.clamp(min=peak))).zeroed()
