"""Units to a complex spectrum by ConvNeXt blocks, and to samples by one inverse transform.

Letters: B batch, U units, T frames (T = U * frames_per_unit), N samples, F frequency bins, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.convnext import ConvNeXt
from ..layers.mel import LogMel
from ..layers.steps import refuse_no_steps
from ..layers.stft import STFT
from ..limits import odd
from ..roles import UnitVocoder
from ..types import Loss, Padded, Reconstruction
from .unit_states import UnitStates, limit_peak, mel_loss, random_crops, to_frames

FLOOR = 3e-3
"""Magnitudes below this, about the step of 16-bit samples under a window, are silence to the loss."""


class ISTFTVocoder(UnitVocoder):
    """Vocos (arXiv 2306.00814, section 3) over units: one forward pass, no iterations.

    The network predicts magnitude and phase of every frame. Losses: log-mel, and magnitudes at three resolutions
    (Parallel WaveGAN, arXiv 1910.11480, section 2.2), on samples.

    Args:
        num_units: size of the unit vocabulary.
        dim: D.
        hidden_dim: width inside a block.
        num_layers: ConvNeXt blocks.
        kernel_size: of their depthwise convolutions; odd.
        num_speakers, num_langs: size of the condition tables; 0 for none.
        duration_dim: hidden width of the duration predictor.
        duration_factor: stretches predicted durations; above 1 is slower.
        dropout: of the duration predictor.
        crop_units: units of an utterance that a training step looks at.
        sample_rate, fft_size, window_length, hop_length, num_mel_bins: of frames and mel loss (see `LogMel`).
        frames_per_unit: frames to a unit; hop_length * frames_per_unit samples to a unit.
    """

    learns_samples = True
    paper = "arXiv 2306.00814, section 3"
    stacks = ()

    def __init__(
        self,
        num_units: int,
        dim: int = 256,
        hidden_dim: int = 768,
        num_layers: int = 8,
        kernel_size: int = 7,
        num_speakers: int = 0,
        num_langs: int = 0,
        duration_dim: int = 256,
        duration_factor: float = 1.0,
        dropout: float = 0.1,
        crop_units: int = 32,
        sample_rate: int = 16000,
        fft_size: int = 640,
        window_length: int = 640,
        hop_length: int = 160,
        num_mel_bins: int = 80,
        frames_per_unit: int = 2,
    ):
        super().__init__()
        odd(kernel_size=kernel_size)
        self.num_units, self.sample_rate, self.frames_per_unit = num_units, sample_rate, frames_per_unit
        self.hop_length = hop_length * frames_per_unit
        self.crop_units, self.duration_factor = crop_units, duration_factor
        self.num_speakers, self.num_langs = num_speakers, num_langs
        self.states = UnitStates(num_units, dim, num_speakers, num_langs, duration_dim, dropout)
        self.upsample = nn.Linear(dim, dim * frames_per_unit)
        self.embed = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.embed_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(ConvNeXt(dim, hidden_dim, kernel_size, 1 / num_layers) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.mel = LogMel(sample_rate, fft_size, window_length, hop_length, num_mel_bins)
        self.stft = self.mel.stft
        self.head = nn.Linear(dim, 2 * self.stft.num_bins)
        # Windows of 1/2, 1 and 2 times the frame's: what one resolution blurs another one sees.
        self.resolutions = nn.ModuleList(
            STFT(length, length, length // 4) for length in (window_length // 2, window_length, 2 * window_length)
        )

    def samples(self, states: Padded) -> Padded:
        """(B, U, D) expanded states -> (B, N) samples."""
        frames = to_frames(states, self.upsample)
        mask = frames.mask[..., None]
        x = self.embed_norm(self.embed((frames.data * mask).transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x, mask)
        magnitude, phase = self.head(self.norm(x)).float().chunk(2, dim=2)
        # exp starts at 1 for every bin, about a speech-loud noise; the cap is far above any real spectrum.
        spectrum = torch.polar(magnitude.clamp(max=6.0).exp(), phase)
        return Padded(self.stft.inverse(spectrum, frames.mask), frames.lengths * self.stft.hop_length)

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
        return limit_peak(self.samples(self.states.expand(units, lang, speaker, durations, self.duration_factor)))

    def losses(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """`mel`: absolute error of log-mel, mean over bins, per frame of a random crop; `stft`: spectral convergence
        plus absolute error of log magnitude of a row, mean over three resolutions, per frame; `duration`: per run.

        Args:
            units: (B, U), one per frame.
            speech: (B, N) samples that they came from.
            speaker, lang: (B,) int64, as in `forward`.
        """
        return self.reconstruct(units, speech, speaker, lang).losses

    def reconstruct(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> Reconstruction:
        cropped, target = random_crops(units, speech, self.crop_units, self.hop_length, 0)
        predicted = self.samples(self.states(cropped, lang, speaker))
        wanted = predicted.with_data(target.float()).zeroed()
        target = wanted.data
        frames = cropped.lengths.to(target.device) * self.frames_per_unit
        mel = mel_loss(Padded(self.mel(predicted.data), frames), self.mel(target))
        distance = torch.zeros(len(units), device=target.device)
        for stft in self.resolutions:
            assert isinstance(stft, STFT)
            steps = predicted.lengths.to(target.device) // stft.hop_length
            ours, theirs = (Padded(_magnitude(stft, of), steps).zeroed().data for of in (predicted.data, target))
            norm = theirs.square().sum((1, 2)).clamp(min=1e-3).sqrt()
            convergence = (ours - theirs).square().sum((1, 2)).clamp(min=1e-8).sqrt() / norm
            log_error = (ours.clamp(min=FLOOR).log() - theirs.clamp(min=FLOOR).log()).abs().sum((1, 2))
            log_error = log_error / (steps * stft.num_bins).clamp(min=1)
            distance = distance + (convergence + log_error) / len(self.resolutions)
        losses = {
            "mel": mel,
            "stft": Loss((distance * frames).sum(), mel.count),
            "duration": self.states.duration_loss(units, lang, speaker),
        }
        return Reconstruction(predicted, wanted, frames, losses)


def _magnitude(stft: STFT, samples: Tensor) -> Tensor:
    # A floor under the square root: the slope of |z| at 0 is not finite, and silence has many zeros.
    spectrum = stft(samples)
    return (spectrum.real.square() + spectrum.imag.square() + FLOOR**2).sqrt()
