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
        heard = _may_be_heard(memory)
        x = self.embedding(tokens.data) + self.positions(torch.arange(steps, device=tokens.device))
        for block in self.blocks:
            x, _ = block(x, past, block.heard.remember(memory.data), heard)
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
        heard = []
        for block in self.blocks:
            keys, values = block.heard.remember(memory.data)
            heard.append((keys.repeat_interleave(beams, 0), values.repeat_interleave(beams, 0)))
        return MineState(heard, _may_be_heard(memory).repeat_interleave(beams, 0))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`."""
        assert isinstance(state, MineState)
        x = self.embedding(tokens)[:, None] + self.positions.weight[state.steps]  # (R, 1, D)
        for number, block in enumerate(self.blocks):
            x, state.past[number] = block(x, None, state.heard[number], state.mask, state.past[number])
        state.steps += 1
        return self.norm(x)[:, 0]


Kept = tuple[Tensor, Tensor]
"""Keys and values of an attention, (R, heads, S or T, D / heads) each."""


def _may_be_heard(memory: Padded) -> Tensor:
    """(B, 1, 1, T) True where there is memory; of a row without any everything, rather than not a number."""
    mask = memory.mask[:, None, None]
    return mask | ~mask.any(-1, keepdim=True)


class MineState(DecoderState):
    """What decoding carries from step to step, for each block.

    Args:
        heard: of the memory.
        mask: (R, 1, 1, T) of it.
    """

    def __init__(self, heard: list[Kept], mask: Tensor) -> None:
        self.heard, self.mask, self.steps = heard, mask, 0
        self.past: list[Kept | None] = [None] * len(heard)

    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64, in that order."""
        self.heard = [(keys[rows], values[rows]) for keys, values in self.heard]
        self.past = [kept and (kept[0][rows], kept[1][rows]) for kept in self.past]
        self.mask = self.mask[rows]


class MineBlock(nn.Module):
    """Attention to the past, attention to the memory, and a feed-forward, each added to its normed input."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.past, self.heard = MineAttention(dim, num_heads), MineAttention(dim, num_heads)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, heard: Kept, heard_mask: Tensor, before: Kept | None = None
    ) -> tuple[Tensor, Kept]:
        """(B, S, D) states, (S, S) mask, what is kept of the memory, its (B, 1, 1, T) mask, what is kept of the steps
        before -> (B, S, D), and what is to be kept of all steps."""
        first, second, third = self.norms
        inner = first(x)
        keys, values = self.past.remember(inner)
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        x = x + self.dropout(self.past(inner, (keys, values), mask))
        x = x + self.dropout(self.heard(second(x), heard, heard_mask))
        return x + self.dropout(self.narrow(F.gelu(self.wide(third(x))))), (keys, values)


class MineAttention(nn.Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def remember(self, memory: Tensor) -> Kept:
        """(B, T, D) that are asked -> their keys and values."""
        return self._heads(self.key(memory)), self._heads(self.value(memory))

    def forward(self, x: Tensor, kept: Kept, mask: Tensor | None) -> Tensor:
        """(B, S, D) that ask, what `remember` gave, mask that broadcasts to (B, heads, S, T) -> (B, S, D)."""
        keys, values = kept
        read = F.scaled_dot_product_attention(self._heads(self.query(x)), keys, values, attn_mask=mask)
        return self.out(read.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, heads, S, D / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
