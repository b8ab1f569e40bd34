"""Decoder-only Transformer over a joint vocabulary: the speech LM of MSLM-S2ST, and the acoustic LM of VALL-E.

Letters: B batch, S tokens, P tokens of a prompt, D model dim, V vocabulary, K beams, R = B x K rows, d head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..joint_vocabulary import PAD, JointVocabulary
from ..layers.activations import Activation
from ..layers.alike import in_turn
from ..layers.attention import key_mask
from ..layers.decoder_only import PromptedCache, SelfAttentionLayer, prompt_mask
from ..layers.linear import project
from ..layers.lora import matrix_of
from ..layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from ..layers.transformer import LayerSettings
from ..roles import DecoderState, SpeechLM
from ..types import Padded
from .segments import SegmentPositions


class TransformerSpeechLM(SpeechLM):
    """Pre-norm Transformer that continues sequences of units and codes (MSLM-S2ST, section 3; VALL-E, section 4.2.1).

    The defaults are VALL-E's: 12 layers, 16 heads, width 1024, FFN 4096.

    Args:
        num_units: semantic units.
        codebook_size: codes of the codec stream that it writes; 0: it writes none.
        languages: codes of the languages; in any order.
        specials: tokens of the templates besides `<pad>`, `<bos>` and `<eos>`; in any order.
        dim: D.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values (grouped-query attention); null: as many as of the queries.
        ffn_dim: inner width of the FFN.
        num_layers: depth.
        positions: `sinusoidal` and `rotary` take any number of steps, `learned` the `max_positions` they have.
            `segments`: sinusoidal, and counted anew in each run of units or codes (`SegmentPositions`).
        max_positions: most tokens of a sequence, prompt included; null: any. Needed for learned positions.
        mask: `causal`: each token sees those before it. `prefix`: those of the prompt also see each other.
        ffn: `plain`, or `gated` (SwiGLU with `activation: silu`).
        activation: of the FFN.
        dropout: on embeddings, and on what attention and FFN add.
        attention_dropout: on attention weights.
        activation_dropout: inside the FFN.
        tie_output: the output layer is the embedding matrix.
        scale_embeddings: multiply embeddings by sqrt(D).
        unit_steps: with positions of `segments`, steps that a unit counts: codec frames to a unit.
    """

    paper = "MSLM-S2ST, arXiv 2403.12408; VALL-E, arXiv 2301.02111"

    def __init__(
        self,
        num_units: int,
        codebook_size: int,
        languages: Sequence[str],
        specials: Sequence[str] = ("<trans>", "<gen>"),
        dim: int = 1024,
        num_heads: int = 16,
        num_kv_heads: int | None = None,
        ffn_dim: int = 4096,
        num_layers: int = 12,
        positions: Literal["rotary", "sinusoidal", "learned", "segments"] = "sinusoidal",
        max_positions: int | None = None,
        mask: Literal["causal", "prefix"] = "causal",
        ffn: Literal["plain", "gated"] = "plain",
        activation: Activation = "relu",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        tie_output: bool = True,
        scale_embeddings: bool = True,
        unit_steps: int = 1,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"a speech LM needs at least one layer; got num_layers={num_layers}")
        if unit_steps < 1:
            raise ValueError(f"unit_steps={unit_steps}: a unit counts at least one step")
        for name, value, known in (
            ("positions", positions, ("rotary", "sinusoidal", "learned", "segments")),
            ("mask", mask, ("causal", "prefix")),
            ("ffn", ffn, ("plain", "gated")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}; got {value!r}")
        self.vocabulary = JointVocabulary(num_units, codebook_size, languages, specials)
        self.vocab_size = self.vocabulary.size
        self.dim, self.max_positions, self.mask, self.unit_steps = dim, max_positions, mask, unit_steps
        settings = LayerSettings(
            dim,
            num_heads,
            ffn_dim,
            dropout,
            attention_dropout,
            activation_dropout,
            activation=activation,
            num_kv_heads=num_kv_heads,
            gated=ffn == "gated",
        )
        self.embedding = nn.Embedding(self.vocab_size, dim, padding_idx=PAD)
        self.scale = dim**0.5 if scale_embeddings else 1.0
        if positions == "learned":
            if max_positions is None:
                raise ValueError("learned positions need a number of steps: set max_positions")
            self.positions: LearnedPositions | SinusoidalPositions | None = LearnedPositions(dim, max_positions)
        else:
            self.positions = SinusoidalPositions(dim) if positions == "sinusoidal" else None
        self.rotary = RotaryPositions(dim // num_heads) if positions == "rotary" else None
        self.segments = SegmentPositions(dim, self.vocabulary, unit_steps) if positions == "segments" else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(SelfAttentionLayer(settings) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        # No second name for a tied matrix: a checkpoint then holds it once.
        self.output = None if tie_output else nn.Linear(dim, self.vocab_size, bias=False)
        # With tied output weights this gives logits of unit size over normalised states.
        for weight in [self.embedding.weight] if self.output is None else [self.embedding.weight, self.output.weight]:
            nn.init.normal_(weight, std=dim**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()

    def decode(self, tokens: Padded, prompt: Tensor | None = None) -> Padded:
        """Teacher forcing: (B, S) ids -> (B, S, D) states after the final norm; state i predicts token i + 1.

        Args:
            tokens: ids.
            prompt: (B,) int64, with `mask=prefix` how many tokens of each row see each other; None: none do.

        Raises:
            ValueError: more tokens than there are positions for.
        """
        x, rotation = self._enter(tokens)
        mask, causal = None, True
        if self.mask == "prefix" and prompt is not None:
            mask, causal = prompt_mask(x.shape[1], prompt.to(x.device), tokens.lengths), False
        for layer in in_turn(self.layers):
            x = layer(x, rotation, mask, causal)
        return tokens.with_data(self.norm(x))

    def project(self, states: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits."""
        return project(self.embedding if self.output is None else self.output, states)

    @property
    def output_weight(self) -> Tensor:
        """(V, D): `project(x)` is `x @ output_weight.T`."""
        return matrix_of(self.embedding if self.output is None else self.output)

    @property
    def tied_output(self) -> nn.Embedding | None:
        """The embedding that is also the output layer."""
        return self.embedding if self.output is None else None

    @torch.no_grad()
    def start(self, prompt: Padded, beams: int = 1) -> PromptedCache:
        """Prepare cached decoding: reads (B, P) ids in one pass, once per sample, for B x beams rows.

        Raises:
            ValueError: a row with more tokens than there are positions for, no beam, or a model in training.
        """
        if beams < 1:
            raise ValueError(f"decoding needs at least one beam; got beams={beams}")
        self._refuse_training()
        kept: list[tuple[Tensor, Tensor]] = []
        if prompt.data.shape[1]:
            x, rotation = self._enter(prompt)
            whole = self.mask == "prefix"
            for layer in self.layers:
                x = layer(x, rotation, key_mask(prompt) if whole else None, not whole, kept=kept)
        else:
            attention = self._layers()[0].attention
            empty = self.embedding.weight.new_zeros(
                len(prompt), attention.num_kv_heads, 0, self.dim // attention.num_heads
            )
            kept = [(empty, empty)] * len(self.layers)
        state = PromptedCache(kept, prompt.lengths, beams, self.max_positions)
        if self.segments is not None:
            state.trail = self.segments.after(prompt, beams)
        return state

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) ids of the newest token of each row -> (R, D) states after the final norm; advances `state`."""
        if not isinstance(state, PromptedCache):
            raise TypeError(f"state must come from this model's start(); got {type(state).__name__}")
        if tokens.shape != (state.rows,):
            raise ValueError(f"one token for each of the {state.rows} rows is needed; got {tuple(tokens.shape)}")
        self._refuse_training()
        where, last = state.begin()
        x = (self.embedding(tokens) * self.scale).view(-1, state.beams, self.dim)
        rotation = None if self.rotary is None else self.rotary.at(where, last, x)
        if self.positions is not None:
            x = x + self.positions.at(where, last, x)[:, None]
        if self.segments is not None:
            assert state.trail is not None
            added, state.trail = self.segments.step(tokens, state.trail, last, x)
            x = x + added.view_as(x)
        for number, layer in enumerate(self._layers()):
            x = layer.step(x, state, number, rotation)
        state.advance()
        return self.norm(x).flatten(0, 1)

    def _enter(self, tokens: Padded) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Embeddings with positions (B, S, D), and the rotation of rotary ones."""
        steps = tokens.data.shape[1]
        if self.max_positions is not None and steps > self.max_positions:
            raise ValueError(
                f"a sequence of {steps} tokens; this model has positions for {self.max_positions}: shorten the prompt, "
                "or raise speech_lm.max_positions"
            )
        x = self.embedding(tokens.data) * self.scale
        if self.positions is not None:
            x = self.positions(x)
        if self.segments is not None:
            x = x + self.segments(tokens.data, x)
        return self.dropout(x), None if self.rotary is None else self.rotary(steps, x)

    def _layers(self) -> list[SelfAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, SelfAttentionLayer)]

    def _refuse_training(self) -> None:
        if self.training:
            raise RuntimeError("cached decoding has no dropout: call eval() first")
