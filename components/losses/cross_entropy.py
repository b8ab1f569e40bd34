"""Cross entropy over a large vocabulary, without logits of rows that do not count.

Letters: B batch, S tokens, D model dim, V vocabulary, N rows that count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..layers.precision import autocast_dtype, without_autocast
from ..types import Loss, Padded, Statistic

_CHUNK_LOGITS = 2**27
"""Logits of a chunk unless the caller says otherwise: 512 MiB in float32, 524 rows of 256k words."""
_CHUNK_PROJECTED_CPU = 2**23
"""On a CPU, where the output layer is inside and chunks cost nothing but their number: 32 MiB."""


def token_loss(
    project: Callable[[Tensor], Tensor],
    states: Padded,
    labels: Tensor,
    *,
    mask: Tensor,
    label_smoothing: float = 0.0,
    smoothing: Literal["fairseq", "torch"] = "fairseq",
    chunk_rows: int | None = None,
    weight: Tensor | None = None,
) -> tuple[Loss, Statistic]:
    """Label-smoothed cross entropy of decoder states.

    With q = -log p(label) and u = -sum over the vocabulary of log p, s the smoothing and V the vocabulary size:
    fairseq (1 - s - e) q + e u with e = s / (V - 1); torch (1 - s) q + (s / V) u. The log-softmax is in float32.

    Logits exist only for rows that count. When these are more than `chunk_rows`, they go through `project` in chunks,
    which are computed again in the backward pass, so that memory does not grow with B x S.

    Args:
        project: (N, D) states -> (N, V) logits; deterministic, and its parameters get their gradients.
        states: (B, S, D).
        labels: (B, S) int64.
        mask: (B, S) bool, True where a label counts.
        label_smoothing: s, in 0..1.
        chunk_rows: rows per chunk; None: as many as make 2^27 logits, with `weight` on a CPU 2^23.
        weight: (V, D) where `project(x)` is `x @ weight.T` and nothing else. Each chunk's gradients are then made while
            its logits are there, so that nothing is computed twice and no logits wait for the backward pass.

    Returns:
        The summed loss over its number of tokens, and the number of tokens where the label is the most probable word
        over the same count (accuracy; no gradient).

    Raises:
        ValueError: shapes that do not agree, or smoothing outside 0..1.
    """
    if labels.shape != states.data.shape[:2] or mask.shape != labels.shape:
        raise ValueError(
            f"labels and mask must be (B, S) = {tuple(states.data.shape[:2])} as the states are; "
            f"got labels {tuple(labels.shape)}, mask {tuple(mask.shape)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1; got {label_smoothing}")
    if smoothing not in ("fairseq", "torch"):
        raise ValueError(f"smoothing must be fairseq or torch; got {smoothing!r}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1; got {chunk_rows}")
    count = mask.sum()
    if mask.is_meta:
        # How many rows count is data: the shape check takes them all.
        rows, targets = states.data.flatten(0, 1), labels.flatten()
    else:
        rows, targets = states.data[mask], labels[mask]
    if weight is not None:
        if not torch.is_grad_enabled():  # a custom function is not told
            rows, weight = rows.detach(), weight.detach()
        total, correct = _ProjectedCrossEntropy.apply(
            rows, weight, targets, label_smoothing, smoothing == "fairseq", chunk_rows
        )
        return Loss(total, count), Statistic(correct, count)
    if chunk_rows is None:
        chunk_rows = max(_CHUNK_LOGITS // project(rows[:0]).shape[-1], 1)

    def chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _SmoothedCrossEntropy.apply(project(rows), targets, label_smoothing, smoothing == "fairseq")

    if rows.shape[0] <= chunk_rows:
        total, correct = chunk(rows, targets)
    else:
        parts = [
            cast(
                tuple[Tensor, Tensor],
                checkpoint(chunk, some_rows, some_targets, use_reentrant=False, preserve_rng_state=False),
            )
            for some_rows, some_targets in zip(rows.split(chunk_rows), targets.split(chunk_rows), strict=True)
        ]
        total = torch.stack([part[0] for part in parts]).sum()
        correct = torch.stack([part[1] for part in parts]).sum()
    return Loss(total, count), Statistic(correct, count)


class _SmoothedCrossEntropy(torch.autograd.Function):
    """(N, V) logits, (N,) labels -> summed loss and number of correct labels, both () float32.

    Keeps one matrix for the backward pass, the gradient itself, in the dtype of the logits.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, label_smoothing: float, fairseq: bool) -> tuple[Tensor, Tensor]:
        a, b = _factors(label_smoothing, logits.shape[-1], fairseq)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        index = labels[:, None]
        total = -a * log_probs.gather(1, index).sum()
        if b > 0:
            total = total - b * log_probs.sum()
        correct = (logits.argmax(dim=-1) == labels).sum().float()
        if ctx.needs_input_grad[0]:
            gradient = log_probs.exp_()
            gradient.scatter_add_(1, index, torch.full_like(index, -a, dtype=torch.float32))
            if b > 0:
                gradient.sub_(b)
            ctx.save_for_backward(gradient.to(logits.dtype))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None


def _factors(label_smoothing: float, size: int, fairseq: bool) -> tuple[float, float]:
    """a and b of loss = a q + b u. a + b V = 1 in both forms, so the gradient is p - a onehot - b."""
    b = label_smoothing / ((size - 1) if fairseq else size)
    return (1 - label_smoothing - b if fairseq else 1 - label_smoothing), b


class _ProjectedCrossEntropy(torch.autograd.Function):
    """(N, D) rows, (V, D) weight, (N,) labels -> as `_SmoothedCrossEntropy`, with the output layer inside.

    Keeps the gradients of rows and weight for the backward pass, which only scales them.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, fairseq: bool, chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        ctx.factors = _factors(label_smoothing, weight.shape[0], fairseq)
        ctx.chunk = chunk or rows_of_chunk(weight.shape[0], rows.device.type)
        total, correct, ctx.gradients = _through(
            rows, weight, labels, ctx.factors, ctx.chunk, *ctx.needs_input_grad[:2]
        )
        ctx.save_for_backward(rows, weight, labels)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second time, with retain_graph: the first has scaled and given them away
            rows, weight, labels = ctx.saved_tensors
            gradients = _through(rows, weight, labels, ctx.factors, ctx.chunk, *ctx.needs_input_grad[:2])[2]
        return *(None if g is None else g.mul_(grad_outputs[0].to(g.dtype)) for g in gradients), None, None, None, None


def rows_of_chunk(size: int, kind: str, share: int = 1) -> int:
    """Rows of logits over `size` words that are there at once on a kind of device, where as many as `share` matrices of
    them are."""
    return max((_CHUNK_PROJECTED_CPU if kind == "cpu" else _CHUNK_LOGITS) // share // size, 1)


def _through(
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    factors: tuple[float, float],
    chunk: int,
    for_rows: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Summed loss, number of correct labels, and the gradients of rows and weight that are asked for."""
    a, b = factors
    size, kind = weight.shape[0], rows.device.type
    dtype = autocast_dtype(kind) or weight.dtype
    if dtype == torch.float16:
        dtype = torch.float32  # probabilities of a large vocabulary are below what half precision has
    total = torch.zeros((), device=rows.device)
    correct = torch.zeros((), device=rows.device)
    by_rows = torch.empty_like(rows) if for_rows else None
    # Chunks add up in float32, whatever they are computed in.
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
    with without_autocast(kind):
        low = weight.to(dtype)  # cast once, not in each chunk
        for start in range(0, len(rows), chunk):
            some, index = rows[start : start + chunk].to(dtype), labels[start : start + chunk, None]
            scores = F.linear(some, low).float()
            highest, best = scores.max(dim=-1, keepdim=True)
            correct += (best == index).sum()
            scores.sub_(highest)
            chosen = scores.gather(1, index).sum()
            everything = scores.sum() if b > 0 else None
            norm = scores.exp_().sum(dim=-1, keepdim=True)
            log_norm = norm.log().sum()
            total += a * (log_norm - chosen)
            if everything is not None:
                total += b * (size * log_norm - everything)
            if not (for_rows or for_weight):
                continue
            scores.div_(norm).scatter_add_(1, index, torch.full_like(index, -a, dtype=torch.float32))
            if b > 0:
                scores.sub_(b)
            gradient = scores.to(dtype)
            del scores
            if by_rows is not None:
                by_rows[start : start + chunk] = F.linear(gradient, low.t())
            if by_weight is not None and dtype == torch.float32:
                by_weight.addmm_(gradient.t(), some)
            elif by_weight is not None:
                by_weight += gradient.t() @ some
            del gradient  # before the next chunk's logits come
    return total, correct, (by_rows, None if by_weight is None else by_weight.to(weight.dtype))
