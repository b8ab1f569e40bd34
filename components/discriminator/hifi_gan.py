"""The discriminators of HiFi-GAN: of every p-th sample, and of samples at three scales.

Letters: B batch, N samples, T steps of a layer, C channels, P period, R rows of a stack (B, or B x P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from ..layers.precision import without_autocast
from ..roles import Discriminator
from ..types import Judgement, Padded

_POST_KERNEL = 3
"""Width of the last convolution of a stack."""


class HiFiGANDiscriminator(Discriminator):
    """Multi-period and multi-scale discriminators (Kong et al. 2020, arXiv 2010.05646, section 2.3).

    A period discriminator folds the samples into P columns, each every P-th sample, and runs the same convolutions over
    each column (the paper's (k, 1) kernels; a row is reflected to a multiple of P). A scale discriminator runs grouped
    convolutions over the samples averaged by 1, 2 and 4. Weights are normalised by weight norm, those of the first
    scale by spectral norm. The defaults are the published sizes, 70.7 million parameters.

    Rows of unequal length are judged as if each were alone.

    Args:
        periods: P of each period discriminator; empty for none.
        num_scales: scale discriminators; 0 for none.
        period_channels, period_kernel, period_stride: C, width and stride of the convolutions; the last has stride 1.
        scale_channels, scale_kernels, scale_strides, scale_groups: one entry per convolution.
        slope: of the leaky ReLUs.
    """

    paper = "HiFi-GAN, arXiv 2010.05646, section 2.3"

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        num_scales: int = 3,
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        period_kernel: int = 5,
        period_stride: int = 3,
        scale_channels: Sequence[int] = (128, 128, 256, 512, 1024, 1024, 1024),
        scale_kernels: Sequence[int] = (15, 41, 41, 41, 41, 41, 5),
        scale_strides: Sequence[int] = (1, 2, 2, 4, 4, 1, 1),
        scale_groups: Sequence[int] = (1, 4, 16, 16, 16, 16, 1),
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        _require(periods, num_scales, period_channels, scale_channels, scale_kernels, scale_strides, scale_groups)
        self.periods = tuple(periods)
        count = len(period_channels)
        strides = [*[period_stride] * (count - 1), 1]
        self.of_periods = nn.ModuleList(
            ConvStack(period_channels, [period_kernel] * count, strides, [1] * count, slope) for _ in self.periods
        )
        self.of_scales = nn.ModuleList(
            ConvStack(scale_channels, scale_kernels, scale_strides, scale_groups, slope, spectral=not scale)
            for scale in range(num_scales)
        )

    def forward(self, speech: Padded) -> Judgement:
        """(B, N) samples -> scores (B, T, P) and (B, T, 1), features (B, T, P, C) and (B, T, 1, C), of each stack."""
        samples, lengths = speech.zeroed().data, speech.lengths
        scores, features = [], []
        for period, stack in zip(self.periods, self.of_periods):
            columns, steps = _fold(samples, lengths, period)
            _collect(stack(columns, steps), period, scores, features)
        for scale, stack in enumerate(self.of_scales):
            if scale:
                # Zeros count in the average, at a row's end as behind it.
                samples, lengths = functional.avg_pool1d(samples[:, None], 4, 2, 2)[:, 0], _steps(lengths, 4, 2, 2)
                samples = Padded(samples, lengths).zeroed().data
            _collect(stack(samples[:, None], lengths), 1, scores, features)
        return Judgement(tuple(scores), tuple(features))

    def advance(self) -> None:
        for module in self.modules():
            if isinstance(module, ConvStack):
                module.advance()


class ConvStack(nn.Module):
    """Convolutions with leaky ReLUs between them, and one into a single channel. Odd kernels, padded by half."""

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        groups: Sequence[int],
        slope: float,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.slope = slope
        before = [1, *channels[:-1]]
        layers = [
            nn.Conv1d(a, b, kernel, stride, kernel // 2, groups=group)
            for a, b, kernel, stride, group in zip(before, channels, kernels, strides, groups)
        ]
        layers.append(nn.Conv1d(channels[-1], 1, _POST_KERNEL, padding=_POST_KERNEL // 2))
        for layer in layers:
            if spectral:
                register_parametrization(layer, "weight", SpectralNorm(layer.weight))
            else:
                weight_norm(layer)
        self.convs = nn.ModuleList(layers)

    def forward(self, x: Tensor, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(R, 1, T) and (B,) -> (R, C, T') of each layer, zero beyond its lengths (B,); the last one is the scores."""
        # Crops are nearly always of one length: then there is nothing to hide.
        ragged = bool((lengths != x.shape[2]).any())
        found = []
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv1d)
            x = conv(x)
            if number < len(self.convs) - 1:
                x = functional.leaky_relu(x, self.slope, inplace=True)
            lengths = _steps(lengths, conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2)
            if ragged:
                real = torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None]
                x = x * real.repeat_interleave(x.shape[0] // len(lengths), 0)[:, None]
            found.append((x, lengths))
        return found

    def advance(self) -> None:
        """One power iteration of each spectral norm."""
        convs: Any = self.convs
        for conv in convs:
            weight = conv.parametrizations.weight
            if isinstance(weight[0], SpectralNorm):
                weight[0].advance(weight.original)


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).

    torch's own iterates at each forward pass in training mode: a step over accumulated batches would then differ from
    the same step over processes. Here `advance` iterates, once a step.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("left", functional.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("right", functional.normalize(torch.randn_like(matrix[0]), dim=0))
        for _ in range(15):  # as torch's
            self.advance(weight)

    def forward(self, weight: Tensor) -> Tensor:
        with without_autocast(weight.device.type):
            return weight / torch.dot(self.left, weight.flatten(1) @ self.right)

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        matrix = weight.detach().flatten(1)
        with without_autocast(weight.device.type):
            self.left.copy_(functional.normalize(matrix @ self.right, dim=0))
            self.right.copy_(functional.normalize(self.left @ matrix, dim=0))


def _fold(samples: Tensor, lengths: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """(B, N) samples, zero beyond their lengths -> (B x P, 1, T) columns and (B,) their steps.

    A row is filled up to a multiple of P by its own reflection.
    """
    steps = (lengths + period - 1) // period
    length = lengths.to(samples.device)[:, None]
    place = torch.arange(-(-samples.shape[1] // period) * period, device=samples.device).expand(len(samples), -1)
    source = torch.where(place < length, place, 2 * (length - 1) - place).clamp(0, max(samples.shape[1] - 1, 0))
    filled = samples.gather(1, source) * (place < steps.to(samples.device)[:, None] * period)
    return filled.unflatten(1, (-1, period)).transpose(1, 2).flatten(0, 1)[:, None], steps


def _collect(layers: list[tuple[Tensor, Tensor]], period: int, scores: list[Padded], features: list[Padded]) -> None:
    """Add the layers of a stack, (B x P, C, T) -> (B, T, P, C) views."""
    for x, lengths in layers:
        features.append(Padded(x.unflatten(0, (-1, period)).permute(0, 3, 1, 2), lengths))
    last = features[-1]
    scores.append(last.with_data(last.data[..., 0]))


def _steps(lengths: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """(B,) int64 -> (B,) int64, what a convolution makes of it; a row of nothing stays one."""
    return ((lengths + 2 * padding - kernel) // stride + 1) * (lengths > 0)


def _require(periods, num_scales, period_channels, scale_channels, scale_kernels, scale_strides, scale_groups) -> None:
    """Refuse sizes that do not fit each other."""
    if not periods and not num_scales:
        raise ValueError("periods=[] and num_scales=0 leave no discriminator: give one of them")
    if periods and (min(periods) < 1 or not period_channels):
        raise ValueError(f"periods={list(periods)} must be at least 1, and period_channels not empty")
    if num_scales and not scale_channels:
        raise ValueError(f"scale_channels=[] leaves nothing for num_scales={num_scales}")
    for name, values in (("kernels", scale_kernels), ("strides", scale_strides), ("groups", scale_groups)):
        if len(values) != len(scale_channels):
            raise ValueError(
                f"scale_{name}={list(values)} needs one entry per entry of scale_channels={list(scale_channels)}"
            )
    if any(kernel % 2 == 0 for kernel in scale_kernels):
        raise ValueError(f"scale_kernels={list(scale_kernels)} must be odd")
