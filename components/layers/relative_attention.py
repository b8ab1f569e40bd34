"""Self-attention with relative positions. Letters: B batch, H heads, T frames, D model dim, d head dim (D / H),
W relative distances (left + right + 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .alike import each
from .attention import MultiHeadAttention
from .dropout import dropout

Position = Literal["relative_key", "relative", "none"]

# Longer inputs are attended in blocks of queries outside training: the (B, H, T, T) bias is never whole in memory.
_BLOCK_FROM, _BLOCK = 1024, 256
# On a CPU in blocks of about this many scores: some megabytes, which stay in its cache.
_SCORES = 2**20


class RelativeSelfAttention(MultiHeadAttention):
    """Self-attention of the two published Conformer kinds.

    `relative_key` (Shaw et al. 2018, arXiv 1803.02155, keys only; w2v-BERT 2.0, SeamlessM4T v2): score(i, j) =
    q_i . (k_j + e[clip(j - i, -left, right)]) / sqrt(d), the W vectors e shared by the heads. Only W products per query
    are computed and then spread over the keys; no (T, T, d) table exists.
    `relative` (Transformer-XL, Dai et al. 2019, arXiv 1901.02860, section 3.3; SeamlessM4T v1): score(i, j) =
    ((q_i + u) . k_j + (q_i + v) . W_r r[i - j]) / sqrt(d) with sinusoids r, sines at even and cosines at odd channels.

    Args:
        left, right: clipping distances of `relative_key`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position: Position = "relative_key",
        left: int = 64,
        right: int = 8,
        dropout: float = 0.0,
    ) -> None:
        if position == "relative_key" and (left < 0 or right < 0):
            raise ValueError(f"relative_key clips at distances of at least 0; got left={left}, right={right}")
        if position == "relative" and dim % 2:
            raise ValueError(f"relative positions need an even dim; got {dim}")
        super().__init__(dim, num_heads, dropout)
        self.position = position
        self.left = left
        self.right = right
        head = dim // num_heads
        if position == "relative_key":
            self.distance = nn.Parameter(torch.empty(left + right + 1, head))
            nn.init.normal_(self.distance, std=0.02)
        elif position == "relative":
            self.pos = nn.Linear(dim, dim, bias=False)
            self.bias_u = nn.Parameter(torch.empty(num_heads, head))
            self.bias_v = nn.Parameter(torch.empty(num_heads, head))
            nn.init.xavier_uniform_(self.bias_u)
            nn.init.xavier_uniform_(self.bias_v)

    def forward(self, x: Tensor, mask: Tensor | None = None, table: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attend from every frame to every frame the mask allows.

        Args:
            x: (B, T, D).
            mask: bool, broadcastable to (B, H, T, T), True = may attend; every query may attend to something.
            table: `positions(position, ...)` of T frames, made once and shared by the layers; None for `none`.
        """
        # One copy puts the frames of a head side by side for all the products below.
        projected = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        query, key, value = projected.unbind()
        if self.position == "none":
            return self.attend(query, key, value, mask)
        assert table is not None, "relative positions need their table"
        steps = x.shape[1]
        if self.position == "relative":
            distances = self.heads(self.pos(table)[None])
            spread = query + self.bias_v[:, None].to(query.dtype)  # autocast leaves sums alone
            query = query + self.bias_u[:, None].to(query.dtype)
        else:
            distances = self.distance
            spread = query
        distances = distances * query.shape[-1] ** -0.5
        if self.position == "relative_key" and _in_blocks(query, mask):
            by_distance = spread @ distances.transpose(-1, -2)
            p = self.dropout if self.training else 0.0
            context = _BlockedAttention.apply(query, key, value, by_distance, mask, self.left, p)
        elif torch.is_grad_enabled() or steps <= _BLOCK_FROM:
            context = self._block(query, spread, key, value, distances, mask, table, 0)
        else:
            blocks = []
            for start in range(0, steps, _BLOCK):
                rows = slice(start, start + _BLOCK)
                cut = mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]
                blocks.append(
                    self._block(query[:, :, rows], spread[:, :, rows], key, value, distances, cut, table, start)
                )
            context = torch.cat(blocks, dim=2)
        assert isinstance(context, Tensor)
        return self.out(context.transpose(1, 2).flatten(2))

    def _block(
        self,
        query: Tensor,
        spread: Tensor,
        key: Tensor,
        value: Tensor,
        distances: Tensor,
        mask: Tensor | None,
        table: Tensor,
        start: int,
    ) -> Tensor:
        """Attention of the queries of frames start, start + 1, ... over all frames: (B, H, rows, d)."""
        steps, rows = key.shape[2], query.shape[2]
        if self.position == "relative":
            # Row r of the table is distance T-1-r; these queries meet distances start-(T-1) .. start+rows-1.
            met = distances[:, :, steps - start - rows : 2 * steps - 1 - start]
            bias = _skew(spread @ met.transpose(-1, -2), steps)
            bias = bias.contiguous() if mask is None else bias.masked_fill(~mask, float("-inf"))
        else:
            by_distance = spread @ distances.transpose(-1, -2)
            index = table[steps - start - rows : steps - start].flip(0)
            bias = _Spread.apply(by_distance, index, mask, self.left, self.right)
        if query.device.type == "cpu" and torch.is_grad_enabled():
            # With a bias that needs a gradient the fused kernel falls back to this arithmetic with more copies.
            flat = [part.reshape(-1, *part.shape[2:]) for part in (bias, query, key, value)]
            scores = flat[0].baddbmm_(flat[1], flat[2].transpose(1, 2), alpha=query.shape[-1] ** -0.5)
            weights = dropout(scores.softmax(-1), self.dropout, self.training)
            return torch.bmm(weights, flat[3]).view(query.shape)
        return F.scaled_dot_product_attention(query, key, value, bias, dropout_p=self.dropout if self.training else 0.0)


def positions(position: Position, steps: int, like: Tensor, left: int = 64, right: int = 8) -> Tensor | None:
    """What the layers share for inputs of `steps` frames, on the device of `like` (B, T, D).

    Returns:
        `relative_key`: (T, T) int64, which of the W distance vectors query T-1-i meets at key j: a view of 2T-1
        numbers. `relative`: (2T-1, D) sinusoids of the distances T-1 (far left) to -(T-1), in the dtype of `like`.
        `none`: None.
    """
    if position == "none":
        return None
    if position == "relative_key":
        distances = torch.arange(1 - steps, steps, device=like.device).clamp(-left, right) + left
        return distances.unfold(0, steps, 1)
    dim = like.shape[-1]
    distance = torch.arange(steps - 1, -steps, -1, device=like.device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angles = distance[:, None] * rate
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


def _skew(scores: Tensor, steps: int) -> Tensor:
    """(B, H, R, T+R-1) scores by distance -> (B, H, R, T) by key: entry (a, j) is column R-1-a+j, all views."""
    rows, width = scores.shape[-2:]
    if width == 1:
        return scores
    flat = scores.flatten(-2)[..., rows - 1 : rows - 1 + rows * (width - 1)]
    return flat.unflatten(-1, (rows, width - 1))[..., :steps]


class _Spread(torch.autograd.Function):
    """(B, H, R, W) scores by clipped distance -> (B, H, R, T) by key, -inf where `mask` is False.

    The gradient is read off the diagonals instead of scattered entry by entry, which also makes it deterministic on a
    GPU. Masked entries come back with an exact zero gradient from the softmax, so the mask is not needed there.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, index: Tensor, mask: Tensor | None, left: int, right: int) -> Tensor:
        ctx.reach = left, right
        bias = scores.gather(-1, index.expand(*scores.shape[:-1], -1))
        return bias if mask is None else bias.masked_fill_(~mask, float("-inf"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        left, right = ctx.reach
        (grad,) = grads
        steps = grad.shape[-1]  # with gradients the queries are never split, so `grad` is square
        # Query i met distances -left..right at padded columns i..i+left+right: a view with rows one longer.
        padded = F.pad(grad, (left, right))
        strides = padded.stride()
        shape = (*grad.shape[:-1], left + right + 1)
        near = padded.as_strided(shape, (*strides[:-2], strides[-2] + 1, 1)).contiguous()
        # All farther keys met the clipped ends.
        if steps > left + 1:
            near[..., left + 1 :, 0] += grad[..., left + 1 :, : steps - left - 1].tril().sum(-1)
        if steps > right + 1:
            near[..., : steps - right - 1, -1] += grad[..., : steps - right - 1, right + 1 :].triu().sum(-1)
        return near, None, None, None, None


def _in_blocks(query: Tensor, mask: Tensor | None) -> bool:
    """Whether `_BlockedAttention` takes it: on a CPU in full precision, under no mask but that of padding."""
    simple = mask is None or mask.shape == (query.shape[0], 1, 1, query.shape[2])
    return query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64) and simple


@dataclass(frozen=True)
class _Block:
    """Queries `rows` of `samples` over their first `keys` keys; `mask` (n, 1, 1, keys) where some are padding."""

    samples: slice
    rows: slice
    keys: int
    mask: Tensor | None

    def shape(self) -> tuple[int, int, int, bool]:
        """Of its tensors."""
        samples, rows = (part.stop - part.start for part in (self.samples, self.rows))
        return samples, rows, self.keys, self.mask is None

    def weights(self, query: Tensor, key: Tensor, by_distance: Tensor, left: int) -> Tensor:
        """(n x H, rows, keys) attention weights."""
        width = by_distance.shape[-1]
        index = torch.arange(self.keys) - torch.arange(self.rows.start, self.rows.stop)[:, None]
        index = index.add_(left).clamp_(0, width - 1)
        of = by_distance[self.samples, :, self.rows].flatten(0, 1)
        scores = of.gather(-1, index.expand(of.shape[0], -1, -1))
        scores.baddbmm_(self.queries(query), self.known(key).transpose(1, 2), alpha=query.shape[-1] ** -0.5)
        if self.mask is not None:
            scores.view(-1, query.shape[1], *scores.shape[1:]).masked_fill_(~self.mask, float("-inf"))
        return torch.softmax(scores, -1, out=scores)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, d) -> (n x H, rows, d)."""
        return x[self.samples, :, self.rows].flatten(0, 1)

    def known(self, x: Tensor) -> Tensor:
        """(B, H, T, d) -> (n x H, keys, d)."""
        return x[self.samples, :, : self.keys].flatten(0, 1)

    def distances(self, grad: Tensor, width: int, left: int) -> Tensor:
        """(n x H, rows, keys) gradient of the scores -> (n x H, rows, W) of those by distance.

        Few entries lie within the clipping distances. Those beyond on the left are summed; those beyond on the right
        follow, since the gradient of a softmax sums to 0.
        """
        key = torch.arange(self.rows.start, self.rows.stop)[:, None] - left + torch.arange(width)
        near = grad.gather(-1, key.clamp(0, self.keys - 1).expand(grad.shape[0], -1, -1))
        near.masked_fill_((key < 0) | (key >= self.keys), 0)
        near[..., 0] += grad.tril(self.rows.start - left - 1).sum(-1)
        near[..., -1] -= near.sum(-1)
        return near


class _BlockedAttention(torch.autograd.Function):
    """Attention with a bias by clipped distance, in blocks of a few samples and queries whose scores fit into a cache.

    Keys that are padding are left out instead of computed and masked. Nothing of size T x T is kept for the backward
    pass, which computes the weights again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        by_distance: Tensor,
        mask: Tensor | None,
        left: int,
        dropped: float,
    ) -> Tensor:
        """(B, H, T, d) three times, (B, H, T, W), mask (B, 1, 1, T) or None -> (B, H, T, d)."""
        # The heads of a frame side by side, as the output projection reads them.
        context = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.blocks, ctx.left, ctx.dropped = _blocks(query, mask), left, dropped
        ctx.random = torch.get_rng_state() if dropped else None
        for block in each(ctx.blocks, _Block.shape):
            weights = dropout(block.weights(query, key, by_distance, left), dropped, True)
            found = torch.bmm(weights, block.known(value))
            context[block.samples, :, block.rows] = found.view(-1, *query.shape[1:2], *found.shape[1:])
        ctx.save_for_backward(query, key, value, by_distance, context)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, by_distance, context = ctx.saved_tensors
        (grad,) = grads
        by_query, by_bias = torch.empty_like(query), torch.empty_like(by_distance)
        by_key, by_value = torch.zeros_like(key), torch.zeros_like(value)
        scale, heads = query.shape[-1] ** -0.5, query.shape[1]
        with torch.random.fork_rng(devices=[], enabled=ctx.dropped > 0):
            if ctx.dropped:
                torch.set_rng_state(ctx.random)
            for block in each(ctx.blocks, _Block.shape):
                weights = block.weights(query, key, by_distance, ctx.left)
                kept = dropout(torch.ones_like(weights), ctx.dropped, True) if ctx.dropped else None
                given = block.queries(grad)
                used = weights if kept is None else weights * kept
                by_value[block.samples, :, : block.keys] += _heads(torch.bmm(used.transpose(1, 2), given), heads)
                scores = torch.bmm(given, block.known(value).transpose(1, 2))
                if kept is not None:
                    scores.mul_(kept)
                scores.sub_((given * block.queries(context)).sum(-1, keepdim=True)).mul_(weights)
                del weights, used, kept
                by_query[block.samples, :, block.rows] = _heads(torch.bmm(scores, block.known(key)).mul_(scale), heads)
                back = torch.bmm(scores.transpose(1, 2), block.queries(query)).mul_(scale)
                by_key[block.samples, :, : block.keys] += _heads(back, heads)
                found = block.distances(scores, by_distance.shape[-1], ctx.left)
                by_bias[block.samples, :, block.rows] = _heads(found, heads)
        return by_query, by_key, by_value, by_bias, None, None, None


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n x H, ...) -> (n, H, ...)."""
    return x.view(-1, heads, *x.shape[1:])


def _blocks(query: Tensor, mask: Tensor | None) -> list[_Block]:
    """Cut (B, H, T, d) queries so that the scores of a block are at most about `_SCORES`."""
    batch, heads, steps, _ = query.shape
    if mask is None:
        known = [steps] * batch
    else:  # one behind the last key that may be attended
        known = (mask[:, 0, 0] * torch.arange(1, steps + 1)).amax(-1).tolist()
    together = max(_SCORES // (heads * steps * steps), 1)
    blocks = []
    for first in range(0, batch, together):
        samples = slice(first, min(first + together, batch))
        keys = max(known[samples])
        hidden = None if mask is None else mask[samples, ..., :keys]
        if hidden is not None and bool(hidden.all()):
            hidden = None
        rows = max(_SCORES // (heads * keys * (samples.stop - first)), 16)
        for start in range(0, steps, rows):
            blocks.append(_Block(samples, slice(start, min(start + rows, steps)), keys, hidden))
    return blocks
