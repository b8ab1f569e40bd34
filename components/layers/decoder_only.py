"""Pre-norm layers of self-attention alone, causal or not, and what they keep of a prompt and of the steps behind it.

Letters: B batch, T steps, P prompt steps (padding included), D model dim, H heads, G heads of keys and values, d head
dim, K beams, R = B x K rows, L layers, C width of a condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..roles import DecoderState
from .positions import Rotation, rotate, turn
from .transformer import LayerSettings

_STEPS = 64  # behind a prompt, where nobody says how many


class AdaptiveNorm(nn.Module):
    """a(c) * LayerNorm(x) + b(c), both linear in a condition c (VALL-E, arXiv 2301.02111, section 4.2.2; AdaLN). It
    begins as a plain LayerNorm."""

    def __init__(self, dim: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.scale = nn.Linear(condition_dim, dim)
        self.shift = nn.Linear(condition_dim, dim)
        for linear, bias in ((self.scale, 1.0), (self.shift, 0.0)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.constant_(linear.bias, bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, T, D), condition (B, C) -> (B, T, D)."""
        return self.norm(x) * self.scale(condition)[:, None] + self.shift(condition)[:, None]


class SelfAttentionLayer(nn.Module):
    """x + SelfAttention(norm(x)), then x + FFN(norm(x)), each branch behind dropout.

    Args:
        settings: of the stack.
        condition_dim: C, of norms that follow a condition; None: plain LayerNorm.
    """

    def __init__(self, settings: LayerSettings, condition_dim: int | None = None) -> None:
        super().__init__()
        dim = settings.dim

        def norm() -> nn.Module:
            return nn.LayerNorm(dim) if condition_dim is None else AdaptiveNorm(dim, condition_dim)

        self.attention_norm = norm()
        self.attention = settings.attention()
        self.ffn_norm = norm()
        self.ffn = settings.ffn()
        self.dropout, self.ffn_dropout = settings.dropouts()

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = True,
        condition: Tensor | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """All steps at once.

        Args:
            x: (B, T, D).
            rotation: of rotary positions.
            mask: bool, broadcastable to (B, 1, T, T), True = may attend. Right padding behind causal steps needs none.
            causal: step t attends to steps 0..t alone (in addition to `mask`).
            condition: (B, C), where the norms follow one.
            kept: this layer's keys and values (B, G, T, d) are added to it.

        Returns:
            (B, T, D).
        """
        told = () if condition is None else (condition,)
        query, key, value = self.attention.own_heads(self.attention_norm(x, *told))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if kept is not None:
            kept.append((key, value))
        x = x + self.dropout(self.attention.attend(query, key, value, mask, causal))
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x, *told)))

    def step(self, x: Tensor, cache: PromptedCache, layer: int, rotation: Rotation | None = None) -> Tensor:
        """(B, K, D) newest step of the K beams of each sample -> (B, K, D).

        Args:
            x: of the step.
            cache: behind its `begin`.
            layer: the place of this layer.
            rotation: of rotary positions, see `turning`.
        """
        attention, rows = self.attention, x.shape[:2]
        heads, groups = attention.num_heads, attention.num_kv_heads
        state = self.attention_norm(x)
        if groups == heads:
            both = attention.qkv(state).view(*rows, 3, heads, -1)
            if rotation is not None:
                turn(both[:, :, :2], rotation)
            query, keys_values = both[:, :, 0], both[:, :, 1:]
        else:
            query = attention.q(state).view(*rows, heads, -1)
            keys_values = attention.kv(state).view(*rows, 2, groups, -1)
            if rotation is not None:
                turn(query[:, :, None], rotation)
                turn(keys_values[:, :, :1], rotation)
        keys, values = cache.append(layer, keys_values)
        query, share = query.transpose(1, 2), heads // groups
        if share > 1:  # queries that read the same keys are steps to attention, as beams are
            query = query.unflatten(1, (groups, share)).flatten(2, 3)
        context = F.scaled_dot_product_attention(query, keys, values, cache.mask(share))
        if share > 1:
            context = context.unflatten(2, (share, rows[1])).flatten(1, 2)
        x = x + attention.out(context.transpose(1, 2).reshape(x.shape))
        return x + self.ffn(self.ffn_norm(x))


class PromptedCache(DecoderState):
    """Keys and values of a prompt, once per sample, and of the steps that its beams wrote behind it.

    Steps stay where they were written when beams are reordered; a mask says which of them are the past of which beam
    (as in `transformer.DecoderCache`). Memory is taken once: `reserve` says for how many steps.

    Args:
        prompt: for each layer, keys and values (B, G, P, d), right-padded.
        lengths: (B,) int64 real steps of each prompt, at most P.
        beams: K, rows per sample; the rows of a sample stand together.

    Attributes:
        room: steps that each sample has positions for behind its prompt; None: any number.
        trail: what a model itself keeps of each row, (R, ...); it is reordered with them.
    """

    def __init__(
        self,
        prompt: Sequence[tuple[Tensor, Tensor]],
        lengths: Tensor,
        beams: int,
        max_positions: int | None = None,
    ) -> None:
        keys = prompt[0][0]
        self.beams, self.steps = beams, 0
        self.lengths = lengths.to(keys.device)
        self.trail: Tensor | None = None
        self._known = lengths.tolist() if not lengths.is_meta else [keys.shape[2]] * len(lengths)
        self.room = None if max_positions is None else [max_positions - length for length in self._known]
        self._width = keys.shape[2]
        self._plain = beams == 1 and min(self._known, default=0) == self._width
        self._prompt: Sequence[tuple[Tensor, Tensor]] | None = prompt
        self._cache = keys.new_empty(0)  # (L, B, 2, G, places, d)
        # Of the step that is being written: where it goes, and what it reads, of each layer.
        self._slots: tuple[Tensor, ...] = ()
        self._keys: tuple[Tensor, ...] = ()
        self._values: tuple[Tensor, ...] = ()
        real = torch.arange(self._width, device=keys.device) < self.lengths[:, None]
        self._own = torch.eye(beams, dtype=torch.bool, device=keys.device)
        self._past = real[:, None].expand(-1, beams, -1)  # (B, K, P + steps x K)
        self._masks: dict[int, Tensor] = {}

    @property
    def rows(self) -> int:
        return len(self.lengths) * self.beams

    @property
    def used(self) -> int:
        """Places of the cache that hold something, the step that is being written included."""
        return self._width + (self.steps + 1) * self.beams

    def reserve(self, steps: int) -> None:
        """Take the memory of so many steps behind the prompt at once, where less is there."""
        wanted = self._width + steps * self.beams
        if self._prompt is not None:
            keys = self._prompt[0][0]
            batch, heads, _, dim = keys.shape
            self._cache = keys.new_empty(len(self._prompt), batch, 2, heads, wanted, dim)
            for layer, both in enumerate(self._prompt):
                for place, values in enumerate(both):
                    self._cache[layer, :, place, :, : self._width] = values
            self._prompt = None
        elif self._cache.shape[4] < wanted:
            grown = self._cache.new_empty(*self._cache.shape[:4], wanted, self._cache.shape[5])
            grown[:, :, :, :, : self._cache.shape[4]] = self._cache
            self._cache = grown
        more = wanted - self._past.shape[2]
        if more > 0:
            own = self._own.repeat(1, more // self.beams)[None].expand(len(self._past), -1, -1)
            self._past = torch.cat([self._past, own], dim=2)

    def begin(self) -> tuple[Tensor, int]:
        """Call before the layers of a step: (B,) the position of the step in each sample, and a bound above them."""
        if self._prompt is not None or self._cache.shape[4] < self.used:
            self.reserve(max(2 * self.steps, _STEPS))
        end = self.used
        whole = self._cache[:, :, :, :, :end]
        self._slots = whole[:, :, :, :, end - self.beams :].unbind(0)
        self._keys, self._values = whole[:, :, 0].unbind(0), whole[:, :, 1].unbind(0)
        if not self._plain:
            past = self._past[:, None, :, :end]
            # Added to scores: attention would make it of a boolean mask again in each layer.
            added = torch.zeros(past.shape, dtype=self._cache.dtype, device=past.device)
            self._masks = {1: added.masked_fill_(~past, -torch.inf)}
        return self.lengths + self.steps, max(self._known, default=0) + self.steps + 1

    def mask(self, share: int) -> Tensor | None:
        """(B, 1, share x K, used) to add to scores of the step that is being written; None: all count."""
        if self._masks and share not in self._masks:
            self._masks[share] = self._masks[1].repeat(1, 1, share, 1)
        return self._masks.get(share)

    def append(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, 2, G, d) of the newest step; return all keys and values of the layer, (B, G, used, d)."""
        self._slots[layer].copy_(keys_values.permute(0, 2, 3, 1, 4))
        return self._keys[layer], self._values[layer]

    def advance(self) -> None:
        """Call once all layers have appended."""
        self.steps += 1
        self._slots = self._keys = self._values = ()
        self._masks = {}

    def reorder(self, rows: Tensor) -> None:
        """Keep rows `rows` (R',) int64. The rows of one sample stay together and samples keep their order; a sample is
        kept or dropped whole, so keys and values move only when a sample leaves."""
        if self._prompt is not None:
            self.reserve(_STEPS)
        if self.trail is not None:
            self.trail = self.trail[rows]
        if rows.shape[0] != self.rows:
            samples = rows[:: self.beams] // self.beams
            self._cache = self._cache[:, samples]
            self.lengths = self.lengths[samples]
            kept = samples.tolist()
            self._known = [self._known[sample] for sample in kept]
            if self.room is not None:
                self.room = [self.room[sample] for sample in kept]
        if self.beams > 1 or not self._plain:
            self._past = self._past.flatten(0, 1)[rows].unflatten(0, (-1, self.beams))
            written = self._width + self.steps * self.beams
            more = self._past.shape[2] - written
            if more > 0:
                self._past[:, :, written:] = self._own.repeat(1, more // self.beams)


def prompt_mask(steps: int, prompt: Tensor, lengths: Tensor) -> Tensor:
    """(B, 1, T, T) bool of a prefix mask: steps of the prompt attend to all of it, later ones to what is before them.

    Args:
        steps: T.
        prompt: (B,) int64 steps of the prompt of each row.
        lengths: (B,) int64 real steps of each row.
    """
    place = torch.arange(steps, device=prompt.device)
    inside = place < torch.minimum(prompt, lengths.to(prompt.device))[:, None]
    return (place[:, None] >= place)[None, None] | (inside[:, None, :, None] & inside[:, None, None])
