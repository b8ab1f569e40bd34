"""Units to log-mel by a small convolution network, log-mel to samples by Griffin-Lim.

Letters: B batch, U units, T mel frames (T = U * frames_per_unit), N samples, F mel bins, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers.griffin_lim import GriffinLim
from ..layers.mel import LogMel
from ..layers.steps import refuse_no_steps
from ..limits import odd
from ..roles import UnitVocoder
from ..types import Loss, Padded
from .unit_states import UnitStates, limit_peak, mel_loss, random_crops, to_frames

# Speech is about this loud and this varied in natural-log mel magnitudes, so the network starts near its answer.
MEL_MEAN, MEL_DEVIATION = -6.5, 2.0


class GriffinLimVocoder(UnitVocoder):
    """A vocoder that trains in two CPU minutes and has no phase to learn.

    Embedded units go through residual convolutions at the rate of units, are upsampled, and go through more at the
    rate of mel frames; the loss is the mean absolute error of log-mels. Phase comes from fast Griffin-Lim (Perraudin et
    al. 2013).

    Args:
        num_units: size of the unit vocabulary.
        dim: D.
        num_layers: residual convolutions at each of the two rates.
        kernel_size: of the convolutions; odd.
        dropout: in the residual branches and the duration predictor.
        num_speakers, num_langs: size of the condition tables; 0 for none.
        duration_dim: hidden width of the duration predictor.
        duration_factor: stretches predicted durations; above 1 is slower.
        crop_units: units of an utterance that a training step looks at.
        sample_rate, fft_size, window_length, hop_length, num_mel_bins: of the log-mel (see `LogMel`).
        frames_per_unit: mel frames to a unit; hop_length * frames_per_unit samples to a unit.
        iterations, momentum: of Griffin-Lim.
        inversion_updates: steps from mel bands to a linear spectrum.
    """

    paper = "arXiv 2107.05604, section 3.3; Perraudin et al. 2013"
    stacks = ()

    def __init__(
        self,
        num_units: int,
        dim: int = 256,
        num_layers: int = 3,
        kernel_size: int = 5,
        dropout: float = 0.0,
        num_speakers: int = 0,
        num_langs: int = 0,
        duration_dim: int = 256,
        duration_factor: float = 1.0,
        crop_units: int = 64,
        sample_rate: int = 16000,
        fft_size: int = 640,
        window_length: int = 640,
        hop_length: int = 160,
        num_mel_bins: int = 80,
        frames_per_unit: int = 2,
        iterations: int = 32,
        momentum: float = 0.99,
        inversion_updates: int = 15,
    ):
        super().__init__()
        odd(kernel_size=kernel_size)
        self.num_units, self.sample_rate, self.frames_per_unit = num_units, sample_rate, frames_per_unit
        self.hop_length = hop_length * frames_per_unit
        self.crop_units, self.duration_factor, self.inversion_updates = crop_units, duration_factor, inversion_updates
        self.num_speakers, self.num_langs = num_speakers, num_langs
        self.states = UnitStates(num_units, dim, num_speakers, num_langs, duration_dim, dropout)
        self.slow = nn.ModuleList(ResidualConv(dim, kernel_size, dropout) for _ in range(num_layers))
        self.upsample = nn.Linear(dim, dim * frames_per_unit)
        self.fast = nn.ModuleList(ResidualConv(dim, kernel_size, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_mel_bins)
        self.mel = LogMel(sample_rate, fft_size, window_length, hop_length, num_mel_bins)
        self.griffin_lim = GriffinLim(self.mel.stft, iterations, momentum)

    def log_mel(self, states: Padded) -> Padded:
        """(B, U, D) expanded states -> (B, T, F) log-mel."""
        x, mask = states.data, states.mask[..., None]
        for layer in self.slow:
            x = layer(x, mask)
        frames = to_frames(states.with_data(x), self.upsample)
        x, mask = frames.data, frames.mask[..., None]
        for layer in self.fast:
            x = layer(x, mask)
        return frames.with_data(self.head(self.norm(x)) * MEL_DEVIATION + MEL_MEAN)

    def forward(
        self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None, durations: Padded | None = None
    ) -> Padded:
        """(B, U) units -> (B, N) samples, N = hop_length * sum of durations, peak at most 0.95.

        Args:
            units: reduced units, or with `durations` of ones one unit per frame.
            lang, speaker: (B,) int64, needed where the vocoder has tables of several rows for them, else ignored.
            durations: (B, U) int64 units of time for each; None predicts them.
        """
        refuse_no_steps(self, units, "no row has a unit")
        mel = self.log_mel(self.states.expand(units, lang, speaker, durations, self.duration_factor))
        magnitude = self.mel.magnitude(mel.data.float(), self.inversion_updates)
        samples = self.griffin_lim(magnitude, mel.mask)
        return limit_peak(Padded(samples, mel.lengths * self.mel.hop_length))

    def losses(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """`mel`: absolute error of log-mel, mean over bins, per frame of a random crop; `duration`: per run.

        Args:
            units: (B, U), one per frame.
            speech: (B, N) samples that they came from.
            speaker, lang: (B,) int64, as in `forward`.
        """
        cropped, samples = random_crops(units, speech, self.crop_units, self.hop_length, self.mel.stft.margin)
        with torch.no_grad():
            target = self.mel.inner(samples.float())
        return {
            "mel": mel_loss(self.log_mel(self.states(cropped, lang, speaker)), target),
            "duration": self.states.duration_loss(units, lang, speaker),
        }


class ResidualConv(nn.Module):
    """x + conv(gelu(norm(x))), blind to padding. (B, T, D) -> (B, T, D), mask (B, T, 1)."""

    def __init__(self, dim: int, kernel_size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = functional.gelu(self.norm(x)) * mask
        return x + self.dropout(self.conv(hidden.transpose(1, 2)).transpose(1, 2))
