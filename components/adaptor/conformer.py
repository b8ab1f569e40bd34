"""The length adaptor of SeamlessM4T and w2v-BERT 2.0. Letters: B batch, T frames, D model dim."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import MultiHeadAttention, key_mask
from ..layers.convolution import conv_lengths
from ..layers.dropout import Dropout
from ..layers.steps import refuse_no_steps
from ..layers.transformer import FeedForward
from ..limits import at_least
from ..roles import Adaptor
from ..types import Adapted, Padded


class ConformerAdaptor(Adaptor):
    """Transformer layers whose attention and residual each run on a strided convolution with GLU (SeamlessM4T, arXiv
    2308.11596; UnitY, arXiv 2212.08055).

    Where the widths differ a linear layer and a norm come first, as in w2v-BERT 2.0. A layer turns L steps into
    floor((L + 2 (kernel // 2) - kernel) / stride) + 1; several layers chain that (the port in transformers derives the
    masks of all SeamlessM4T layers from the first lengths; published checkpoints have one layer).

    Args:
        input_dim: width of the encoder's states.
        output_dim: width of the decoder, a multiple of `num_heads`.
        kernel_size, stride: of the convolutions; the published ones are 8 and 8, or 3 and 2 for w2v-BERT 2.0.
        num_layers: layers, each `stride` times shorter.
        num_heads: attention heads.
        ffn_dim: inner width of the feed-forward layers.
        dropout: on the output of attention and feed-forward.
        attention_dropout: on the attention weights: 0.1 in the original implementation, 0 in transformers.
        ffn_inner_dropout: inside the feed-forward: 0 in the original implementation, 0.1 in transformers; None: as
            `dropout`.
        final_norm: layer norm at the end (SeamlessM4T has it, w2v-BERT 2.0 has not).
        leak_padding: let the convolutions read the states behind the last real step, as the published code does: the
            last output of a row then depends on the batch it came in. For equality with published results only.
    """

    paper = "SeamlessM4T, arXiv 2308.11596"

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int = 8,
        stride: int = 8,
        num_layers: int = 1,
        num_heads: int = 16,
        ffn_dim: int = 4096,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        ffn_inner_dropout: float | None = None,
        final_norm: bool = True,
        leak_padding: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, kernel_size=kernel_size, stride=stride, num_layers=num_layers)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.kernel_size = kernel_size
        self.stride = stride
        self.leak_padding = leak_padding
        if leak_padding:
            self.exempt = dict.fromkeys(("padding", "alone", "gradients"), "leak_padding: the published leak")
        widths_differ = input_dim != output_dim
        inner = dropout if ffn_inner_dropout is None else ffn_inner_dropout
        self.projection = nn.Linear(input_dim, output_dim) if widths_differ else None
        self.projection_norm = nn.LayerNorm(output_dim) if widths_differ else None
        self.layers = nn.ModuleList(
            _Layer(output_dim, kernel_size, stride, num_heads, ffn_dim, dropout, attention_dropout, inner)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(output_dim) if final_norm else None

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T', output_dim); `text` is not used."""
        refuse_no_steps(self, states, "the encoder gave no states")
        if self.projection is not None and self.projection_norm is not None:
            states = states.with_data(self.projection_norm(self.projection(states.data)))
        for layer in self.layers:
            states = layer(states, self.leak_padding)
        if self.final_norm is not None:
            states = states.with_data(self.final_norm(states.data))
        return Adapted(states)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for _ in self.layers:
            lengths = conv_lengths(lengths, self.kernel_size, self.stride, self.kernel_size // 2)
        return lengths


class _Layer(nn.Module):
    """One strided layer; both convolutions have their own norm and weights."""

    def __init__(
        self,
        dim: int,
        kernel: int,
        stride: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        attention_dropout: float,
        ffn_inner_dropout: float,
    ) -> None:
        super().__init__()
        self.residual_norm = nn.LayerNorm(dim)
        self.residual_conv = nn.Conv1d(dim, 2 * dim, kernel, stride, kernel // 2)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_conv = nn.Conv1d(dim, 2 * dim, kernel, stride, kernel // 2)
        self.attention = MultiHeadAttention(dim, num_heads, attention_dropout)
        self.dropout = Dropout(dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, "relu", ffn_inner_dropout)

    def forward(self, states: Padded, leak_padding: bool) -> Padded:
        """(B, T, D) -> (B, T', D)."""
        conv = self.residual_conv
        lengths = conv_lengths(states.lengths, conv.kernel_size[0], conv.stride[0], int(conv.padding[0]))
        residual = self.residual_norm(states.data)
        pooled = self.attention_norm(states.data)
        if not leak_padding:
            behind = ~states.mask[..., None]
            residual, pooled = residual.masked_fill(behind, 0), pooled.masked_fill(behind, 0)
        residual, pooled = _pool(self.residual_conv, residual), _pool(self.attention_conv, pooled)
        mask = key_mask(Padded(pooled, lengths))
        x = residual + self.dropout(self.attention(pooled, mask=mask))
        return Padded(x + self.dropout(self.ffn(self.ffn_norm(x))), lengths)


def _pool(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """(B, T, D) -> (B, T', D): convolution and GLU over channels."""
    return F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)
