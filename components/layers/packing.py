"""Rows of a batch end to end, so that convolutions and linear layers do not compute on padding.

Letters: B batch, T steps, D model dim, P packed steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Padded

_WORTH = 0.9


class Packing:
    """Where the steps of a batch stand when its rows follow each other with `gap` steps of zeros between them.

    Attributes:
        real: (P,) bool, False between rows.
    """

    def __init__(self, lengths: list[int], width: int, gap: int, device: torch.device) -> None:
        sizes = torch.tensor(lengths, device=device)
        starts = (sizes + gap).cumsum(0) - sizes - gap
        place = torch.arange(max(sum(lengths) + gap * (len(lengths) - 1), 1), device=device)
        row = torch.searchsorted(starts, place, right=True) - 1
        offset = place - starts[row]
        self.real = offset < sizes[row]
        self._shape = (len(lengths), width)
        self._there = row * width + offset.clamp(max=width - 1)
        back = starts[:, None] + torch.arange(width, device=device)
        self._back = back.clamp(max=len(place) - 1).flatten()

    @classmethod
    def of(cls, states: Padded, gap: int) -> Packing | None:
        """The packing of (B, T, D) states, or None where it would save less than a tenth of the steps."""
        if states.data.is_meta or len(states) < 2:
            return None
        lengths, width = states.lengths.tolist(), states.data.shape[1]
        if sum(lengths) + gap * (len(lengths) - 1) > _WORTH * width * len(lengths):
            return None
        return cls(lengths, width, gap, states.device)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (1, P, D); what stands between rows is for the caller to zero (see `real`)."""
        return x.flatten(0, 1).index_select(0, self._there)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """(1, P, D) -> (B, T, D); padded steps hold no meaning."""
        return x[0].index_select(0, self._back).view(*self._shape, -1)
