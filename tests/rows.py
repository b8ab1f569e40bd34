"""Padded batches of rows: random ones, ones whose padding holds something, and a row alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from voxzoo.components.types import Padded


def ragged(lengths: Sequence[int], *width: int, seed: int = 0) -> Padded:
    """Normal numbers, a row of each length."""
    generator = torch.Generator().manual_seed(seed)
    return Padded.from_list([torch.randn(length, *width, generator=generator) for length in lengths])


def soiled(lengths: Sequence[int], *width: int) -> Padded:
    """The same with large noise in the padding, which must not matter."""
    batch = ragged(lengths, *width)
    noise = 30 * torch.randn(batch.data.shape, generator=torch.Generator().manual_seed(1))
    return batch.with_data(torch.where(_mask(batch), batch.data, noise))


def garbage(padded: Padded) -> Padded:
    """The same batch with three more padded steps, all padding filled with something."""
    fill = padded.data.new_full((len(padded), 3, *padded.data.shape[2:]), 5)
    batch = padded.with_data(torch.cat([padded.data, fill], 1))
    return batch.with_data(torch.where(_mask(batch), batch.data, 5))


def row_of(padded: Padded, i: int) -> Padded:
    """Row i without padding."""
    n = int(padded.lengths[i])
    return Padded(padded.data[i : i + 1, :n], padded.lengths[i : i + 1])


def _mask(batch: Padded) -> torch.Tensor:
    return batch.mask.view(*batch.mask.shape, *[1] * (batch.data.dim() - 2))
