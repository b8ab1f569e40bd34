"""Masking of features while training. Letters: B batch, T frames, F features, M masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..types import Padded


class SpecAugment(nn.Module):
    """Time and frequency masks (Park et al. 2019, arXiv 1904.08779, section 2), filled with 0, the mean of standardised
    features. Training only; every row draws its own masks, from torch's global generator, without a device sync.

    Args:
        time_masks: masks over time per utterance.
        time_width: longest mask in steps; widths are uniform over 0..time_width.
        time_fraction: no mask is longer than this fraction of the real steps.
        freq_masks: masks over frequency per utterance.
        freq_width: widest mask in bins; widths are uniform over 0..freq_width.
        stack: frames per step of the front end: a band is masked in all of them.
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 20,
        time_fraction: float = 0.2,
        freq_masks: int = 2,
        freq_width: int = 15,
        stack: int = 1,
    ) -> None:
        super().__init__()
        counts = {
            "time_masks": time_masks,
            "time_width": time_width,
            "freq_masks": freq_masks,
            "freq_width": freq_width,
        }
        for name, value in counts.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative; got {value}")
        if not 0 <= time_fraction <= 1:
            raise ValueError(f"time_fraction must be between 0 and 1; got {time_fraction}")
        if stack < 1:
            raise ValueError(f"stack must be at least 1; got {stack}")
        self.time_masks = time_masks
        self.time_width = time_width
        self.time_fraction = time_fraction
        self.freq_masks = freq_masks
        self.freq_width = freq_width
        self.stack = stack

    def forward(self, features: Padded) -> Padded:
        """(B, T, F) -> (B, T, F), masked; unchanged outside training."""
        if not self.training:
            return features
        data = features.data
        if data.shape[-1] % self.stack:
            raise ValueError(
                f"features of width {data.shape[-1]} are not {self.stack} stacked frames; set stack to the front end's"
            )
        lengths = features.lengths.to(data.device)
        if self.time_masks and self.time_width:
            widest = (lengths * self.time_fraction).long().clamp(max=self.time_width)
            spans = _spans(lengths, widest, self.time_masks, data.shape[1])
            data = data.masked_fill(spans[..., None], 0)
        if self.freq_masks and self.freq_width:
            bins = data.shape[-1] // self.stack
            size = lengths.new_full(lengths.shape, bins)
            spans = _spans(size, size.clamp(max=self.freq_width), self.freq_masks, bins)
            data = data.masked_fill(spans.repeat(1, self.stack)[:, None], 0)
        return features.with_data(data)


def _spans(size: Tensor, widest: Tensor, masks: int, total: int) -> Tensor:
    """Union of `masks` random spans inside 0..size of each row: (B,) and (B,) -> (B, total) bool, True = masked."""
    draws = torch.rand(2, len(size), masks, device=size.device)
    width = (draws[0] * (widest[:, None] + 1)).long()
    start = (draws[1] * (size[:, None] - width + 1)).long()
    steps = torch.arange(total, device=size.device)
    return ((steps >= start[..., None]) & (steps < (start + width)[..., None])).any(1)
