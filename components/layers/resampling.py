"""Speech at another sample rate, a row at a time: padding is never heard. Letters: B batch, N samples, C channels."""

from __future__ import annotations

from torch import Tensor
from torchaudio.functional import resample

from .precision import without_autocast


def resampled_length(length: int, old: int, new: int) -> int:
    """Samples that `length` samples become: ceil(length * new / old)."""
    return -(-length * new // old)


def resampled(row: Tensor, old: int, new: int) -> Tensor:
    """(..., N) at `old` Hz -> (..., ceil(N * new / old)) at `new` Hz, by a windowed sinc in float32; differentiable."""
    if old == new or not row.shape[-1]:
        return row
    with without_autocast(row.device.type):
        return resample(row.float(), old, new)
