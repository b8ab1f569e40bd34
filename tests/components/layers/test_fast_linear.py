"""Packed linear layers: the same results, nothing in checkpoints, and training as if they had never been."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from voxzoo.components import ConformerEncoder, TransformerSeq2Seq
from voxzoo.components.layers import linear
from voxzoo.components.layers.linear import PackedEmbedding, PackedLinear, pack_for_inference, unpack
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Padded


@pytest.fixture(autouse=True)
def _pack_always(monkeypatch):
    """Whether packing pays depends on the machine; what it must not change does not."""
    pays = linear._pays
    monkeypatch.setattr(linear, "_pays", lambda weight: True)
    weight = torch.randn(3, 5)
    if linear._pays is pays or not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    linear._reordered(weight)


def _decoder() -> TransformerSeq2Seq:
    torch.manual_seed(0)
    return TransformerSeq2Seq(
        61, 24, 3, 40, num_encoder_layers=1, num_decoder_layers=2, dropout=0.0, attention_dropout=0.0
    ).eval()


def _memory() -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.from_list([torch.randn(n, 24, generator=generator) for n in (9, 4, 7)])


def _step(model, optimizer) -> float:
    """One training step; its loss."""
    model.train()
    tokens = torch.arange(12).view(3, 4) + 5
    logits = model(_memory(), Padded(tokens, torch.full((3,), 4))).data
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def test_conformer_gives_the_same():
    torch.manual_seed(0)
    encoder = ConformerEncoder(10, 36, 2, 3, 50, kernel_size=5, intermediate_ffn=True).eval()
    speech = Padded.from_list([torch.randn(n, 10) for n in (31, 12)])
    before = encoder(speech).data
    linears = sum(type(module) is torch.nn.Linear for module in encoder.modules())
    assert pack_for_inference(encoder) == linears
    after = encoder(speech).data
    torch.testing.assert_close(after, before, atol=2e-5, rtol=0)
    assert unpack(encoder) == linears
    assert torch.equal(encoder(speech).data, before)


def test_beam_search_gives_the_same_ids():
    model, memory = _decoder(), _memory()
    prefix = torch.full((3, 1), 3)
    options = SearchOptions(beam_size=3, max_length=12)
    before = generate(model, memory, prefix, options, 3, 0, 1)
    pack_for_inference(model)
    assert any(isinstance(module, PackedEmbedding) for module in model.modules())
    after = generate(model, memory, prefix, options, 3, 0, 1)
    for one, other in zip(before, after, strict=True):
        assert [h.tokens.tolist() for h in one] == [h.tokens.tolist() for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=2e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@torch.no_grad()
def test_fused_activation(activation):
    from voxzoo.components.layers.transformer import FeedForward

    torch.manual_seed(0)
    layer = FeedForward(12, 30, activation).eval()
    x = torch.randn(2, 5, 12)
    kept = x.clone()
    with torch.enable_grad():
        before = layer(x).detach()
    torch.testing.assert_close(layer(x), before, atol=2e-6, rtol=0)  # in place
    assert pack_for_inference(layer) == 2
    torch.testing.assert_close(layer(x), before, atol=2e-5, rtol=0)
    torch.testing.assert_close(layer(x.transpose(0, 1)), before.transpose(0, 1), atol=2e-5, rtol=0)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_fewer_rows_than_it_pays_for_go_the_plain_way(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(12, 30).eval(), torch.randn(5, 12)
    expected = layer(x)
    monkeypatch.setattr(linear, "_pays", lambda weight: 4)
    assert pack_for_inference(layer) == 1
    calls = []
    inner = linear._Packed.__call__
    monkeypatch.setattr(
        linear._Packed, "__call__", lambda self, x, *more: calls.append(len(x)) or inner(self, x, *more)
    )
    for rows in (1, 3, 4, 5):
        torch.testing.assert_close(layer(x[:rows]), expected[:rows], atol=2e-5, rtol=0)
    assert calls == [4, 5]


def test_training_is_unaffected():
    plain, packed = _decoder(), _decoder()
    pack_for_inference(packed)
    losses = []
    for model in (plain, packed):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append([_step(model, optimizer) for _ in range(3)])
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]
    for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(isinstance(module, (PackedLinear, PackedEmbedding)) for module in packed.modules())


def test_gradients_in_evaluation_mode_go_the_plain_way():
    plain, packed = _decoder(), _decoder()
    pack_for_inference(packed)
    grads = []
    for model in (plain, packed):
        memory = _memory()
        memory.data.requires_grad_(True)
        model(memory, Padded(torch.full((3, 2), 4), torch.full((3,), 2))).data.square().sum().backward()
        grads.append([memory.data.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(grads[0]) == len(grads[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_nothing_in_the_state_dict_or_in_a_copy():
    model = _decoder()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pack_for_inference(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in _decoder().named_parameters()]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(getattr(module, "_packed", None) for module in other.modules())
        with torch.no_grad():
            states = torch.randn(2, 24)
            torch.testing.assert_close(other.project(states), model.project(states), atol=2e-5, rtol=0)


@pytest.mark.parametrize("how", ["in place", "load", "assign", "data", "optimizer"])
@torch.no_grad()
def test_changed_weights_count(how):
    model, states = _decoder(), torch.randn(2, 24)
    pack_for_inference(model)
    weight = model.decoder.embed.embedding.weight
    changed = {key: value + 1 for key, value in model.state_dict().items()}
    if how == "in place":
        weight.add_(1)
    elif how == "data":
        weight.data = weight + 1
    elif how == "optimizer":
        with torch.enable_grad():
            weight.grad = -torch.ones_like(weight)
            torch.optim.SGD([weight], lr=1.0).step()
    else:
        model.load_state_dict(changed, assign=how == "assign")
    expected = states @ changed["decoder.embed.embedding.weight"].T
    torch.testing.assert_close(model.project(states), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_other_dtype_and_autocast():
    model, states = _decoder(), torch.randn(2, 24)
    pack_for_inference(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.project(states).dtype == torch.bfloat16
    model.double()
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert model.project(states.double()).dtype == torch.float64


def test_layers_that_do_not_qualify():
    model = _decoder()
    assert pack_for_inference(model, memory=0) == 0
    assert pack_for_inference(model, memory=61 * 24 * 4) == 1  # the largest alone
    unpack(model)
    assert pack_for_inference(model.train()) == 0
    assert pack_for_inference(model.eval().to("meta")) == 0
    assert pack_for_inference(torch.nn.Embedding(5, 3).eval()) == 0  # only looked up


def test_not_where_it_does_not_pay(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(linear, "_FASTER", float("inf"))
    assert pack_for_inference(_decoder()) == 0
    monkeypatch.setattr(linear, "_FASTER", 0.0)
    monkeypatch.setattr(linear, "_NOT_SLOWER", 0.0)
    model = _decoder()
    assert pack_for_inference(model) > 5
    unpack(model)

    def refuse(weight):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(linear, "_reordered", refuse)
    assert pack_for_inference(model) == 0


# Fast paths of training: gradients as those of the plain way.


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_feed_forward_computes_its_activation_again(activation):
    from voxzoo.components.layers.transformer import FeedForward

    torch.manual_seed(0)
    layer = FeedForward(6, 10, activation).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    plain = layer.outer(layer.activation(layer.inner(x)))
    leaves = [x, *layer.parameters()]
    want = torch.autograd.grad(plain.square().sum(), leaves)
    got = torch.autograd.grad(layer(x).square().sum(), leaves)
    torch.testing.assert_close(layer(x), plain)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    layer.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], want[0])


@pytest.mark.parametrize("scores", [1, 40, 200, 10**6])
@pytest.mark.parametrize("dropped", [0.0, 0.3])
@pytest.mark.parametrize("padded", [False, True])
def test_blocked_attention_has_the_gradients_of_the_plain_one(scores, dropped, padded, monkeypatch):
    from voxzoo.components.layers import relative_attention
    from voxzoo.components.layers.dropout import dropout
    from voxzoo.components.layers.relative_attention import RelativeSelfAttention, positions

    torch.manual_seed(0)
    monkeypatch.setattr(relative_attention, "_SCORES", scores)
    layer = RelativeSelfAttention(6, 2, left=3, right=1, dropout=dropped).double().train()
    x = torch.randn(3, 21, 6, dtype=torch.float64, requires_grad=True)
    table = positions("relative_key", 21, x, 3, 1)
    assert table is not None
    mask = torch.arange(21) < torch.tensor([21, 2, 9])[:, None]
    mask = mask[:, None, None] if padded else None
    leaves = [x, *layer.parameters()]

    def plain() -> torch.Tensor:
        query, key, value = layer.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        near = layer.distance[table.flip(0)]
        weights = (query @ key.transpose(-1, -2) + torch.einsum("bhid,ijd->bhij", query, near)) * 3**-0.5
        weights = weights if mask is None else weights.masked_fill(~mask, -torch.inf)
        return layer.out((weights.softmax(-1) @ value).transpose(1, 2).flatten(2))

    if dropped:
        # The same random numbers in both directions: a derivative by differences.
        torch.manual_seed(1)
        loss = layer(x, mask, table).square().sum()
        grad = torch.autograd.grad(loss, x)[0]
        step = torch.randn_like(x) * 1e-6
        sides = []
        for sign in (1, -1):
            torch.manual_seed(1)
            with torch.no_grad():
                sides.append(layer(x + sign * step, mask, table).square().sum())
        torch.testing.assert_close((grad * step).sum(), (sides[0] - sides[1]) / 2, rtol=1e-5, atol=1e-10)
        assert dropout(torch.ones(100), dropped, True).eq(0).any()
        return
    torch.testing.assert_close(layer(x, mask, table), plain())
    want = torch.autograd.grad(plain().square().sum(), leaves)
    got = torch.autograd.grad(layer(x, mask, table).square().sum(), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
