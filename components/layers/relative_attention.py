"""Self-attention with relative positions. Letters: B batch, H heads, T frames, D model dim, d head dim (D / H),
W relative distances (left + right + 1)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .dropout import dropout

Position = Literal["relative_key", "relative", "none"]

# Longer inputs are attended in blocks of queries outside training: the (B, H, T, T) bias is never whole in memory.
_BLOCK_FROM, _BLOCK = 1024, 256


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
        if torch.is_grad_enabled() or steps <= _BLOCK_FROM:
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
            bias = _Spread.apply(by_distance, table[start : start + rows], mask, self.left, self.right)
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
        `relative_key`: (T, T) int64, which of the W distance vectors query i meets at key j. `relative`: (2T-1, D)
        sinusoids of the distances T-1 (far left) to -(T-1), in the dtype of `like`. `none`: None.
    """
    if position == "none":
        return None
    if position == "relative_key":
        frames = torch.arange(steps, device=like.device)
        return (frames[None] - frames[:, None]).clamp(-left, right) + left
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
