"""Log-mel spectrogram for units and vocoders, differentiable.

Not the Kaldi filterbank that speech encoders read (`components/frontend/`): this one tiles the samples (see `stft.py`),
so that units, mel frames and samples are aligned by integers, and it can be inverted.

Letters: B batch, T frames, N samples, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from .precision import without_autocast
from .stft import STFT


class LogMel(nn.Module):
    """Natural logarithm of mel-band magnitudes, floored.

    Args:
        sample_rate: Hz.
        fft_size, window_length, hop_length: in samples, see `STFT`.
        num_mel_bins: F.
        low_freq: lower edge of the lowest band, Hz; the highest ends at sample_rate / 2.
        floor: smallest magnitude, so the smallest value is log(floor).
    """

    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        fft_size: int = 640,
        window_length: int = 640,
        hop_length: int = 160,
        num_mel_bins: int = 80,
        low_freq: float = 20.0,
        floor: float = 1e-4,
    ):
        super().__init__()
        self.stft = STFT(fft_size, window_length, hop_length)
        self.sample_rate, self.num_mel_bins, self.floor = sample_rate, num_mel_bins, floor
        self.hop_length = hop_length
        with torch.device("cpu"):  # it indexes by its own values, which the meta device cannot
            filters = melscale_fbanks(
                self.stft.num_bins,
                low_freq,
                sample_rate / 2,
                num_mel_bins,
                sample_rate,
                norm="slaney",
                mel_scale="slaney",
            )
        # Slaney's norm gives each band unit area in Hz; times the bin width its rows sum to about one, so a band is the
        # mean magnitude under it. The constant keeps full-scale tones near 0 dB whatever the window.
        filters = filters * (2 * sample_rate / fft_size / (window_length / 2))
        self.register_buffer("filters", filters.to(self.stft.window.device), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) samples, N a multiple of the hop -> (B, N // hop, F), zeros assumed outside."""
        return self.of_magnitude(self.stft(samples).abs())

    def inner(self, samples: Tensor) -> Tensor:
        """(B, N + 2 * stft.margin) samples that bring their own context -> (B, N // hop, F)."""
        return self.of_magnitude(self.stft.inner(samples).abs())

    def of_magnitude(self, magnitude: Tensor) -> Tensor:
        """(..., bins) magnitudes -> (..., F), in float32 whatever the autocast, also where a model is cast."""
        with full_precision(magnitude):
            return (magnitude.float() @ self.filters.float()).clamp(min=self.floor).log()

    def magnitude(self, log_mel: Tensor, updates: int = 30) -> Tensor:
        """Non-negative magnitudes (..., bins) whose bands are those of (..., F) log-mels.

        Multiplicative updates for the squared error (Lee and Seung 2001), from the transposed filters as a start: they
        never leave the positive orthant, and are two small matrix products each, batched.
        """
        with full_precision(log_mel):
            filters = self.filters.float()
            up = log_mel.float().exp() @ filters.T
            gram = filters @ filters.T
            estimate = up / filters.sum(1).clamp(min=1e-3 * filters.sum(1).max())
            for _ in range(updates):
                estimate = estimate * (up / (estimate @ gram).clamp(min=1e-10))
        return estimate


def full_precision(data: Tensor):
    """Autocast off for the device of `data`: spectra span more decades than bfloat16 has digits."""
    return without_autocast(data.device.type)
