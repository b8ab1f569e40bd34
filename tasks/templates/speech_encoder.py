"""A speech encoder. Letters: B batch, T frames, F features, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.roles import SpeechEncoder
from voxzoo.components.types import Padded


class MineEncoder(SpeechEncoder):
    """Blocks of convolutions over features, at half their rate: L frames become ceil(L / 2) states.

    Args:
        input_dim: F; the YAML takes it from `frontend.output_dim`.
        dim: D. Neighbours take their width from this name: keep it.
        num_layers: blocks.
        kernel_size: of the convolutions; odd.
        dropout: in the blocks.
    """

    def __init__(
        self, input_dim: int, dim: int = 128, num_layers: int = 4, kernel_size: int = 9, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {kernel_size}")
        self.input_dim, self.output_dim = input_dim, dim
        self.halve = nn.Linear(2 * input_dim, dim)
        self.blocks = nn.ModuleList(MineBlock(dim, kernel_size, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, speech: Padded) -> Padded:
        """(B, T, F) features -> (B, T', D) states."""
        data = F.pad(speech.zeroed().data, (0, 0, 0, speech.data.shape[1] % 2))
        pairs = data.unflatten(1, (-1, 2)).flatten(2)  # (B, T', 2 F)
        states = Padded(self.halve(pairs), self.output_lengths(speech.lengths))
        x, mask = states.data, states.mask[..., None]
        for block in self.blocks:
            x = block(x, mask)
        return states.with_data(self.norm(x))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 -> (B,) int64, in whole numbers alone: batches are planned by it."""
        return torch.div(lengths + 1, 2, rounding_mode="floor")


class MineBlock(nn.Module):
    """x + what a convolution along time and a layer across features make of it. (B, T, D), mask (B, T, 1)."""

    def __init__(self, dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.along = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.across = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm(x) * mask  # padding is zero wherever steps are mixed
        hidden = self.along(hidden.transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.across(F.gelu(hidden)))
