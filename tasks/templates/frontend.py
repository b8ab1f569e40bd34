"""A front end: what data workers make of a waveform. Letters: N samples, T frames, F features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from voxzoo.components.roles import Frontend


class MineFrontend(Frontend):
    """Log power of a short Fourier transform in bands of equal width. It is pickled into data workers.

    Args:
        sample_rate: Hz.
        output_dim: F, the bands. Neighbours take their width from this name: keep it.
        window_length, hop_length: samples of a frame, and from one to the next.
    """

    def __init__(
        self, sample_rate: int = 16000, output_dim: int = 40, window_length: int = 640, hop_length: int = 320
    ) -> None:
        if window_length < max(hop_length, 2 * output_dim):
            raise ValueError(
                f"window_length must be at least hop_length ({hop_length}) and 2 x output_dim; got {window_length}"
            )
        self.sample_rate, self.output_dim = sample_rate, output_dim
        self.window_length, self.hop_length = window_length, hop_length

    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) float32 samples in -1..1 -> (T, F) float32."""
        steps = self.output_length(len(waveform))
        if steps == 0:
            return waveform.new_zeros(0, self.output_dim)
        missing = (steps - 1) * self.hop_length + self.window_length - len(waveform)
        frames = F.pad(waveform.float(), (0, missing)).unfold(0, self.window_length, self.hop_length)
        power = torch.fft.rfft(frames * torch.hann_window(self.window_length)).abs().square()
        return (F.adaptive_avg_pool1d(power, self.output_dim) + 1e-5).log()

    def output_length(self, num_samples: int) -> int:
        """Exact T for N samples: every started hop is a frame."""
        return -(-num_samples // self.hop_length)

    @property
    def fingerprint(self) -> str:
        """Key of the feature cache: count its first number up whenever the code gives other features."""
        return f"mine1-{self.sample_rate}-{self.output_dim}-{self.window_length}-{self.hop_length}"
