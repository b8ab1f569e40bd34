"""ConvNeXt over time, as in Vocos. Letters: B batch, T steps, D model dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNeXt(nn.Module):
    """ConvNeXt block over time (Vocos, section 3.2), blind to padding. (B, T, D) -> (B, T, D), mask (B, T, 1)."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int, scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.depthwise((x * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(functional.gelu(self.up(self.norm(hidden))))
