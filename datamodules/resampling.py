"""Resampling between rates that have little in common, in bounded memory.

torchaudio's table has a row for each phase: between 44,100 and 16,000 Hz 160 of them, between 44,101 and 16,000 Hz
16,000 rows of 44,135 numbers. Here the same windowed sinc (`torchaudio.functional.resample`: rolloff 0.99, 6 zero
crossings, a Hann window) is computed where it is needed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchaudio.transforms import Resample

_TABLE = 1 << 22
"""Numbers of a table of phases that is still made: 16 MB."""
_BLOCK = 1 << 20
"""Weights at a time: 8 MB, and a few times that while they are computed."""
_ZEROS, _ROLLOFF = 6, 0.99


class Interpolation:
    """(N,) samples at `rate` -> (ceil(N * new_rate / rate),) at `new_rate`.

    Attributes:
        width: samples before and behind a moment on which its value depends.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        shared = math.gcd(rate, new_rate)
        self._old, self._new = rate // shared, new_rate // shared
        self._cutoff = min(self._old, self._new) * _ROLLOFF
        self.width = math.ceil(_ZEROS * self._old / self._cutoff)

    def __call__(self, samples: Tensor) -> Tensor:
        count = -(-len(samples) * self._new // self._old)
        padded = torch.nn.functional.pad(samples, (self.width, self.width + 1))
        size = max(1, _BLOCK // (2 * self.width + 1))
        parts = [self._block(padded, first, min(count, first + size)) for first in range(0, count, size)]
        return torch.cat(parts) if parts else samples.new_empty(0)

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
        views = padded[begin : int(nearest[-1]) + 2 * self.width + 1].unfold(0, 2 * self.width + 1, 1)
        return (views[nearest - begin] * weights.to(padded.dtype)).sum(1)


def resampler(rate: int, new_rate: int) -> Resample | Interpolation:
    """What resamples: by a table of all phases where it is small, else without one."""
    made = Interpolation(rate, new_rate)
    shared = math.gcd(rate, new_rate)
    small = (new_rate // shared) * (2 * made.width + rate // shared) <= _TABLE
    return Resample(rate, new_rate) if small else made
