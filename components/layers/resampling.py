"""Speech at another sample rate, a row at a time: padding is never heard. Letters: B batch, N samples, C channels.

A windowed sinc (`torchaudio.functional.resample`: rolloff 0.99, 6 zero crossings, a Hann window). torchaudio's table
has a row for each phase: between 44,100 and 16,000 Hz 160 of them, between 44,101 and 16,000 Hz 16,000 rows of 44,135
numbers. Between rates that have so little in common the same is computed without a table, in bounded memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchaudio.functional import resample
from torchaudio.transforms import Resample

from .precision import without_autocast

_ZEROS, _ROLLOFF = 6, 0.99  # of the sinc on each side, and of the lower rate: torchaudio's own
_BLOCK = 2**19  # samples
_TABLE = 1 << 22
"""Numbers of a table of phases that is still made: 16 MB."""
_WEIGHTS = 1 << 20
"""Weights at a time: 8 MB, and a few times that while they are computed."""


def resampled_length(length: int, old: int, new: int) -> int:
    """Samples that `length` samples become: ceil(length * new / old)."""
    return -(-length * new // old)


def resampled(row: Tensor, old: int, new: int) -> Tensor:
    """(..., N) at `old` Hz -> (..., ceil(N * new / old)) at `new` Hz, by a windowed sinc in float32; differentiable.
    Long rows go in blocks that overlap by the reach of the window, and come out as they would whole."""
    if old == new or not row.shape[-1]:
        return row
    step = old // math.gcd(old, new)
    block = -(-_BLOCK // step) * step
    with without_autocast(row.device.type):
        window = Interpolation(old, new)
        if not window.has_table:
            return window(row.float())
        if row.shape[-1] <= 2 * block:
            return resample(row.float(), old, new)
        around = -(-window.width // step) * step
        parts = []
        for start in range(0, row.shape[-1], block):
            before = min(around, start)
            piece = row[..., start - before : start + block + around].float()
            part = resample(piece, old, new, lowpass_filter_width=_ZEROS, rolloff=_ROLLOFF)
            first = before * new // old
            parts.append(part[..., first : first + resampled_length(min(block, row.shape[-1] - start), old, new)])
        return torch.cat(parts, -1)


class Interpolation:
    """(..., N) samples at `rate` -> (..., ceil(N * new_rate / rate)) at `new_rate`: the windowed sinc without a table.

    Attributes:
        width: samples before and behind a moment on which its value depends.
        has_table: whether torchaudio's table of all phases is small enough to be made.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        shared = math.gcd(rate, new_rate)
        self._old, self._new = rate // shared, new_rate // shared
        self._cutoff = min(self._old, self._new) * _ROLLOFF
        self.width = math.ceil(_ZEROS * self._old / self._cutoff)
        self.has_table = self._new * (2 * self.width + self._old) <= _TABLE

    def __call__(self, samples: Tensor) -> Tensor:
        count = resampled_length(samples.shape[-1], self._old, self._new)
        padded = torch.nn.functional.pad(samples, (self.width, self.width + 1))
        size = max(1, _WEIGHTS // (2 * self.width + 1))
        parts = [self._block(padded, first, min(count, first + size)) for first in range(0, count, size)]
        return torch.cat(parts, -1) if parts else samples[..., :0]

    def _block(self, padded: Tensor, first: int, last: int) -> Tensor:
        """Values `first` to `last` of the output, from samples with `width` zeros in front."""
        numbers = torch.arange(first, last) * self._old
        nearest, rest = numbers // self._new, (numbers % self._new).double() / self._new  # samples of the input
        taps = torch.arange(2 * self.width + 1)
        time = (taps.double() - self.width - rest[:, None]) * (self._cutoff / self._old)
        time = time.clamp(-_ZEROS, _ZEROS)
        window = torch.cos(time * (math.pi / _ZEROS / 2)) ** 2
        weights = torch.sinc(time) * window * (self._cutoff / self._old)
        begin = int(nearest[0])
        views = padded[..., begin : int(nearest[-1]) + 2 * self.width + 1].unfold(-1, 2 * self.width + 1, 1)
        return (views[..., nearest - begin, :] * weights.to(padded.dtype).to(padded.device)).sum(-1)


def resampler(rate: int, new_rate: int) -> Resample | Interpolation:
    """What resamples: by a table of all phases where it is small, else without one."""
    made = Interpolation(rate, new_rate)
    return Resample(rate, new_rate) if made.has_table else made
