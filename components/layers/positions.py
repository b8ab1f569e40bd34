"""Sinusoidal positions of the fairseq family (M2M-100, NLLB, SeamlessM4T), learned ones (Whisper), and rotary ones.

Letters: B batch, T steps, D model dim, H heads, d head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Fixed positions: the first half of a row is sin(p w_k), the second cos(p w_k), w_k = 10000^(-k / (D/2 - 1)).

    Vaswani et al. 2017, section 3.5, in the layout of tensor2tensor (halves, not interleaved). The table holds nothing
    trained, is not saved and grows when a longer sequence arrives.

    Args:
        dim: width, even and at least 4.
        start: row of the first step. Published models differ with the same weights: fairseq numbers from pad_id + 1,
            so NLLB and official SeamlessM4T start at 2; transformers' port of SeamlessM4T at 1 (text) and 2 (units).
    """

    def __init__(self, dim: int, start: int = 0) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim of at least 4; got {dim}")
        if start < 0:
            raise ValueError(f"the first position must be 0 or more; got start={start}")
        self.dim = dim
        self.start = start
        # A plain attribute: a buffer would be left empty when a model built on the meta device is materialised.
        self._table: Tensor | None = None

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D): add the positions of steps offset .. offset + T - 1."""
        return x + self.table(offset, x.shape[1], x)

    def at(self, steps: Tensor, last: int, like: Tensor) -> Tensor:
        """(B, D) positions of one step of each row, (B,) int64, each below `last`."""
        return self.table(0, last, like)[steps]

    def table(self, first: int, count: int, like: Tensor) -> Tensor:
        """Rows of steps first .. first + count - 1 as (count, D), with the device and dtype of `like`."""
        last = self.start + first + count
        table = self._table
        if table is None or table.shape[0] < last or table.device != like.device or table.dtype != like.dtype:
            # Twice what is asked for, so that decoding step by step rebuilds it rarely.
            with torch.inference_mode(False), torch.no_grad():
                table = sinusoids(max(2 * last, 64), self.dim, like.device).to(like.dtype)
            self._table = table
        return table[last - count : last]


class LearnedPositions(nn.Module):
    """One trained vector for each of `count` steps: what comes later has none.

    Args:
        dim: width.
        count: most steps of a sequence.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"learned positions need a number of steps, max_positions; got {count}")
        self.count = count
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D): add the positions of steps offset .. offset + T - 1.

        Raises:
            ValueError: a step without a position.
        """
        last = offset + x.shape[1]
        if last > self.count:
            raise ValueError(f"a sequence of {last} steps; this model has learned positions for {self.count}")
        return x + self.weight[offset:last]

    def at(self, steps: Tensor, last: int, like: Tensor) -> Tensor:
        """(B, D) positions of one step of each row, (B,) int64, each below `last`.

        Raises:
            ValueError: a step without a position.
        """
        if last > self.count:
            raise ValueError(f"a sequence of {last} steps; this model has learned positions for {self.count}")
        return self.weight[steps]


Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (T, d / 2) for `rotate`; where rows stand at different steps (B, 1, 1, 1, d) for `turn`."""


class RotaryPositions(nn.Module):
    """Turns pairs of numbers in queries and keys by an angle that grows with the step, so that their product depends
    on the distance alone (RoPE, Su et al. 2021, arXiv 2104.09864, section 3.2). Pairs are the two halves of a head, as
    in GPT-NeoX and Llama. Holds nothing trained; no limit of steps.

    Args:
        dim: d, of a head, even.
        base: the slowest angle is about 1 / base of a step.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"rotary positions need heads of an even width; got {dim} (dim / num_heads)")
        self.dim, self.base = dim, base
        self._table: Tensor | None = None  # a plain attribute, as in SinusoidalPositions

    def forward(self, count: int, like: Tensor) -> Rotation:
        """Of steps 0 .. count - 1, (count, d / 2) each, for the device and dtype of `like`."""
        table = self._angles(count, like)[:count].to(like.dtype)
        return table[:, : self.dim // 2], table[:, self.dim // 2 :]

    def at(self, steps: Tensor, last: int, like: Tensor) -> Rotation:
        """Of one step of each row, (B,) int64, each below `last`, for `turn`: (B, 1, 1, 1, d) each."""
        table = self._angles(last, like)[steps].to(like.dtype)[:, None, None, None]
        cosine, sine = table.chunk(2, dim=-1)
        return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)

    def _angles(self, count: int, like: Tensor) -> Tensor:
        table = self._table
        if table is None or table.shape[0] < count or table.device != like.device:
            with torch.inference_mode(False), torch.no_grad():
                half = torch.arange(self.dim // 2, dtype=torch.float32, device=like.device) / (self.dim // 2)
                steps = torch.arange(max(2 * count, 64), dtype=torch.float32, device=like.device)
                angles = steps[:, None] * torch.exp(-math.log(self.base) * half)
                table = torch.cat([angles.cos(), angles.sin()], dim=1)
            self._table = table
        return table


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, H, T, d) queries or keys -> the same, turned."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def turn(x: Tensor, rotation: Rotation) -> None:
    """Queries or keys of one step, (B, K, n, H, d), turned in place as `rotate` does, by what `RotaryPositions.at`
    gives: fewer passes, for steps that are so short that their number counts."""
    cosine, sine = rotation
    halves = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cosine).addcmul_(halves, sine)


def sinusoids(count: int, dim: int, device: torch.device) -> Tensor:
    """(count, dim) float32: rows 0 .. count - 1."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32, device=device) * (-math.log(10000) / (half - 1)))
    angle = torch.arange(count, dtype=torch.float32, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)
