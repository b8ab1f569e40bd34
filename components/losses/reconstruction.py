"""How far samples are from speech: over time, and over mel bands of several windows.

Each row has the mean of its own and weighs as many frames as it has, so that batches and ranks add up.

Letters: B batch, N samples, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers.mel import LogMel
from ..types import Loss, Padded

_BLOCK = 2**18
"""Samples whose spectra are there at once."""


def waveform_loss(made: Padded, target: Padded, frames: Tensor) -> Loss:
    """The mean distance of (B, N) samples, per frame of (B,) `frames` (EnCodec, arXiv 2210.13438, section 3.4)."""
    distance = made.with_data((made.data - target.data).float().abs()).zeroed().data.sum(1)
    return _weigh(distance / made.lengths.to(distance.device).clamp(min=1), frames)


class MelLoss(nn.Module):
    """The mean distance of log-mels, over several windows that hop by a quarter of their length.

    Args:
        sample_rate: Hz.
        windows: in samples, powers of two from 64 on.
        num_mel_bins: F of each window; fewer than half of its samples.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        num_mel_bins: Sequence[int] = (80, 64, 40, 20, 10),
    ) -> None:
        super().__init__()
        if len(windows) != len(num_mel_bins) or not windows:
            raise ValueError(f"num_mel_bins={list(num_mel_bins)} needs one entry per entry of windows={list(windows)}")
        self.mels = nn.ModuleList(
            LogMel(sample_rate, window, window, window // 4, bins, 0.0)
            for window, bins in zip(windows, num_mel_bins, strict=True)
        )

    def forward(self, made: Padded, target: Padded, frames: Tensor) -> Loss:
        """(B, N) samples, what they should be, and (B,) frames that each row weighs."""
        ours, theirs = made.zeroed().data, target.zeroed().data
        rows = []
        for mel in self.mels:
            assert isinstance(mel, LogMel)
            steps = (made.lengths.to(ours.device) + mel.hop_length - 1) // mel.hop_length
            rows.append(_distances(mel, ours, theirs, steps) / (steps * mel.num_mel_bins).clamp(min=1))
        return _weigh(torch.stack(rows).mean(0), frames)


def _distances(mel: LogMel, ours: Tensor, theirs: Tensor, steps: Tensor) -> Tensor:
    """(B, N) twice and (B,) frames that count -> (B,) sums of the distances of their log-mels."""
    hop, margin = mel.hop_length, mel.stft.margin
    sides, block = (margin, margin + -ours.shape[1] % hop), _BLOCK // hop * hop
    ours, theirs = functional.pad(ours, sides), functional.pad(theirs, sides)
    total = torch.zeros(len(ours), device=ours.device)
    for start in range(0, ours.shape[1] - 2 * margin, block):
        part = slice(start, start + block + 2 * margin)
        distance = (mel.inner(ours[:, part]) - mel.inner(theirs[:, part])).abs()
        # What stands behind a row reaches a frame or two behind its end: they are cut off.
        kept = Padded(distance, (steps - start // hop).clamp(0, distance.shape[1])).zeroed().data
        total = total + kept.sum((1, 2))
    return total


def _weigh(rows: Tensor, frames: Tensor) -> Loss:
    weight = frames.to(rows)
    return Loss((rows * weight).sum(), weight.sum())
