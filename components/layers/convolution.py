"""Convolutions over padded batches, channels last. Letters: B batch, T frames, D model dim, K kernel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout
from .linear import after

ConvNorm = Literal["layer", "batch"]


def conv_lengths(lengths: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Exact output lengths of a strided convolution; 0 where not even one window fits."""
    return (torch.div(lengths + 2 * padding - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)


class DepthwiseConv(nn.Module):
    """One filter per channel on (B, T, D), same length out, no bias.

    Run as a channels-last 2-d convolution: equal to conv1d and two to four times as fast on a CPU.

    Args:
        causal: see the past only (K - 1 zeros on the left) instead of (K - 1) / 2 steps on both sides (K odd).
    """

    def __init__(self, dim: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        if kernel_size < 1 or (not causal and kernel_size % 2 == 0):
            raise ValueError(f"a symmetric convolution needs an odd kernel_size of at least 1; got {kernel_size}")
        self.dim = dim
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        kernel = self.weight.shape[-1]
        image = x.transpose(1, 2).unsqueeze(2)  # (B, D, 1, T) with channels last in memory
        if self.causal:
            image, padding = F.pad(image, (kernel - 1, 0)), 0
        else:
            padding = kernel // 2
        return (
            F.conv2d(image, self.weight.unsqueeze(2), padding=(0, padding), groups=self.dim).squeeze(2).transpose(1, 2)
        )


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of (B, T, D) over the real steps only.

    While training the statistics are those of the real steps of this batch (`torch.nn.BatchNorm1d` counts the padding
    in), so rows depend on each other and on how the batch was cut: over several processes or accumulation steps each
    part uses its own statistics. Evaluation uses the running statistics. Names and layout are those of BatchNorm1d.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) and (B, T) bool, True = real (None: all) -> (B, T, D)."""
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            # The statistics are in float32 where the weights are not.
            shift = self.bias - self.running_mean * scale
            return (x * scale + shift).to(torch.promote_types(x.dtype, self.weight.dtype))
        values = x.float()
        if mask is None:
            count = values.new_tensor(float(x.shape[0] * x.shape[1]))
            mean = values.mean((0, 1))
            variance = (values - mean).square().mean((0, 1))
        else:
            weight = mask[..., None].to(values)
            count = weight.sum().clamp(min=1)
            mean = (values * weight).sum((0, 1)) / count
            variance = ((values - mean).square() * weight).sum((0, 1)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        return ((values - mean) * (variance + self.eps).rsqrt()).to(x.dtype) * self.weight + self.bias


class ConvModule(nn.Module):
    """The convolution module of the Conformer (Gulati et al. 2020, arXiv 2005.08100, section 2.2).

    Norm, pointwise D -> 2D, GLU, depthwise, norm, SiLU, pointwise, dropout. Padded steps are zeroed after the first
    norm; the pointwise layers have no bias, so padding adds exactly nothing to its neighbours. With `padding_in_norm`
    batch norm counts padded steps too while training, as torch's does.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        causal: bool = True,
        norm: ConvNorm = "layer",
        dropout: float = 0.0,
        padding_in_norm: bool = False,
    ) -> None:
        super().__init__()
        self.padding_in_norm = padding_in_norm
        self.norm = nn.LayerNorm(dim)
        self.pointwise1 = nn.Linear(dim, 2 * dim, bias=False)
        self.depthwise = DepthwiseConv(dim, kernel_size, causal)
        self.depthwise_norm = MaskedBatchNorm(dim) if norm == "batch" else nn.LayerNorm(dim)
        self.pointwise2 = nn.Linear(dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) and (B, T) bool, True = real (None: all) -> (B, T, D)."""
        x = self.norm(x)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        x = self.depthwise(F.glu(self.pointwise1(x), dim=-1))
        if isinstance(self.depthwise_norm, MaskedBatchNorm):
            x = self.depthwise_norm(x, None if self.padding_in_norm else mask)
        else:
            x = self.depthwise_norm(x)
        return self.dropout(after(F.silu, self.pointwise2, x))
