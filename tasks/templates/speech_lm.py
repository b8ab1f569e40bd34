"""A speech LM. Letters: B batch, S tokens, P tokens of a prompt, D width, V vocabulary, R = B x beams rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.joint_vocabulary import JointVocabulary
from voxzoo.components.roles import DecoderState, SpeechLM
from voxzoo.components.types import Padded


class MineSpeechLM(SpeechLM):
    """A small causal Transformer over units and codes.

    Args:
        num_units: the YAML takes it from `unit_extractor.num_units`.
        codebook_size: codes of the first codec stream; the YAML takes it from `codec.codebook_size`.
        languages: codes of the languages, in any order.
        specials: tokens of the templates besides `<pad>`, `<bos>` and `<eos>`.
        dim: D.
        num_layers: blocks.
        num_heads: of the attention; divides D.
        dropout: in the blocks.
        max_positions: most tokens of a sequence, prompt included.
    """

    def __init__(
        self,
        num_units: int,
        codebook_size: int,
        languages: Sequence[str],
        specials: Sequence[str] = ("<trans>", "<gen>"),
        dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        max_positions: int = 2048,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim={dim}; got {num_heads}")
        self.vocabulary = JointVocabulary(num_units, codebook_size, languages, specials)
        self.vocab_size, self.dim, self.max_positions = self.vocabulary.size, dim, max_positions
        self.embedding = nn.Embedding(self.vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)
        self.blocks = nn.ModuleList(MineBlock(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def decode(self, tokens: Padded, prompt: Tensor | None = None) -> Padded:
        """Teacher forcing: (B, S) ids -> (B, S, D) states after the final norm; state i predicts token i + 1."""
        return tokens.with_data(self._read(tokens)[0])

    def project(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        return F.linear(states, self.embedding.weight)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): `project` is this and nothing else, so that losses need no logits of a whole batch."""
        return self.embedding.weight

    def start(self, prompt: Padded, beams: int = 1) -> MineState:
        """Read (B, P) ids, and prepare B x beams rows behind them."""
        _, kept = self._read(prompt)
        room = [self.max_positions - length for length in prompt.lengths.tolist()] if not prompt.lengths.is_meta else []
        rows = [(keys.repeat_interleave(beams, 0), values.repeat_interleave(beams, 0)) for keys, values in kept]
        lengths = prompt.lengths.to(prompt.data.device)
        return MineState(rows, prompt.mask.repeat_interleave(beams, 0), lengths.repeat_interleave(beams), room, beams)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`."""
        assert isinstance(state, MineState)
        x = self.embedding(tokens)[:, None] + self.positions(state.places)[:, None]  # (R, 1, D)
        state.places = state.places + 1
        state.real = F.pad(state.real, (0, 1), value=True)
        for number, block in enumerate(self.blocks):
            x, state.past[number] = block(x, state.real[:, None, None], state.past[number])
        return self.norm(x)[:, 0]

    def _read(self, tokens: Padded) -> tuple[Tensor, list[Kept]]:
        """(B, S) ids -> (B, S, D) states, and what each block keeps of them."""
        steps = tokens.data.shape[1]
        if steps > self.max_positions:
            raise ValueError(f"{steps} tokens, but there are positions for {self.max_positions}: raise max_positions")
        place = torch.arange(steps, device=tokens.data.device)
        x, kept = self.embedding(tokens.data) + self.positions(place), []
        for block in self.blocks:
            x, own = block(x, place[:, None] >= place)  # (S, S), True may be read
            kept.append(own)
        return self.norm(x), kept


Kept = tuple[Tensor, Tensor]
"""Keys and values of an attention, (R, heads, S, D / heads) each."""


class MineState(DecoderState):
    """What decoding carries from step to step.

    Args:
        past: of each block, what is kept of the tokens so far.
        real: (R, S) which of these are no padding.
        places: (R,) int64 where the next token stands.
        room: steps that are left for each of the B samples.
        beams: rows of a sample.
    """

    def __init__(self, past: list[Kept], real: Tensor, places: Tensor, room: list[int], beams: int) -> None:
        self.past, self.real, self.places, self.beams = past, real, places, beams
        self.room: list[int] | None = room

    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64, in that order; those of a sample stand together."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]
        self.real, self.places = self.real[rows], self.places[rows]
        if self.room:
            self.room = [self.room[row] for row in (rows[:: self.beams] // self.beams).tolist()]


class MineBlock(nn.Module):
    """Attention to the past and a feed-forward, each added to its normed input."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, before: Kept | None = None) -> tuple[Tensor, Kept]:
        """(B, S, D) states, what they may read, what is kept of steps before -> (B, S, D), and what is to be kept."""
        inner = self.first(x)
        query, keys, values = (self._heads(layer(inner)) for layer in (self.query, self.key, self.value))
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        read = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.second(x))))), (keys, values)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, heads, S, D / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
