"""Runs of equal units: merging and restoring them, and leaving units out. Letters: B batch, U units, R runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Padded


def reduce_runs(units: Padded) -> tuple[Padded, Padded]:
    """Merge runs: (B, U) units -> (B, R) units and (B, R) int64 durations, both zero beyond the length.

    >>> units, durations = reduce_runs(Padded(torch.tensor([[5, 5, 7, 0]]), torch.tensor([3])))
    >>> units.data.tolist(), durations.data.tolist()
    ([[5, 7]], [[2, 1]])
    """
    if units.data.is_meta:  # the shape check: no run has more than one unit, the upper bound
        return units, units
    mask = units.mask
    first = mask.clone()
    first[:, 1:] &= units.data[:, 1:] != units.data[:, :-1]
    lengths = first.sum(1)
    width = max(int(lengths.max()), 1)
    index = (first.cumsum(1) - 1).clamp(min=0, max=width - 1)
    durations = units.data.new_zeros(len(units), width).scatter_add_(1, index, mask.to(units.data.dtype))
    # Every position of a run writes the same value, so the order of the writes does not matter; padding adds nothing.
    reduced = units.data.new_zeros(len(units), width).scatter_add_(1, index, units.data * first)
    return Padded(reduced, lengths), Padded(durations, lengths)


def expand_runs(data: Tensor, durations: Padded) -> Padded:
    """Repeat step r of each row durations[b, r] times: (B, R) or (B, R, D) -> (B, sum of durations, ...), zero-padded.

    Durations beyond the length of `durations` count as zero. Differentiable in `data`; no loop over samples.
    """
    if durations.data.is_meta:  # the shape check: durations are data, so assume one each
        return Padded(data, durations.lengths)
    repeats = durations.data.masked_fill(~durations.mask, 0)
    ends = repeats.cumsum(1)
    lengths = ends[:, -1]
    steps = torch.arange(max(int(lengths.max()), 1), device=data.device).expand(len(data), -1).contiguous()
    index = torch.searchsorted(ends, steps, right=True).clamp(max=data.shape[1] - 1)
    mask = steps < lengths[:, None]
    if data.dim() == 3:
        out = data.gather(1, index[..., None].expand(-1, -1, data.shape[2])) * mask[..., None]
    else:
        out = data.gather(1, index) * mask
    return Padded(out, lengths)


def keep_steps(units: Padded, keep: Tensor) -> Padded:
    """Keep the steps of (B, U) ids where the (B, U) bool `keep` says so; what stays moves left, zero beyond the length.

    On the meta device all stay, the upper bound.
    """
    if units.data.is_meta:
        return units
    lengths = keep.sum(1)
    # A stable sort keeps the order of what stays.
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : max(int(lengths.max()), 1)]
    return Padded(units.data.gather(1, order), lengths).zeroed()
