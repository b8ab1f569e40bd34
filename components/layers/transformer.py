"""Pre-norm Transformer stacks: an encoder over states, and an autoregressive decoder with its own embeddings.

The decoder is used for text (TransformerSeq2Seq) and for units (autoregressive text-to-unit); `components.search`
drives it through `start`, `step` and `project`.

Letters: B batch, T memory steps, S tokens, D model dim, V vocabulary, K beams, R = B x K rows, L layers, H heads, d
head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..roles import DecoderState
from ..types import Padded
from .activations import ACTIVATIONS, Activation
from .attention import MultiHeadAttention, key_mask
from .layer_drop import run_layers
from .linear import activated, after, project
from .lora import matrix_of
from .positions import LearnedPositions, SinusoidalPositions

_LARGE = 2**24  # elements of a table whose gradient is worth waiting for


@dataclass(frozen=True)
class LayerSettings:
    """What the layers of a stack have in common.

    Attributes:
        dim: D.
        num_heads: H.
        ffn_dim: inner width of the FFN.
        dropout: on the input of the stack, and on what attention adds.
        attention_dropout: on attention weights.
        activation_dropout: inside the FFN.
        ffn_dropout: on what the FFN adds; None: as `dropout`.
        activation: in the FFN.
        layerdrop: probability of skipping a layer while training.
        key_bias: see MultiHeadAttention.
        num_kv_heads: of self-attention, see MultiHeadAttention; for `SelfAttentionLayer` alone.
        gated: the FFN is gated (`GatedFeedForward`).
    """

    dim: int
    num_heads: int
    ffn_dim: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    ffn_dropout: float | None = None
    activation: Activation = "relu"
    layerdrop: float = 0.0
    key_bias: bool = True
    num_kv_heads: int | None = None
    gated: bool = False

    def attention(self, memory: bool = False) -> MultiHeadAttention:
        """Self-attention, or attention over a memory of width D."""
        return MultiHeadAttention(
            self.dim,
            self.num_heads,
            self.attention_dropout,
            memory_dim=self.dim if memory else None,
            key_bias=self.key_bias,
            num_kv_heads=None if memory else self.num_kv_heads,
        )

    def ffn(self) -> FeedForward | GatedFeedForward:
        kind = GatedFeedForward if self.gated else FeedForward
        return kind(self.dim, self.ffn_dim, self.activation, self.activation_dropout)

    def dropouts(self) -> tuple[nn.Dropout, nn.Dropout]:
        """On what attention adds, and on what the FFN adds."""
        return nn.Dropout(self.dropout), nn.Dropout(self.dropout if self.ffn_dropout is None else self.ffn_dropout)


class FeedForward(nn.Module):
    """Two linear layers with an activation, and dropout behind the activation (`inner_dropout`)."""

    def __init__(self, dim: int, ffn_dim: int, activation: Activation = "relu", inner_dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.inner = nn.Linear(dim, ffn_dim)
        self.outer = nn.Linear(ffn_dim, dim)
        self.activation = ACTIVATIONS[activation]
        self.inner_dropout = nn.Dropout(inner_dropout)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if torch.is_grad_enabled() and not (self.training and self.inner_dropout.p):
            return after(self.activation, self.outer, self.inner(x))
        return self.outer(self.inner_dropout(activated(self.inner, x, self.activation)))


class GatedFeedForward(nn.Module):
    """`outer(activation(gate(x)) * inner(x))`, without biases (Shazeer 2020, arXiv 2002.05202; SwiGLU with silu). As
    many parameters as a plain one take `ffn_dim` two thirds as wide."""

    fused: ClassVar = {"inner": ("gate", "value")}

    def __init__(self, dim: int, ffn_dim: int, activation: Activation = "silu", inner_dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        self.inner = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.outer = nn.Linear(ffn_dim, dim, bias=False)
        self.activation = ACTIVATIONS[activation]
        self.inner_dropout = nn.Dropout(inner_dropout)
        for block in (*self.inner.weight.detach().chunk(2), self.outer.weight):
            nn.init.xavier_uniform_(block)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.outer(self.inner_dropout(self.activation(gate) * value))


class EncoderLayer(nn.Module):
    """x + SelfAttention(LN(x)), then x + FFN(LN(x)), each branch behind dropout."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(settings.dim)
        self.self_attention = settings.attention()
        self.ffn_norm = nn.LayerNorm(settings.dim)
        self.ffn = settings.ffn()
        self.dropout, self.ffn_dropout = settings.dropouts()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), mask (B, 1, 1, T) -> (B, T, D)."""
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), mask=mask))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the memory, FFN; pre-norm, each branch behind dropout."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(settings.dim)
        self.self_attention = settings.attention()
        self.memory_attention_norm = nn.LayerNorm(settings.dim)
        self.memory_attention = settings.attention(memory=True)
        self.ffn_norm = nn.LayerNorm(settings.dim)
        self.ffn = settings.ffn()
        self.dropout, self.ffn_dropout = settings.dropouts()

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """(B, S, D), memory (B, T, D), memory_mask (B, 1, 1, T) -> (B, S, D). Right padding of x needs no mask."""
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), causal=True))
        x = x + self.dropout(self.memory_attention(self.memory_attention_norm(x), memory, memory_mask))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)))

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) memory -> its keys and values, each (B, H, T, d), for `step`."""
        return self.memory_attention.memory_heads(memory)

    def step(self, x: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """(B, K, D) newest step of the K beams of each sample -> (B, K, D); to attention the beams are query steps."""
        attention = self.self_attention
        query, keys_values = attention.qkv(self.self_attention_norm(x)).split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        keys, values = cache.append(layer, keys_values)
        x = x + attention.attend(attention.heads(query), attention.heads(keys), attention.heads(values), cache.mask)
        attention = self.memory_attention
        query = attention.heads(attention.q(self.memory_attention_norm(x)))
        x = x + attention.attend(query, *cache.memory[layer], cache.memory_mask)
        return x + self.ffn(self.ffn_norm(x))


class TransformerEncoder(nn.Module):
    """Encoder layers and a final norm over states; no embeddings and no positions."""

    def __init__(self, num_layers: int, settings: LayerSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(num_layers))
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.layerdrop = settings.layerdrop

    def forward(self, states: Padded) -> Padded:
        """(B, T, D) -> (B, T, D) after the final norm; padded steps hold no meaning."""
        drop = self.layerdrop if self.training else 0.0
        x = run_layers(self.layers, self.dropout(states.data), key_mask(states), drop=drop)
        return states.with_data(self.norm(x))


class TokenEmbedding(nn.Module):
    """Ids to scaled embeddings plus positions, sinusoidal or (`max_positions` of them) learned; no dropout."""

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        pad_id: int,
        scale: bool = True,
        position_start: int = 2,
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id must lie in 0..{vocab_size - 1} (vocab_size={vocab_size}); got {pad_id}")
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.scale = dim**0.5 if scale else 1.0
        self.positions = (
            SinusoidalPositions(dim, position_start) if max_positions is None else LearnedPositions(dim, max_positions)
        )
        # With tied output weights this gives logits of unit size over normalised states.
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        with torch.no_grad():
            self.embedding.weight[pad_id].zero_()

    def forward(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """(B, S) ids of steps offset .. offset + S - 1 -> (B, S, D)."""
        rows = self.embedding(tokens)
        if rows.requires_grad and self.embedding.weight.numel() >= _LARGE:
            _postpone(rows)
        return self.positions(rows * self.scale, offset)


def _postpone(rows: Tensor) -> None:
    """Let the backward pass come to the lookup last. It gives a matrix as large as the table: behind the encoder's
    layers it comes when what these kept is gone, and not on top of it. Not among processes, where that matrix would
    then be the last to travel."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    place = getattr(rows.grad_fn, "_set_sequence_nr", None)  # not of torch's public interface
    if alone and place is not None:
        place(0)


class DecoderCache(DecoderState):
    """Keys and values of the tokens so far, and of the memory.

    Beams share. Keys and values of the memory stand once per sample. Those of the tokens stay where they were written
    when beams are reordered: each beam attends over what all beams of its sample wrote, under a mask that says which of
    it is its own past. Moving that mask is far cheaper than moving keys and values, and the extra products are few.

    Args:
        memory: for each layer, keys and values (B, H, T, d).
        memory_mask: (B, 1, 1, T) bool.
        beams: K, rows per sample; the rows of a sample stand together.
    """

    def __init__(self, memory: list[tuple[Tensor, Tensor]], memory_mask: Tensor, beams: int) -> None:
        self.memory = memory
        self.memory_mask = memory_mask
        self.beams = beams
        self.length = 0
        batch, heads, _, width = memory[0][0].shape
        # (L, 2, B, steps, K, D): what a sample has written so far is contiguous. Grows by doubling.
        self._cache = memory[0][0].new_empty(len(memory), 2, batch, 16, beams, heads * width)
        # (B, K, steps, K): whether the beam's past at that step is what beam k wrote. Each begins with its own.
        self._own = torch.eye(beams, dtype=torch.bool, device=memory_mask.device)
        self._past = self._own[:, None].repeat(batch, 1, 16, 1)

    @property
    def rows(self) -> int:
        return self._cache.shape[2] * self.beams

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, K, S x K) bool: what each beam may attend to, its newest step included; None: all."""
        if self.beams == 1:
            return None
        return self._past[:, :, : self.length + 1].flatten(2)[:, None]

    def append(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, 2D) of the newest step; return all keys and all values of the layer, each (B, S x K, D)."""
        cache = self._cache[layer]
        cache[:, :, self.length] = keys_values.unflatten(-1, (2, -1)).movedim(2, 0)
        keys, values = cache[:, :, : self.length + 1].flatten(2, 3)
        return keys, values

    def advance(self) -> None:
        """Call once all layers have appended."""
        self.length += 1
        if self.length == self._cache.shape[3]:
            layers, two, batch, steps, beams, dim = self._cache.shape
            grown = self._cache.new_empty(layers, two, batch, 2 * steps, beams, dim)
            grown[:, :, :, :steps] = self._cache
            self._cache = grown
            self._past = torch.cat([self._past, self._own[:, None].expand(batch, beams, steps, beams)], dim=2)

    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64. The rows of one sample stay together and samples keep their order; a sample is
        kept or dropped whole, so keys and values move only when a sample leaves."""
        if rows.shape[0] != self.rows:
            samples = rows[:: self.beams] // self.beams
            self.memory = [(key[samples], value[samples]) for key, value in self.memory]
            self.memory_mask = self.memory_mask[samples]
            self._cache = self._cache[:, :, samples]
        self._past = self._past.flatten(0, 1)[rows].unflatten(0, (-1, self.beams))
        self._past[:, :, self.length :] = self._own[:, None]


class TransformerDecoder(nn.Module):
    """Autoregressive decoder over (B, T, D) memory: embeddings, decoder layers, final norm, output layer.

    Args:
        num_layers: at least 1.
        settings: of the layers; its dropout is also that on embeddings.
        vocab_size: rows of the embedding and of the output layer.
        pad_id: id whose embedding stays zero.
        tie_output: the output layer is the embedding matrix.
        scale_embeddings: multiply embeddings by sqrt(D).
        position_start: see SinusoidalPositions.
        max_positions: learned positions, and so the most tokens of a sequence; None: sinusoidal ones without a limit.
    """

    def __init__(
        self,
        num_layers: int,
        settings: LayerSettings,
        vocab_size: int,
        pad_id: int,
        tie_output: bool = True,
        scale_embeddings: bool = True,
        position_start: int = 2,
        max_positions: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"a decoder needs at least one layer; got num_layers={num_layers}")
        self.dim = dim = settings.dim
        self.vocab_size = vocab_size
        self.max_positions = max_positions
        self.embed = TokenEmbedding(vocab_size, dim, pad_id, scale_embeddings, position_start, max_positions)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.layerdrop = settings.layerdrop
        # No second name for a tied matrix: a checkpoint then holds it once.
        self.output = None if tie_output else nn.Linear(dim, vocab_size, bias=False)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=dim**-0.5)

    def forward(self, memory: Padded, tokens: Padded) -> Padded:
        """Teacher forcing: (B, T, D) memory, (B, S) decoder input -> (B, S, D) states after the final norm."""
        self._check(memory)
        drop = self.layerdrop if self.training else 0.0
        x = self.dropout(self.embed(tokens.data))
        x = run_layers(self.layers, x, memory.data, key_mask(memory), drop=drop)
        return tokens.with_data(self.norm(x))

    def project(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        return project(self.embed.embedding if self.output is None else self.output, states)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): `project(x)` is `x @ output_weight.T`."""
        return matrix_of(self.embed.embedding if self.output is None else self.output)

    @property
    def tied_output(self) -> nn.Embedding | None:
        """The embedding that is also the output layer."""
        return self.embed.embedding if self.output is None else None

    @torch.no_grad()
    def start(self, memory: Padded, beams: int = 1) -> DecoderCache:
        """Prepare cached decoding of B x beams rows over (B, T, D) memory."""
        self._check(memory)
        if beams < 1:
            raise ValueError(f"decoding needs at least one beam; got beams={beams}")
        keys_values = [layer.remember(memory.data) for layer in self._layers()]
        return DecoderCache(keys_values, key_mask(memory), beams)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`."""
        if not isinstance(state, DecoderCache):
            raise TypeError(f"state must come from this decoder's start(); got {type(state).__name__}")
        if tokens.shape != (state.rows,):
            raise ValueError(f"one token for each of the {state.rows} rows is needed; got {tuple(tokens.shape)}")
        if self.training:
            raise RuntimeError("cached decoding has no dropout: call eval() first")
        x = self.embed(tokens[:, None], state.length).view(-1, state.beams, self.dim)
        for number, layer in enumerate(self._layers()):
            x = layer.step(x, state, number)
        state.advance()
        return self.norm(x).flatten(0, 1)

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def _check(self, memory: Padded) -> None:
        if memory.data.dim() != 3 or memory.data.shape[-1] != self.dim:
            raise ValueError(f"memory must be (B, T, {self.dim}), the decoder's dim; got {tuple(memory.data.shape)}")
