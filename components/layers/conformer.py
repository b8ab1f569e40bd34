"""The Conformer block. Letters: B batch, H heads, T frames, D model dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .convolution import ConvModule, ConvNorm
from .dropout import Dropout
from .layer_drop import pass_on
from .relative_attention import Position, RelativeSelfAttention
from .transformer import FeedForward


class ConformerLayer(nn.Module):
    """Half-step feed-forward, self-attention, convolution, half-step feed-forward, norm (Gulati et al. 2020, arXiv
    2005.08100, section 2), each on a normalised input with a residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        kernel_size: int,
        position: Position = "relative_key",
        left: int = 64,
        right: int = 8,
        causal_conv: bool = True,
        conv_norm: ConvNorm = "layer",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        conv_dropout: float = 0.0,
        padding_in_norm: bool = False,
    ) -> None:
        super().__init__()
        self.ffn1_norm = nn.LayerNorm(dim)
        self.ffn1 = FeedForward(dim, ffn_dim, "silu", activation_dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = RelativeSelfAttention(dim, num_heads, position, left, right, attention_dropout)
        self.dropout = Dropout(dropout)
        self.conv = ConvModule(dim, kernel_size, causal_conv, conv_norm, conv_dropout, padding_in_norm)
        self.ffn2_norm = nn.LayerNorm(dim)
        self.ffn2 = FeedForward(dim, ffn_dim, "silu", activation_dropout)
        self.final_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        table: Tensor | None = None,
        skip: bool = False,
    ) -> Tensor:
        """One block.

        Args:
            x: (B, T, D).
            keep: (B, T) bool, True = real; None where no step is padding.
            mask: bool, broadcastable to (B, H, T, T), True = may attend; None where all may.
            table: the layers' shared `positions`.
            skip: LayerDrop: the block passes `x` on (`pass_on`). The call itself is made.
        """
        if skip:
            return pass_on(self, x)
        x = torch.add(x, self.dropout(self.ffn1(self.ffn1_norm(x))), alpha=0.5)
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, table))
        x = x + self.conv(x, keep)
        x = torch.add(x, self.dropout(self.ffn2(self.ffn2_norm(x))), alpha=0.5)
        return self.final_norm(x)
