"""token_loss against the naive formulas, with gradients, chunked and not."""

import pytest
import torch
import torch.nn.functional as F
from voxzoo.components.losses.cross_entropy import token_loss
from voxzoo.components.types import Padded

B, S, D, V = 3, 7, 8, 23


def case(dtype=torch.float64):
    torch.manual_seed(0)
    states = torch.randn(B, S, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    lengths = torch.tensor([7, 2, 5])
    labels = torch.randint(0, V, (B, S))
    return states, weight, lengths, labels


def naive(states, weight, labels, mask, smoothing, form):
    log_probs = torch.log_softmax((states @ weight.T).float(), dim=-1)[mask]
    nll = -log_probs.gather(1, labels[mask][:, None]).sum()
    uniform = -log_probs.sum()
    if form == "fairseq":
        eps = smoothing / (V - 1)
        return (1 - smoothing - eps) * nll + eps * uniform
    return (1 - smoothing) * nll + smoothing / V * uniform


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 13])
@pytest.mark.parametrize(("smoothing", "form"), [(0.0, "fairseq"), (0.2, "fairseq"), (0.1, "torch"), (1.0, "torch")])
def test_equals_the_naive_formula(chunk_rows, smoothing, form, projected):
    states, weight, lengths, labels = case(torch.float32)
    padded = Padded(states, lengths)
    loss, _ = token_loss(
        lambda x: F.linear(x, weight),
        padded,
        labels,
        mask=padded.mask,
        label_smoothing=smoothing,
        smoothing=form,
        chunk_rows=chunk_rows,
        weight=weight if projected else None,
    )
    # A factor, so that the incoming gradient is not 1; and twice, since something else may have looked at it before.
    for _ in range(2):
        grads = torch.autograd.grad(loss.total * 0.3, (states, weight), retain_graph=True)
    want = naive(states, weight, labels, padded.mask, smoothing, form)
    want_grads = torch.autograd.grad(want * 0.3, (states, weight))
    torch.testing.assert_close(loss.total, want)
    for got, expected in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    assert int(loss.count) == 14
    assert grads[0][1, 2:].abs().max() == 0


def test_torch_form_is_that_of_torch():
    states, weight, lengths, labels = case(torch.float32)
    padded = Padded(states, lengths)
    got, _ = token_loss(
        lambda x: x @ weight.T, padded, labels, mask=padded.mask, label_smoothing=0.3, smoothing="torch"
    )
    logits = states[padded.mask] @ weight.T
    want = F.cross_entropy(logits, labels[padded.mask], label_smoothing=0.3, reduction="sum")
    torch.testing.assert_close(got.total, want)


def test_accuracy_counts_labels_that_are_the_most_probable():
    torch.manual_seed(0)
    states = torch.randn(1, 4, V)
    labels = states.argmax(-1).clone()
    labels[0, 2] = (labels[0, 2] + 1) % V
    mask = torch.tensor([[True, True, True, False]])
    _, accuracy = token_loss(lambda x: x, Padded(states, torch.tensor([4])), labels, mask=mask, chunk_rows=2)
    assert (float(accuracy.total), int(accuracy.count)) == (2.0, 3)
    assert not accuracy.total.requires_grad


def test_only_rows_that_count_are_projected_in_bounded_chunks():
    states, weight, lengths, labels = case(torch.float32)
    seen = []

    def project(x):
        seen.append(x.shape[0])
        return F.linear(x, weight)

    padded = Padded(states, lengths)
    loss, _ = token_loss(project, padded, labels, mask=padded.mask, chunk_rows=4)
    assert seen == [4, 4, 4, 2]
    loss.total.backward()
    assert sorted(seen[4:]) == [2, 4, 4, 4]


def test_nothing_counted_still_has_a_gradient():
    states, weight, lengths, labels = case(torch.float32)
    loss, accuracy = token_loss(
        lambda x: F.linear(x, weight), Padded(states, lengths), labels, mask=torch.zeros(B, S, dtype=torch.bool)
    )
    loss.mean.backward()
    assert float(loss.mean.detach()) == 0
    assert float(accuracy.mean) == 0
    assert states.grad is not None
    assert states.grad.abs().max() == 0
    assert weight.grad is not None


def test_bfloat16_logits_are_normalised_in_float32():
    states, weight, lengths, labels = case(torch.float32)
    padded = Padded(states.detach().bfloat16(), lengths)
    rounded = weight.detach().bfloat16()
    loss, _ = token_loss(lambda x: x @ rounded.T, padded, labels, mask=padded.mask, label_smoothing=0.1)
    assert loss.total.dtype == torch.float32
    logits = (padded.data @ rounded.T)[padded.mask].float()
    eps = 0.1 / (V - 1)
    log_probs = logits.log_softmax(-1)
    want = -(0.9 - eps) * log_probs.gather(1, labels[padded.mask][:, None]).sum() - eps * log_probs.sum()
    torch.testing.assert_close(loss.total, want, rtol=1e-4, atol=1e-3)


def test_runs_on_meta():
    weight = torch.randn(V, D, device="meta", requires_grad=True)
    padded = Padded(torch.randn(B, S, D, device="meta", requires_grad=True), torch.tensor([7, 2, 5]))
    labels = torch.zeros(B, S, dtype=torch.int64, device="meta")
    for chunk_rows in (None, 4):
        loss, _ = token_loss(lambda x: F.linear(x, weight), padded, labels, mask=padded.mask, chunk_rows=chunk_rows)
        loss.total.backward()
        assert loss.total.shape == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"smoothing": "keras"}, "fairseq or torch"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"mask": torch.ones(B, S + 1, dtype=torch.bool)}, "mask"),
    ],
)
def test_bad_arguments_are_named(change, message):
    states, weight, lengths, labels = case(torch.float32)
    padded = Padded(states, lengths)
    arguments = {"mask": padded.mask, **change}
    with pytest.raises(ValueError, match=message):
        token_loss(lambda x: F.linear(x, weight), padded, labels, **arguments)


@pytest.mark.parametrize("frozen", ["states", "weight", "both"])
def test_projected_with_something_frozen(frozen):
    states, weight, lengths, labels = case(torch.float32)
    states.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "states")
    padded = Padded(states, lengths)
    plain, right = token_loss(lambda x: x @ weight.T, padded, labels, mask=padded.mask, label_smoothing=0.1)
    loss, accuracy = token_loss(
        lambda x: x @ weight.T, padded, labels, mask=padded.mask, label_smoothing=0.1, weight=weight, chunk_rows=4
    )
    torch.testing.assert_close(loss.total, plain.total)
    assert accuracy.total == right.total
    assert loss.total.requires_grad == (frozen != "both")
    for leaf in (states, weight):
        if leaf.requires_grad:
            (got,), (want,) = torch.autograd.grad(loss.total, leaf), torch.autograd.grad(plain.total, leaf)
            torch.testing.assert_close(got, want)


def test_projected_without_rows():
    states, weight, lengths, labels = case(torch.float32)
    nothing = torch.zeros(B, S, dtype=torch.bool)
    loss, _ = token_loss(lambda x: x @ weight.T, Padded(states, lengths), labels, mask=nothing, weight=weight)
    loss.mean.backward()
    assert loss.total == 0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_projected_under_autocast():
    states, weight, lengths, labels = case(torch.float32)
    padded = Padded(states, lengths)
    grads = []
    for given in (None, weight):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = token_loss(lambda x: F.linear(x, weight), padded, labels, mask=padded.mask, weight=given)
        assert loss.total.dtype == torch.float32
        grads.append(torch.autograd.grad(loss.total, (states, weight)))
    for got, want in zip(grads[1], grads[0], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=3e-2, rtol=3e-2)
