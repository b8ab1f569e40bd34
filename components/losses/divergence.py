"""How far two distributions over a large vocabulary are apart, without logits of rows that do not count.

Letters: B batch, S tokens, D model dim, V vocabulary, N rows that count, K stored words of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..layers.precision import autocast_dtype, without_autocast
from ..types import Loss, Padded
from .cross_entropy import rows_of_chunk

Kind = Literal["kl", "cross_entropy"]


@dataclass(frozen=True)
class Side:
    """One of the two: decoder states and the layer that makes logits of them.

    Attributes:
        states: (B, S, D).
        project: (N, D) states -> (N, V) logits.
        weight: (V, D) where `project(x)` is `x @ weight.T` and nothing else.
    """

    states: Padded
    project: Callable[[Tensor], Tensor]
    weight: Tensor | None = None


def distillation_loss(
    student: Side,
    teacher: Side,
    *,
    mask: Tensor,
    kind: Kind = "kl",
    temperature: float = 1.0,
    detach_teacher: bool = True,
    chunk_rows: int | None = None,
) -> Loss:
    """What a student's distribution p lacks of a teacher's q, both of logits over `temperature` T: `kl`, the sum of
    q (log q - log p); `cross_entropy`, that of -q log p. Times T^2, so that gradients keep their size (Hinton et al.
    2015, section 2.1). In float32, and in chunks whose gradients are made while their logits are there, so that memory
    does not grow with B x S.

    Args:
        student, teacher: of equal (B, S) and V; one weight may be of both.
        mask: (B, S) bool, True where a row counts.
        detach_teacher: no gradient goes into the teacher.
        chunk_rows: rows per chunk; None: as many as make 2^26 logits of each, on a CPU 2^22.

    Raises:
        ValueError: shapes that do not agree, or a temperature that is not above 0.
    """
    how = _How("kl" if kind == "kl" else "cross_entropy", _above_zero(temperature), not detach_teacher, chunk_rows)
    return _apart(student, teacher, mask, how)


def symmetric_divergence(first: Side, second: Side, *, mask: Tensor, chunk_rows: int | None = None) -> Loss:
    """(KL(p||q) + KL(q||p)) / 2 of two passes, with gradients into both (R-Drop, Liang et al. 2021, equation 2).
    Arguments as of `distillation_loss`."""
    return _apart(first, second, mask, _How("symmetric", 1.0, True, chunk_rows))


def stored_distillation_loss(
    student: Side,
    words: Tensor,
    log_probs: Tensor,
    *,
    mask: Tensor,
    kind: Kind = "kl",
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> Loss:
    """`distillation_loss` of a teacher whose K most probable words are known, and no other: its probabilities over
    `temperature` are those of these words, which sum to 1. With K = V it is `distillation_loss`.

    Args:
        words: (B, S, K) int64 ids.
        log_probs: (B, S, K) the teacher's log-probabilities of them, at a temperature of 1; -inf fills rows up.
    """
    how = _How("kl" if kind == "kl" else "cross_entropy", _above_zero(temperature), False, chunk_rows)
    if words.shape != log_probs.shape or words.shape[:2] != mask.shape:
        raise ValueError(f"words {tuple(words.shape)} and log_probs {tuple(log_probs.shape)} must be (B, S, K)")
    rows = _counting(student.states, mask)
    chosen = _counting(Padded(words, student.states.lengths), mask)
    known = _counting(Padded(log_probs, student.states.lengths), mask).float() / temperature
    known = known.log_softmax(-1)

    def teacher(part: slice, size: int) -> Tensor:
        return torch.full((len(chosen[part]), size), float("-inf"), device=rows.device).scatter_(
            1, chosen[part], known[part]
        )

    if student.weight is None:
        return Loss(_recomputed(student, rows, teacher, None, how), mask.sum())
    weight = student.weight
    if not torch.is_grad_enabled():  # a custom function is not told
        rows, weight = rows.detach(), weight.detach()
    return Loss(cast(Tensor, _Divergence.apply(rows, weight, None, None, teacher, how)), mask.sum())


@dataclass(frozen=True)
class _How:
    kind: Literal["kl", "cross_entropy", "symmetric"]
    temperature: float
    both_learn: bool
    chunk_rows: int | None


def _above_zero(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    return temperature


def _counting(values: Padded, mask: Tensor) -> Tensor:
    """(N, ...) rows that count; on the meta device all of them: how many count is data."""
    if values.data.shape[:2] != mask.shape:
        raise ValueError(
            f"states and mask must agree in (B, S); got {tuple(values.data.shape[:2])} and {tuple(mask.shape)}"
        )
    return values.data.flatten(0, 1) if mask.is_meta else values.data[mask]


def _apart(first: Side, second: Side, mask: Tensor, how: _How) -> Loss:
    rows, others = _counting(first.states, mask), _counting(second.states, mask)
    if first.weight is None or second.weight is None:
        others = others if how.both_learn else others.detach()

        def teacher(part: slice, size: int) -> Tensor:
            scores = second.project(others[part])
            return (scores if how.both_learn else scores.detach()).float().div(how.temperature).log_softmax(-1)

        return Loss(_recomputed(first, rows, teacher, others, how), mask.sum())
    weight, other_weight = first.weight, None if second.weight is first.weight else second.weight
    if not torch.is_grad_enabled():
        rows, weight, others = rows.detach(), weight.detach(), others.detach()
        other_weight = None if other_weight is None else other_weight.detach()
    if not how.both_learn:
        others, other_weight = others.detach(), None if other_weight is None else other_weight.detach()
    return Loss(cast(Tensor, _Divergence.apply(rows, weight, others, other_weight, None, how)), mask.sum())


def _recomputed(
    student: Side, rows: Tensor, teacher: Callable[[slice, int], Tensor], others: Tensor | None, how: _How
) -> Tensor:
    """() the sum over chunks that are computed again in the backward pass, of an output layer that is more than a
    product. `others` is what `teacher` reads."""

    def chunk(rows: Tensor, others: Tensor | None, start: int) -> Tensor:
        scores = student.project(rows).float() / how.temperature
        return _values(scores.log_softmax(-1), teacher(slice(start, start + len(rows)), scores.shape[1]), how).sum()

    size = how.chunk_rows or rows_of_chunk(student.project(rows[:0]).shape[-1], rows.device.type, share=2)
    total = torch.zeros((), device=rows.device) + 0 * rows.sum()  # of no rows at all too
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        total = total + cast(
            Tensor, checkpoint(chunk, some, others, start, use_reentrant=False, preserve_rng_state=False)
        )
    return total * how.temperature**2


def _values(p: Tensor, q: Tensor, how: _How) -> Tensor:
    """(N,) of (N, V) log-probabilities; where a teacher has none (-inf), nothing is asked."""
    if how.kind == "symmetric":
        return 0.5 * ((q.exp() - p.exp()) * (q - p)).sum(-1)
    known = q.exp()
    if how.kind == "cross_entropy":
        return -(known * p).sum(-1)
    return (known * (q.masked_fill(known == 0, 0.0) - p)).sum(-1)


def _gradients(p: Tensor, q: Tensor, how: _How, both: bool) -> tuple[Tensor, Tensor | None]:
    """By the logits of the first and, where asked for, of the second."""
    by_first = p.exp() - q.exp()
    if how.kind == "symmetric":
        likely, other, apart = p.exp(), q.exp(), p - q
        forth, back = (likely * apart).sum(-1, keepdim=True), (other * -apart).sum(-1, keepdim=True)
        return 0.5 * (by_first + likely * (apart - forth)), 0.5 * (other * (-apart - back) - by_first)
    if not both:
        return by_first, None
    known = q.exp()
    one = q - p if how.kind == "kl" else -p
    return by_first, known * (one - (known * one).sum(-1, keepdim=True))


class _Divergence(torch.autograd.Function):
    """(N, D) rows, (V, D) weight, the same of the other side (a weight of None: the same one) or a function that gives
    (n, V) log-probabilities of it -> () float32.

    Keeps the gradients of all of them for the backward pass, which only scales them.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        weight: Tensor,
        others: Tensor | None,
        other_weight: Tensor | None,
        teacher: Callable[[slice, int], Tensor] | None,
        how: _How,
    ) -> Tensor:
        ctx.teacher, ctx.how = teacher, how
        total, ctx.gradients = _through(rows, weight, others, other_weight, teacher, how, ctx.needs_input_grad[:4])
        ctx.save_for_backward(rows, weight, others, other_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second time, with retain_graph: the first has scaled and given them away
            rows, weight, others, other_weight = ctx.saved_tensors
            needed = ctx.needs_input_grad[:4]
            gradients = _through(rows, weight, others, other_weight, ctx.teacher, ctx.how, needed)[1]
        return *(None if g is None else g.mul_(grad_outputs[0].to(g.dtype)) for g in gradients), None, None


def _through(
    rows: Tensor,
    weight: Tensor,
    others: Tensor | None,
    other_weight: Tensor | None,
    teacher: Callable[[slice, int], Tensor] | None,
    how: _How,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and the gradients that are needed of rows, weight, other rows and other weight."""
    kind, scale = rows.device.type, how.temperature
    dtype = autocast_dtype(kind) or weight.dtype
    if dtype == torch.float16:
        dtype = torch.float32  # probabilities of a large vocabulary are below what half precision has
    size = how.chunk_rows or rows_of_chunk(weight.shape[0], kind, share=2)
    total = torch.zeros((), device=rows.device)
    by_rows = torch.empty_like(rows) if needed[0] else None
    by_others = torch.empty_like(others) if others is not None and needed[2] else None
    # Chunks add up in float32, whatever they are computed in.
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
    by_other_weight = by_weight if how.both_learn and other_weight is None else None
    if other_weight is not None and needed[3]:
        by_other_weight = torch.zeros_like(other_weight, dtype=torch.float32)
    with without_autocast(kind):
        low = weight.to(dtype)
        other_low = low if other_weight is None else other_weight.to(dtype)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            some = rows[part].to(dtype)
            p = F.linear(some, low).float().div_(scale).log_softmax(-1)
            if others is not None:
                other = others[part].to(dtype)
                q = F.linear(other, other_low).float().div_(scale).log_softmax(-1)
            else:
                assert teacher is not None
                other, q = None, teacher(part, len(weight))
            total += _values(p, q, how).sum()
            if not any(needed):
                continue
            both = by_others is not None or (other is not None and by_other_weight is not None)
            first, second = _gradients(p, q, how, both)
            del p, q
            _enter(first.mul_(scale), some, low, part, by_rows, by_weight)
            if both and second is not None and other is not None:
                _enter(second.mul_(scale), other, other_low, part, by_others, by_other_weight)
            del first, second  # before the next chunk's logits come
    total *= scale**2
    found = [by_rows, by_weight, by_others, None if by_other_weight is by_weight else by_other_weight]
    sides = (rows, weight, others, other_weight)
    return total, [None if g is None or x is None else g.to(x.dtype) for g, x in zip(found, sides, strict=True)]


def _enter(
    gradient: Tensor, some: Tensor, low: Tensor, part: slice, by_rows: Tensor | None, by_weight: Tensor | None
) -> None:
    """Enter the (n, V) gradient of a chunk's logits where it goes."""
    gradient = gradient.to(low.dtype)
    if by_rows is not None:
        by_rows[part] = F.linear(gradient, low.t())
    if by_weight is not None and low.dtype == torch.float32:
        by_weight.addmm_(gradient.t(), some)
    elif by_weight is not None:
        by_weight += gradient.t() @ some
