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
        self._starts = (sizes + gap).cumsum(0) - sizes - gap
        place = torch.arange(max(sum(lengths) + gap * (len(lengths) - 1), 1), device=device)
        row = torch.searchsorted(self._starts, place, right=True) - 1
        offset = place - self._starts[row]
        self.real = offset < sizes[row]
        self._lengths, self._width, self._gap = lengths, width, gap
        self._there = row * width + offset.clamp(max=width - 1)
        self._back = self._places(1)

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

    def unpack(self, x: Tensor, rate: int = 1) -> Tensor:
        """(1, P, D) -> (B, T, D), or with a rate (1, rate x P, D) -> (B, rate x T, D); padded steps hold no meaning."""
        back = self._back if rate == 1 else self._places(rate)
        return x[0].index_select(0, back).view(len(self._lengths), rate * self._width, -1)

    def between(self) -> Tensor:
        """(G,) int64, the steps that are no row's, told without waiting for a device."""
        steps, end = [], 0
        for length in self._lengths[:-1]:
            steps += range(end + length, end + length + self._gap)
            end += length + self._gap
        return torch.tensor(steps, dtype=torch.int64, device=self.real.device)

    def _places(self, rate: int) -> Tensor:
        """(B x rate x T,) int64, where each step of each row stands when there are `rate` in the place of one."""
        steps = torch.arange(rate * self._width, device=self.real.device)
        return (rate * self._starts[:, None] + steps).clamp(max=rate * len(self.real) - 1).flatten()
