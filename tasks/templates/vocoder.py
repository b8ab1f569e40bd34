"""A unit vocoder. Letters: B batch, U units, R runs, N samples, H samples of a unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.layers.runs import expand_runs, reduce_runs
from voxzoo.components.roles import UnitVocoder
from voxzoo.components.types import Loss, Padded


class MineVocoder(UnitVocoder):
    """Each unit and its neighbours become H samples, whose spectrum is learned; a table says how long a unit lasts.

    Args:
        num_units: the YAML takes it from `unit_extractor.num_units`.
        dim: width of the layers.
        kernel_size: units that a unit's samples depend on; odd.
        hop_length: H; the unit extractor's.
        sample_rate: Hz.
    """

    def __init__(
        self, num_units: int, dim: int = 128, kernel_size: int = 5, hop_length: int = 320, sample_rate: int = 16000
    ) -> None:
        super().__init__()
        self.num_units, self.hop_length, self.sample_rate = num_units, hop_length, sample_rate
        self.embedding = nn.Embedding(num_units, dim)
        self.mix = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.head = nn.Linear(dim, hop_length)
        self.log_duration = nn.Embedding(num_units, 1)

    def samples(self, units: Padded) -> Padded:
        """(B, U) units, one per frame -> (B, U * H) samples."""
        states = units.with_data(self.embedding(units.data)).zeroed()
        mixed = self.mix(states.data.transpose(1, 2)).transpose(1, 2)
        waves = torch.tanh(self.head(states.data + F.gelu(mixed))).flatten(1)
        return Padded(waves, units.lengths * self.hop_length).zeroed()

    def forward(
        self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None, durations: Padded | None = None
    ) -> Padded:
        """(B, U) units -> (B, N) samples in -1..1. `durations` (B, U): frames of each; None: by the table."""
        if durations is None:
            lasting = self.log_duration(units.data).squeeze(-1).float().exp().round().long().clamp(min=1)
            durations = units.with_data(lasting)
        return self.samples(expand_runs(units.data, durations))

    def losses(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """Of (B, U) units, one per frame, against the (B, N) samples they came from.

        `spectrum`: absolute error of log magnitudes, mean over bins, per frame. `duration`: squared error of the log of
        how long a run lasts, per run.
        """
        made = self.samples(units).data
        target = F.pad(speech.zeroed().data, (0, max(made.shape[1] - speech.data.shape[1], 0)))[:, : made.shape[1]]
        error = (self._log_magnitude(made) - self._log_magnitude(target)).abs().mean(-1)  # (B, U)
        runs, lasting = reduce_runs(units)
        guess = self.log_duration(runs.data).squeeze(-1).float()  # (B, R)
        off = (guess - lasting.data.clamp(min=1).float().log()).square()
        return {
            "spectrum": Loss(error.masked_fill(~units.mask, 0).sum(), units.mask.sum()),
            "duration": Loss(off.masked_fill(~runs.mask, 0).sum(), runs.mask.sum()),
        }

    def _log_magnitude(self, samples: Tensor) -> Tensor:
        """(B, U * H) -> (B, U, H / 2 + 1)."""
        return (torch.fft.rfft(samples.float().unflatten(1, (-1, self.hop_length))).abs() + 1e-2).log()
