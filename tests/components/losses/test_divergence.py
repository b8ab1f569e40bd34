"""Divergences of two distributions against the plain formulas, with gradients, chunked and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from voxzoo.components.losses.divergence import (
    Side,
    distillation_loss,
    stored_distillation_loss,
    symmetric_divergence,
)
from voxzoo.components.types import Padded

B, S, D, V = 3, 7, 8, 23
LENGTHS = torch.tensor([7, 2, 5])
CHUNKS = pytest.mark.parametrize("chunk_rows", [None, 1, 4, 13])
PROJECTED = pytest.mark.parametrize("projected", [False, True])


def case(shared: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States and weight of both sides, and a mask with a hole."""
    torch.manual_seed(0)
    states = [torch.randn(B, S, D, requires_grad=True) for _ in range(2)]
    weights = [torch.randn(V, D, requires_grad=True) for _ in range(1 if shared else 2)]
    mask = Padded(states[0], LENGTHS).mask.clone()
    mask[0, 3] = False
    return [states[0], weights[0], states[1], weights[-1]], mask


def side(states: torch.Tensor, weight: torch.Tensor, projected: bool) -> Side:
    return Side(Padded(states, LENGTHS), lambda x: F.linear(x, weight), weight if projected else None)


def plain(inputs: list[torch.Tensor], mask: torch.Tensor, kind: str, temperature: float = 1.0) -> torch.Tensor:
    states, weight, others, other_weight = inputs
    p = ((states @ weight.T)[mask] / temperature).log_softmax(-1)
    q = ((others @ other_weight.T)[mask] / temperature).log_softmax(-1)
    if kind == "symmetric":
        return 0.5 * (F.kl_div(p, q.exp(), reduction="sum") + F.kl_div(q, p.exp(), reduction="sum"))
    if kind == "kl":
        return F.kl_div(p, q.exp(), reduction="sum") * temperature**2
    return -(q.exp() * p).sum() * temperature**2


def same(got: Any, want: torch.Tensor, inputs: list[torch.Tensor], mask: torch.Tensor) -> None:
    torch.testing.assert_close(got.total, want, atol=1e-5, rtol=1e-5)
    assert int(got.count) == int(mask.sum()) == 13
    unique = list({id(x): x for x in inputs}.values())
    wanted = torch.autograd.grad(want * 0.3, unique, allow_unused=True)
    # A factor, so that the incoming gradient is not 1; and twice, since something else may have looked at it before.
    for _ in range(2):
        found = torch.autograd.grad(got.total * 0.3, unique, retain_graph=True, allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


@CHUNKS
@PROJECTED
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(
    ("kind", "temperature"), [("kl", 1.0), ("cross_entropy", 1.0), ("kl", 2.5), ("cross_entropy", 0.5)]
)
def test_distillation(kind, temperature, detach, shared, projected, chunk_rows):
    inputs, mask = case(shared)
    sides = side(*inputs[:2], projected), side(*inputs[2:], projected)
    got = distillation_loss(
        *sides, mask=mask, kind=kind, temperature=temperature, detach_teacher=detach, chunk_rows=chunk_rows
    )
    teacher = [x.detach() if detach else x for x in inputs[2:]]
    same(got, plain([*inputs[:2], *teacher], mask, kind, temperature), inputs[:2] if detach else inputs, mask)


@CHUNKS
@PROJECTED
@pytest.mark.parametrize("shared", [False, True])
def test_symmetric(shared, projected, chunk_rows):
    inputs, mask = case(shared)
    sides = side(*inputs[:2], projected), side(*inputs[2:], projected)
    got = symmetric_divergence(*sides, mask=mask, chunk_rows=chunk_rows)
    same(got, plain(inputs, mask, "symmetric"), inputs, mask)


@CHUNKS
@PROJECTED
@pytest.mark.parametrize("kind", ["kl", "cross_entropy"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_stored_teacher_of_all_words_is_the_teacher(kind, temperature, projected, chunk_rows):
    inputs, mask = case(False)
    known = (inputs[2] @ inputs[3].T).log_softmax(-1).detach()
    words = known.argsort(-1, descending=True)
    got = stored_distillation_loss(
        side(*inputs[:2], projected), words, known.gather(-1, words), mask=mask, kind=kind, temperature=temperature,
        chunk_rows=chunk_rows,
    )  # fmt: skip
    teacher = [x.detach() for x in inputs[2:]]
    same(got, plain([*inputs[:2], *teacher], mask, kind, temperature), inputs[:2], mask)


@PROJECTED
def test_a_stored_teacher_of_some_words_asks_for_nothing_else(projected):
    inputs, mask = case(False)
    known, words = (inputs[2] @ inputs[3].T).log_softmax(-1).detach().topk(4)
    known[0, 0, 2:] = float("-inf")  # a row of two
    got = stored_distillation_loss(side(*inputs[:2], projected), words, known, mask=mask, chunk_rows=5)
    p = (inputs[0] @ inputs[1].T).log_softmax(-1).gather(-1, words)
    q = known.log_softmax(-1)
    want = torch.where(q.exp() > 0, q.exp() * (q.nan_to_num(neginf=0) - p), 0.0).sum(-1)[mask].sum()
    same(got, want, inputs[:2], mask)


def test_only_rows_that_count_are_projected_in_bounded_chunks():
    inputs, mask = case(True)
    seen = []

    def project(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return F.linear(x, inputs[1])

    both = [Side(Padded(x, LENGTHS), project) for x in (inputs[0], inputs[2])]
    distillation_loss(*both, mask=mask, chunk_rows=5).total.backward()
    assert max(seen) == 5
    assert seen[:6] == [5, 5, 5, 5, 3, 3]


@PROJECTED
def test_nothing_counted_still_has_a_gradient(projected):
    inputs, mask = case(True)
    sides = side(*inputs[:2], projected), side(*inputs[2:], projected)
    loss = symmetric_divergence(*sides, mask=torch.zeros_like(mask))
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert inputs[0].grad is not None


def test_runs_on_meta():
    weight = torch.randn(V, D, device="meta", requires_grad=True)
    padded = Padded(torch.randn(B, S, D, device="meta", requires_grad=True), LENGTHS)
    mask = torch.ones(B, S, dtype=torch.bool, device="meta")
    for known in (weight, None):
        both = Side(padded, lambda x: F.linear(x, weight), known)
        loss = distillation_loss(both, both, mask=mask, detach_teacher=False, chunk_rows=4)
        loss.total.backward()
        assert loss.total.shape == ()


def test_bfloat16_is_summed_in_float32():
    inputs, mask = case(True)
    low = [x.detach().bfloat16() for x in inputs]
    got = distillation_loss(side(*low[:2], True), side(*low[2:], True), mask=mask)
    assert got.total.dtype == torch.float32
    torch.testing.assert_close(got.total, plain([x.float() for x in low], mask, "kl"), rtol=0.03, atol=0.1)


def test_refuses_what_does_not_fit():
    inputs, mask = case(True)
    both = side(*inputs[:2], True)
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        distillation_loss(both, both, mask=mask, temperature=0.0)
    with pytest.raises(ValueError, match="must agree in"):
        distillation_loss(both, both, mask=mask[:, 1:])
    with pytest.raises(ValueError, match="must be"):
        stored_distillation_loss(both, torch.zeros(B, S, 2, dtype=torch.int64), torch.zeros(B, S, 3), mask=mask)
