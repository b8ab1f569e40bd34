"""The generator of HiFi-GAN: states at the rate of units to samples, by transposed convolutions and residual blocks.

Letters: B batch, T frames, N samples (N = T x product of the rates), D width of the states,
C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..types import Padded
from .packing import Packing

_EDGE_KERNEL = 7
"""Width of the first and the last convolution."""
_BLOCK = 1000
"""Frames: without gradients, more than four times as many, of all rows, come in blocks: equal to rounding, which is of
another length."""


class HiFiGANGenerator(nn.Module):
    """Kong et al. 2020 (arXiv 2010.05646, section 2.2), plain convolutions: weight normalisation is folded in.

    A convolution into `channels`; for each rate a leaky ReLU, a transposed convolution that halves the channels, and
    the mean of one residual block per entry of `resblock_kernels`; a leaky ReLU with a slope of its own, a convolution
    into one channel, tanh.

    Rows of unequal length are laid end to end into one row, with gaps of zeros as wide as a convolution sees: what a
    batch costs is the sum of its lengths, and each row comes out as if it were alone.

    Args:
        input_dim: D.
        channels: C behind the first convolution.
        upsample_rates: samples out per step in, of each stage.
        upsample_kernels: width of each stage's transposed convolution, an even number more than its rate.
        resblock_kernels: width of the convolutions of each residual block; odd.
        resblock_dilations: dilations of the convolutions of each residual block.
        slope: of the leaky ReLUs.
        final_slope: of the last one; published models have the default of torch there.
    """

    def __init__(
        self,
        input_dim: int,
        channels: int = 512,
        upsample_rates: Sequence[int] = (5, 4, 4, 2, 2),
        upsample_kernels: Sequence[int] = (11, 8, 8, 4, 4),
        resblock_kernels: Sequence[int] = (3, 7, 11),
        resblock_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        slope: float = 0.1,
        final_slope: float = 0.01,
    ) -> None:
        super().__init__()
        _require(channels, upsample_rates, upsample_kernels, resblock_kernels, resblock_dilations)
        self.rates = tuple(upsample_rates)
        self.samples_per_frame = math.prod(self.rates)
        self.slope, self.final_slope = slope, final_slope
        self.num_kernels = len(resblock_kernels)
        self.pre = nn.Conv1d(input_dim, channels, _EDGE_KERNEL, padding=_EDGE_KERNEL // 2)
        widths = [channels >> stage for stage in range(len(self.rates) + 1)]
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, rate, padding=(kernel - rate) // 2)
            for i, (rate, kernel) in enumerate(zip(upsample_rates, upsample_kernels))
        )
        # Flat, stage by stage, as published.
        self.blocks = nn.ModuleList(
            ResidualBlock(width, kernel, dilations, slope)
            for width in widths[1:]
            for kernel, dilations in zip(resblock_kernels, resblock_dilations)
        )
        self.post = nn.Conv1d(widths[-1], 1, _EDGE_KERNEL, padding=_EDGE_KERNEL // 2)
        self.gap = self._gap(upsample_kernels, resblock_kernels, resblock_dilations)
        """Frames of zeros between two packed rows."""
        self.reach = self._reach(upsample_kernels, resblock_kernels, resblock_dilations)
        """Frames on each side that a sample depends on, at most."""

    def forward(self, states: Padded) -> Padded:
        """(B, T, D) -> (B, N) samples in -1..1, zero beyond the length."""
        lengths = states.lengths * self.samples_per_frame
        # Lengths are wanted on the host once: they say how much is allocated.
        rows = states.lengths.tolist()
        longest = max(rows)
        if longest and min(rows) == longest:
            return Padded(self._run(states.data[:, :longest].transpose(1, 2), None), lengths)
        packing = Packing(rows, states.data.shape[1], self.gap, states.device)
        packed = packing.pack(states.data) * packing.real[:, None]
        samples = self._run(packed.transpose(1, 2), packing.between())
        samples = packing.unpack(samples, self.samples_per_frame)[:, : longest * self.samples_per_frame, 0]
        return Padded(samples, lengths).zeroed()

    def _run(self, x: Tensor, empty: Tensor | None) -> Tensor:
        """(B, D, T) and the frames between rows, (G,) or None -> (B, N). Of many frames without gradients, blocks that
        overlap by what a sample depends on: memory does not grow with length."""
        frames = x.shape[2]
        block = max(_BLOCK // len(x), 8 * self.reach)
        if len(x) * frames <= 4 * _BLOCK or frames <= 2 * block or torch.is_grad_enabled():
            return self._samples(x, empty)
        parts = []
        for start in range(0, frames, block):
            first, last = max(start - self.reach, 0), start + block + self.reach
            here = None if empty is None else empty[(empty >= first) & (empty < last)] - first
            made = self._samples(x[:, :, first:last], here)
            end = min(start + block, frames)
            parts.append(made[:, (start - first) * self.samples_per_frame : (end - first) * self.samples_per_frame])
        return torch.cat(parts, 1)

    def _samples(self, x: Tensor, empty: Tensor | None) -> Tensor:
        """`_run` all at once."""
        x = _zero(self.pre(x), empty)
        for stage, (rate, upsampler) in enumerate(zip(self.rates, self.upsamplers)):
            if empty is not None:
                empty = (empty[:, None] * rate + torch.arange(rate, device=empty.device)).flatten()
            x = _zero(upsampler(functional.leaky_relu(x, self.slope, inplace=True)), empty)
            active = functional.leaky_relu(x, self.slope)  # what all blocks of the stage begin with
            total = None
            for block in self.blocks[stage * self.num_kernels : (stage + 1) * self.num_kernels]:
                out = block(x, active, empty)
                total = out if total is None else total.add_(out)
            assert total is not None
            x = total.div_(self.num_kernels)
        x = self.post(functional.leaky_relu(x, self.final_slope, inplace=True))
        return torch.tanh(x)[:, 0]

    def _reach(self, upsample_kernels, resblock_kernels, resblock_dilations) -> int:
        blocks = max((k - 1) // 2 * (sum(d) + len(d)) for k, d in zip(resblock_kernels, resblock_dilations))
        reach, scale = float(_EDGE_KERNEL // 2), 1
        for rate, kernel in zip(self.rates, upsample_kernels):
            reach += (kernel + rate) / 2 / rate / scale
            scale *= rate
            reach += blocks / scale
        return math.ceil(reach + _EDGE_KERNEL // 2 / scale) + 1

    def _gap(self, upsample_kernels, resblock_kernels, resblock_dilations) -> int:
        reach = max((k - 1) // 2 * max(d) for k, d in zip(resblock_kernels, resblock_dilations))
        needed, scale = _EDGE_KERNEL // 2, 1
        for rate, kernel in zip(self.rates, upsample_kernels):
            needed = max(needed, math.ceil(math.ceil(kernel / rate) / scale))
            scale *= rate
            needed = max(needed, math.ceil(reach / scale))
        return max(needed, math.ceil(_EDGE_KERNEL // 2 / scale))


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair with a residual (the paper's figure 1, type 1)."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=d, padding=(kernel_size - 1) // 2 * d)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in dilations
        )

    def forward(self, x: Tensor, active: Tensor, empty: Tensor | None = None) -> Tensor:
        """(B, C, T) states, the same behind the first leaky ReLU, steps that are no row's -> (B, C, T)."""
        for number, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2)):
            if number:
                active = functional.leaky_relu(x, self.slope)
            hidden = functional.leaky_relu(_zero(conv1(active), empty), self.slope, inplace=True)
            # A convolution's backward pass reads its input alone, so its output may be written over.
            x = _zero(conv2(hidden), empty).add_(x)
        return x


def _zero(x: Tensor, empty: Tensor | None) -> Tensor:
    """Write zeros over steps `empty` of (B, C, T): a convolution has a bias, and rows end in zeros when alone."""
    return x if empty is None else x.index_fill_(2, empty, 0)


def _require(channels, upsample_rates, upsample_kernels, resblock_kernels, resblock_dilations) -> None:
    """Refuse sizes that do not fit each other, so that N is exactly T x product of the rates."""
    if not upsample_rates or len(upsample_rates) != len(upsample_kernels):
        raise ValueError(
            f"upsample_kernels={list(upsample_kernels)} needs one entry per entry of "
            f"upsample_rates={list(upsample_rates)}, and at least one"
        )
    for rate, kernel in zip(upsample_rates, upsample_kernels):
        if rate < 1 or kernel < rate or (kernel - rate) % 2:
            raise ValueError(
                f"upsample_kernels={list(upsample_kernels)}: {kernel} must be the rate {rate} plus an even number"
            )
    if not resblock_kernels or len(resblock_kernels) != len(resblock_dilations) or not all(resblock_dilations):
        raise ValueError(
            f"resblock_dilations={[list(d) for d in resblock_dilations]} needs one list of dilations per entry of "
            f"resblock_kernels={list(resblock_kernels)}, and at least one"
        )
    if any(kernel % 2 == 0 for kernel in resblock_kernels):
        raise ValueError(f"resblock_kernels={list(resblock_kernels)} must be odd")
    if channels >> len(upsample_rates) < 1:
        raise ValueError(
            f"channels={channels} are halved {len(upsample_rates)} times: take at least {1 << len(upsample_rates)}"
        )
