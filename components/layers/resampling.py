"""Speech at another sample rate, a row at a time: padding is never heard. Letters: B batch, N samples, C channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchaudio.functional import resample

from .precision import without_autocast

_ZEROS, _ROLLOFF = 6, 0.99  # of the sinc on each side, and of the lower rate: torchaudio's own
_BLOCK = 2**19  # samples


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
        if row.shape[-1] <= 2 * block:
            return resample(row.float(), old, new)
        reach = math.ceil(_ZEROS * step / (min(step, step * new // old) * _ROLLOFF))
        around = -(-reach // step) * step
        parts = []
        for start in range(0, row.shape[-1], block):
            before = min(around, start)
            piece = row[..., start - before : start + block + around].float()
            part = resample(piece, old, new, lowpass_filter_width=_ZEROS, rolloff=_ROLLOFF)
            first = before * new // old
            parts.append(part[..., first : first + resampled_length(min(block, row.shape[-1] - start), old, new)])
        return torch.cat(parts, -1)
