"""Samples as they are, for encoders that read the waveform. Letters: N samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..limits import at_least
from ..roles import Frontend


class RawWaveform(Frontend):
    """The waveform itself, (N,) -> (N,).

    Args:
        sample_rate: samples per second.
        normalise: bring each utterance to mean 0 and variance 1, as wav2vec 2.0 and XLS-R large read it (Baevski et al.
            2020, arXiv 2006.11477); silence becomes zeros.
        output_dim: 1; a place for configs to interpolate widths from.
    """

    def __init__(self, sample_rate: int = 16000, normalise: bool = False, output_dim: int = 1) -> None:
        at_least(1, sample_rate=sample_rate)
        if output_dim != 1:
            raise ValueError(f"RawWaveform has one feature per sample, so output_dim must be 1; got {output_dim}")
        self.sample_rate = sample_rate
        self.normalise = normalise
        self.output_dim = 1

    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) samples in -1..1 -> (N,) float32."""
        if waveform.dim() != 1:
            raise ValueError(
                f"RawWaveform takes one channel of shape (N,); got {tuple(waveform.shape)}. Average or pick a channel"
            )
        samples = waveform.float()
        if self.normalise and len(samples):
            variance, mean = torch.var_mean(samples, correction=0)
            samples = (samples - mean) / (variance + 1e-7).sqrt()
        return samples

    def output_length(self, num_samples: int) -> int:
        """N."""
        return num_samples

    @property
    def fingerprint(self) -> str:
        return f"samples1-{self.sample_rate}-{'norm' if self.normalise else 'raw'}"
