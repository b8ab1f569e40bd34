"""Transformer over units and codes that writes codec streams: all but the first at once (VALL-E's second model), or all
of them step by step (MusicGen's patterns).

Letters: B batch, U units, P prompt frames, T frames, K streams, S steps, D model dim, V codes of a stream.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.activations import Activation
from ..layers.alike import in_turn
from ..layers.decoder_only import PromptedCache, SelfAttentionLayer
from ..layers.positions import SinusoidalPositions
from ..layers.transformer import LayerSettings
from ..limits import at_least
from ..losses.cross_entropy import token_loss
from ..roles import StreamLM
from ..search import SearchOptions
from ..search.generate import draw
from ..types import Loss, Padded, Statistic
from .patterns import PATTERNS, Pattern


class TransformerStreamLM(StreamLM):
    """Pre-norm Transformer over [units; acoustic prompt; target], each with positions of its own from 0 and an
    embedding that says which of the three it is. A frame is the sum of the embeddings of its streams.

    `pattern=ar_nar` (VALL-E, section 4.2.2; MSLM-S2ST, section 3): the first stream is given. At stage j the target is
    the sum of its streams before j, every step sees every other, all norms follow the stage, and stream j comes out at
    once, through the embeddings of stream j. One stage is learned at a time; serving takes K - 1 passes.

    `pattern=delay|parallel|flat`: all streams are written step by step behind units and prompt, which see each other;
    each stream has an output layer. How many frames there are is said.

    Losses: `streams`, cross entropy counted in codes. Statistics: `stream_J`, the accuracy of each stream that is
    learned, counted from 1.

    Args:
        num_units: semantic units.
        codebook_size: V.
        num_streams: K, of the codec.
        pattern: who writes which stream when.
        dim: D.
        num_heads, num_kv_heads, ffn_dim, num_layers, ffn, activation, dropout, attention_dropout, activation_dropout:
            as in `TransformerSpeechLM`.
        unit_steps: steps that a unit counts: codec frames to a unit, so that it has the position of the frames that
            speak it.
    """

    paper = "MSLM-S2ST, arXiv 2403.12408; VALL-E, arXiv 2301.02111; MusicGen, arXiv 2306.05284"

    def __init__(
        self,
        num_units: int,
        codebook_size: int,
        num_streams: int = 8,
        pattern: Literal["ar_nar", "delay", "parallel", "flat"] = "ar_nar",
        dim: int = 1024,
        num_heads: int = 16,
        num_kv_heads: int | None = None,
        ffn_dim: int = 4096,
        num_layers: int = 12,
        ffn: Literal["plain", "gated"] = "plain",
        activation: Activation = "relu",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        unit_steps: int = 1,
    ) -> None:
        super().__init__()
        if pattern not in ("ar_nar", *PATTERNS):
            raise ValueError(f"pattern must be ar_nar, delay, parallel or flat; got {pattern!r}")
        if num_streams < 2 or num_units < 1 or codebook_size < 1 or num_layers < 1:
            raise ValueError(
                "a stream LM needs at least two streams, and a unit, a code and a layer; got "
                f"num_streams={num_streams}, num_units={num_units}, codebook_size={codebook_size}, "
                f"num_layers={num_layers}"
            )
        at_least(1, unit_steps=unit_steps)
        self.num_units, self.codebook_size, self.num_streams = num_units, codebook_size, num_streams
        self.pattern, self.dim, self.unit_steps = pattern, dim, unit_steps
        self.given_streams = 1 if pattern == "ar_nar" else 0
        self.layout = None if pattern == "ar_nar" else Pattern.named(pattern, num_streams)
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
        self.unit_embedding = nn.Embedding(num_units, dim)
        # Rows of one stream below those of the one before. A step that writes nothing of a stream has a row of its own.
        self.rows = codebook_size + (0 if self.layout is None else 1)
        self.code_embedding = nn.Embedding(num_streams * self.rows, dim)
        self.segment_embedding = nn.Embedding(3, dim)
        self.positions = SinusoidalPositions(dim)
        self.stage_embedding = nn.Embedding(num_streams - 1, dim) if self.layout is None else None
        condition = dim if self.layout is None else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(SelfAttentionLayer(settings, condition) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.heads = None if self.layout is None else nn.Linear(dim, num_streams * codebook_size, bias=False)
        for table in (self.unit_embedding, self.code_embedding, self.segment_embedding):
            nn.init.normal_(table.weight, std=dim**-0.5)
        if self.heads is not None:
            nn.init.normal_(self.heads.weight, std=dim**-0.5)

    def forward(
        self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor | None = None
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses, and accuracies by stream.

        Args:
            units: (B, U).
            codes: (B, T, K), the target.
            prompt: (B, P, K) frames of the voice; P may be 0.
            stage: (B,) int64, with `ar_nar` the stream that each row learns, 1..K-1 counted from 0; None draws one for
                each row.

        Raises:
            ValueError: codes of another number of streams.
        """
        self._require_streams(codes, "codes")
        self._require_streams(prompt, "the prompt")
        if self.layout is not None:
            return self._learn_steps(self.layout, units, codes, prompt)
        if stage is None:
            stage = torch.randint(1, self.num_streams, (len(codes),), device=codes.device)
        states = self._stage_states(units, codes, prompt, stage)
        # Each row through the table of its own stage.
        tables = self.code_embedding.weight.view(self.num_streams, self.codebook_size, self.dim)[stage]
        logits = codes.with_data(states @ tables.transpose(1, 2))
        labels = codes.data.gather(2, stage[:, None, None].expand(-1, codes.data.shape[1], 1))[..., 0]
        mask = codes.mask
        loss, _ = token_loss(_as_it_is, logits, labels, mask=mask)
        right = (logits.data.argmax(-1) == labels) & mask
        accuracies = {}
        for j in range(1, self.num_streams):
            rows = (stage == j)[:, None]
            accuracies[f"stream_{j + 1}"] = Statistic((right & rows).sum().float(), (mask & rows).sum())
        return {"streams": loss}, accuracies

    @torch.no_grad()
    def generate(
        self,
        units: Padded,
        prompt: Padded,
        first: Padded | None = None,
        *,
        frames: Tensor | None = None,
        search: SearchOptions | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Padded:
        """Write the streams.

        Args:
            units: (B, U).
            prompt: (B, P, K).
            first: with `ar_nar`, (B, T) codes of the first stream.
            frames: otherwise, (B,) int64 how many there are to be.
            search: otherwise, greedy or sampling, with its temperature, `top_k` and `top_p`; None: greedy.
            generator: random numbers for sampling.

        Returns:
            (B, T, K) codes, 0 beyond the lengths. A row does not depend on the others.

        Raises:
            ValueError: what is not told, or a prompt of another number of streams.
        """
        if options:
            raise TypeError(f"{type(self).__name__}.generate has no option {', '.join(options)}")
        self._require_streams(prompt, "the prompt")
        if self.training:
            raise RuntimeError("generation has no dropout: call eval() first")
        if self.layout is not None:
            if frames is None:
                raise ValueError(f"pattern={self.pattern} is told how many frames there are to be: give `frames`")
            return self._write_steps(self.layout, units, prompt, frames, search or SearchOptions("greedy"), generator)
        if first is None:
            raise ValueError("pattern=ar_nar writes all streams but the first: give `first`")
        codes = F.pad(first.data[..., None], (0, self.num_streams - 1))
        for j in range(1, self.num_streams):
            stage = torch.full((len(first),), j, device=first.device)
            states = self._stage_states(units, first.with_data(codes), prompt, stage)
            codes[:, :, j] = (states @ self._table(j).T).argmax(-1)
        return first.with_data(codes).zeroed()

    # All but the first at once

    def _stage_states(self, units: Padded, codes: Padded, prompt: Padded, stage: Tensor) -> Tensor:
        """(B, T, D) states of the target at the stage of each row, which sees the streams before it alone."""
        assert self.stage_embedding is not None
        target = codes.data.new_zeros(*codes.data.shape[:2], self.dim, dtype=self.code_embedding.weight.dtype)
        for k in range(self.num_streams - 1):
            target = target + self._embed(codes.data[:, :, k], k) * (stage > k)[:, None, None]
        given, seen = self._given(units, prompt)
        x = torch.cat([given, self._placed(target, 2)], 1)
        mask = torch.cat([seen, codes.mask], 1)
        # A row without anything sees its first step: not every kernel gives a number for a query without keys.
        mask = mask | (~mask.any(1, keepdim=True) & (torch.arange(mask.shape[1], device=mask.device) == 0))
        x = self.dropout(x)
        condition = self.stage_embedding(stage - 1)
        mask = mask[:, None, None]
        for layer in in_turn(self.layers):
            x = layer(x, None, mask, False, condition)
        return self.norm(x[:, given.shape[1] :])

    def _given(self, units: Padded, prompt: Padded) -> tuple[Tensor, Tensor]:
        """Units and prompt one behind the other, (B, U + P, D), and which of that is real."""
        frames = prompt.data.new_zeros(*prompt.data.shape[:2], self.dim, dtype=self.code_embedding.weight.dtype)
        for k in range(self.num_streams):
            frames = frames + self._embed(prompt.data[:, :, k], k)
        both = [self._placed(self.unit_embedding(units.data), 0, stride=self.unit_steps), self._placed(frames, 1)]
        return torch.cat(both, 1), torch.cat([units.mask, prompt.mask], 1)

    def _embed(self, codes: Tensor, k: int) -> Tensor:
        """(B, T) codes of stream k -> (B, T, D)."""
        return self.code_embedding(codes + k * self.rows)

    def _placed(self, x: Tensor, segment: int, offset: int = 0, stride: int = 1) -> Tensor:
        """(B, T, D) with positions, and which segment it is."""
        x = x * self.dim**0.5 + self.segment_embedding.weight[segment] * self.dim**0.5
        return x + self.positions.table(offset, stride * x.shape[1], x)[::stride]

    def _table(self, k: int) -> Tensor:
        """(V, D) embeddings of the codes of stream k."""
        return self.code_embedding.weight[k * self.rows : k * self.rows + self.codebook_size]

    # All, step by step

    def _learn_steps(
        self, layout: Pattern, units: Padded, codes: Padded, prompt: Padded
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        given, lengths = self._compact(units, prompt)
        frames = codes.data.shape[1]
        # What a step does not write, and all that is padding, are read as the same row: with delays, a step writes a
        # frame behind the last beside one that is real.
        laid = layout.lay(codes.data.masked_fill(~codes.mask[..., None], self.codebook_size), self.codebook_size)
        before = F.pad(laid, (0, 0, 1, 0), value=self.codebook_size)[:, :-1]
        x = torch.cat([given, self._step_embedding(before)], 1)
        width, size = given.shape[1], x.shape[1]
        place = torch.arange(size, device=x.device)
        real = (place >= width) | (place < lengths[:, None])
        seen = (place < width) | (place <= place[:, None])
        mask = (real[:, None] & seen)[:, None]
        # Padding of the prompt sees itself alone: what comes out of it is not read.
        mask = mask | (place == place[:, None])
        x = self.dropout(x)
        for layer in in_turn(self.layers):
            x = layer(x, None, mask, False)
        states = self.norm(x[:, width:])
        losses, accuracies = [], {}
        for k in range(self.num_streams):
            some = codes.with_data(layout.of_stream(states, k, frames))
            loss, right = token_loss(_as_it_is, some, codes.data[:, :, k], mask=codes.mask, weight=self._head(k))
            losses.append(loss)
            accuracies[f"stream_{k + 1}"] = right
        return {"streams": sum(losses[1:], losses[0])}, accuracies

    def _write_steps(
        self,
        layout: Pattern,
        units: Padded,
        prompt: Padded,
        frames: Tensor,
        search: SearchOptions,
        generator: torch.Generator | None,
    ) -> Padded:
        if search.method == "beam":
            raise ValueError("streams are written greedily or sampled; set the method of the search to one of these")
        given, lengths = self._compact(units, prompt)
        counts = frames.tolist()
        longest = max(counts, default=0)
        total = layout.steps(longest)
        state = self._read(given, lengths)
        state.reserve(total)
        laid = units.data.new_full((len(units), total, self.num_streams), self.codebook_size)
        before = laid.new_full((len(units), 1, self.num_streams), self.codebook_size)
        ends = frames.to(laid.device)
        for step in range(total):
            x = self._step_embedding(before, step)
            state.begin()
            for number, layer in enumerate(self._layers()):
                x = layer.step(x, state, number)
            state.advance()
            x = self.norm(x[:, 0])
            for k in layout.writes(step, longest):
                logits = F.linear(x, self._head(k)).float()
                chosen = (
                    draw(logits, search, generator) if search.method == "sample" else logits.argmax(-1, keepdim=True)
                )
                frame = (step - layout.offsets[k]) // layout.stride
                laid[:, step, k] = chosen[:, 0].masked_fill(ends <= frame, self.codebook_size)
            before = laid[:, step : step + 1]
        codes = layout.gather(laid, longest)
        return Padded(codes, ends).zeroed()

    @torch.no_grad()
    def _read(self, given: Tensor, lengths: Tensor) -> PromptedCache:
        kept: list[tuple[Tensor, Tensor]] = []
        mask = (torch.arange(given.shape[1], device=given.device) < lengths.clamp(min=1)[:, None])[:, None, None]
        for layer in self._layers():
            given = layer(given, None, mask, False, kept=kept)
        return PromptedCache(kept, lengths, 1)

    def _compact(self, units: Padded, prompt: Padded) -> tuple[Tensor, Tensor]:
        """Units and prompt with the padding of both behind them: (B, U + P, D), and (B,) how many of these are real."""
        given, real = self._given(units, prompt)
        order = (~real).to(torch.int8).sort(dim=1, stable=True).indices
        return given.gather(1, order[..., None].expand_as(given)), real.sum(1)

    def _step_embedding(self, codes: Tensor, first: int = 0) -> Tensor:
        """(B, S, K) what the steps before wrote -> (B, S, D)."""
        streams = torch.arange(self.num_streams, device=codes.device) * self.rows
        return self._placed(self.code_embedding(codes + streams).sum(2), 2, first)

    def _head(self, k: int) -> Tensor:
        """(V, D) output layer of stream k."""
        assert self.heads is not None
        return self.heads.weight[k * self.codebook_size : (k + 1) * self.codebook_size]

    def _layers(self) -> list[SelfAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, SelfAttentionLayer)]

    def _require_streams(self, codes: Padded, what: str) -> None:
        if codes.data.dim() != 3 or codes.data.shape[2] != self.num_streams:
            raise ValueError(
                f"{what}: (B, T, {self.num_streams}) is needed, all streams (stream_lm.num_streams); got "
                f"{tuple(codes.data.shape)}"
            )


def _as_it_is(logits: Tensor) -> Tensor:
    return logits
