"""Phase from magnitudes. Letters: B batch, T frames, N samples, F frequency bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .stft import STFT


class GriffinLim(nn.Module):
    """Fast Griffin-Lim (Perraudin, Balazs and Soendergaard 2013), masked and deterministic.

    torchaudio's version pads by reflection and divides by one window envelope for the whole batch, so a shorter row
    would hear its padding; here each row has its own.

    Args:
        stft: the transform that the magnitudes belong to.
        iterations: how many projections.
        momentum: 0 is the algorithm of Griffin and Lim (1984), below 1.
    """

    def __init__(self, stft: STFT, iterations: int = 32, momentum: float = 0.99):
        super().__init__()
        if iterations < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"iterations must be 0 or more and momentum in [0, 1); got iterations={iterations}, momentum={momentum}"
            )
        self.stft, self.iterations, self.momentum = stft, iterations, momentum

    @torch.no_grad()
    def forward(self, magnitude: Tensor, mask: Tensor) -> Tensor:
        """(B, T, F) magnitudes, (B, T) bool -> (B, T * hop) samples, zero where the mask is False."""
        magnitude = magnitude * mask[..., None]
        envelope = self.stft.envelope(mask)
        angles = self._start(magnitude)
        previous = torch.zeros((), device=magnitude.device)
        for _ in range(self.iterations):
            samples = self.stft.inverse(magnitude * angles, mask, envelope)
            rebuilt = self.stft(samples)
            angles = rebuilt + self.momentum * (rebuilt - previous)
            angles = angles / angles.abs().clamp(min=1e-12)
            previous = rebuilt
        return self.stft.inverse(magnitude * angles, mask, envelope)

    def _start(self, magnitude: Tensor) -> Tensor:
        """Phases spread evenly by the golden ratios of two dimensions.

        No buzz of aligned frames, no random numbers, and the same for a row whatever the batch.
        """
        _, steps, bins = magnitude.shape
        # On the CPU in float64, and as float32 from there: some devices have no float64, and the products are large.
        step = torch.arange(steps, dtype=torch.float64, device="cpu")[:, None]
        index = torch.arange(bins, dtype=torch.float64, device="cpu")
        turns = (0.7548776662 * step * (index + 1) + 0.5698402910 * index * index) % 1.0
        phase = (2 * math.pi * turns).float().to(magnitude.device)
        return torch.polar(torch.ones_like(phase), phase).expand_as(magnitude)
