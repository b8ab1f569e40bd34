"""A text decoder. Letters: B batch, T memory steps, S subwords, D width, V vocabulary, R = B x beams rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.roles import DecoderState, TextSeq2Seq
from voxzoo.components.types import Padded


class MineSeq2Seq(TextSeq2Seq):
    """A small Transformer decoder (Vaswani et al. 2017) over the states of a speech encoder; it reads no text.

    Args:
        vocab_size: V; the YAML takes it from `tokenizer.vocab_size`.
        dim: D. Neighbours take their width from this name: keep it.
        num_layers: blocks.
        num_heads: of the attentions; divides D.
        dropout: in the blocks.
        max_positions: most tokens of a sequence, prefix included.
    """

    has_encoder = False

    def __init__(
        self,
        vocab_size: int,
        dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        max_positions: int = 512,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim={dim}; got {num_heads}")
        self.dim, self.vocab_size, self.max_positions = dim, vocab_size, max_positions
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)
        self.blocks = nn.ModuleList(MineBlock(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def encode(self, text: Padded) -> Padded:
        """(B, S) ids -> (B, S, D) memory, of models that read text."""
        raise ValueError("MineSeq2Seq has no text encoder")

    def decode(self, memory: Padded, tokens: Padded) -> Padded:
        """Teacher forcing: (B, T, D) memory and (B, S) decoder input -> (B, S, D) states after the final norm."""
        steps = tokens.data.shape[1]
        past = torch.ones(steps, steps, dtype=torch.bool, device=tokens.device).tril()  # (S, S), True may be read
        heard = memory.mask[:, None, None]  # (B, 1, 1, T)
        heard = heard | ~heard.any(-1, keepdim=True)  # of a row without memory anything, rather than not a number
        x = self.embedding(tokens.data) + self.positions(torch.arange(steps, device=tokens.device))
        for block in self.blocks:
            x = block(x, past, memory.data, heard)
        return tokens.with_data(self.norm(x))

    def project(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        return F.linear(states, self.embedding.weight)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): `project` is this and nothing else, so that losses need no logits of a whole batch."""
        return self.embedding.weight

    def start(self, memory: Padded, beams: int = 1) -> MineState:
        """Prepare decoding of (B, T, D) memory: B x beams rows."""
        rows = Padded(memory.data.repeat_interleave(beams, 0), memory.lengths.repeat_interleave(beams, 0))
        return MineState(rows, torch.zeros(len(rows), 0, dtype=torch.int64, device=memory.device))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`.

        All tokens so far run again: right, and slow. Keep keys and values in the state where speed counts.
        """
        assert isinstance(state, MineState)
        state.tokens = torch.cat([state.tokens, tokens[:, None]], 1)
        lengths = torch.full((len(tokens),), state.tokens.shape[1], device=tokens.device)
        return self.decode(state.memory, Padded(state.tokens, lengths)).data[:, -1]


class MineState(DecoderState):
    """(R, T, D) memory and the (R, S) tokens so far: what decoding carries from step to step."""

    def __init__(self, memory: Padded, tokens: Tensor) -> None:
        self.memory, self.tokens = memory, tokens

    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64, in that order."""
        self.memory = Padded(self.memory.data[rows], self.memory.lengths[rows.to(self.memory.lengths.device)])
        self.tokens = self.tokens[rows]


class MineBlock(nn.Module):
    """Attention to the past, attention to the memory, and a feed-forward, each added to its normed input."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.past, self.heard = MineAttention(dim, num_heads), MineAttention(dim, num_heads)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor, memory: Tensor, heard: Tensor) -> Tensor:
        """(B, S, D) states, (S, S) mask, (B, T, D) memory, (B, 1, 1, T) mask -> (B, S, D)."""
        first, second, third = self.norms
        inner = first(x)
        x = x + self.dropout(self.past(inner, inner, past))
        x = x + self.dropout(self.heard(second(x), memory, heard))
        return x + self.dropout(self.narrow(F.gelu(self.wide(third(x)))))


class MineAttention(nn.Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(B, S, D) that ask, (B, T, D) that are asked, mask that broadcasts to (B, heads, S, T) -> (B, S, D)."""

        def heads(y: Tensor) -> Tensor:  # (B, S, D) -> (B, heads, S, D / heads)
            return y.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        read = F.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(memory)), heads(self.value(memory)), attn_mask=mask
        )
        return self.out(read.transpose(1, 2).flatten(2))
