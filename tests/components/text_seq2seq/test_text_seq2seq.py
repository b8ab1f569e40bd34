"""TransformerSeq2Seq: padding, causality, cached decoding, switches, meta; attention and positions beneath it."""

import math

import pytest
import torch
from voxzoo.components import TransformerSeq2Seq
from voxzoo.components.layers.attention import MultiHeadAttention
from voxzoo.components.layers.positions import SinusoidalPositions
from voxzoo.components.types import Padded

V = 29


def build(**change) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": V,
        "dim": 24,
        "num_heads": 3,
        "ffn_dim": 40,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
    }
    return TransformerSeq2Seq(**{**sizes, **change}).eval()


def ids(*lengths: int) -> Padded:
    return Padded.from_list([torch.randint(4, V, (length,)) for length in lengths])


# Attention and positions


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, memory_dim=6)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None]
    query, (key, value) = attention.q(x), attention.kv(memory).split(8, dim=-1)
    outputs = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = query[..., part] @ key[..., part].mT / 2
        scores = scores.masked_fill(~mask[:, 0], -math.inf)
        outputs.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(attention(x, memory, mask), attention.out(torch.cat(outputs, -1)), atol=1e-6, rtol=1e-5)


def test_attention_without_any_key_is_zero_and_so_is_its_gradient():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, memory_dim=8)
    memory = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])[:, None, None]
    y = attention(torch.randn(2, 3, 8), memory, mask)
    assert torch.equal(y[1], attention.out.bias.expand(3, 8))
    y.square().sum().backward()
    assert memory.grad is not None
    assert memory.grad.isfinite().all()
    assert memory.grad[1].abs().max() == 0


def test_causal_attention_with_a_mask():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2)
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()[:, None, None]
    y = attention(x, mask=mask, causal=True)
    torch.testing.assert_close(y[0], attention(x, causal=True)[0], atol=1e-6, rtol=1e-5)
    for step in range(5):
        alone = attention(x[1:, : min(step + 1, 3)], causal=True) if step < 3 else None
        if alone is not None:
            torch.testing.assert_close(y[1, step], alone[0, -1], atol=1e-6, rtol=1e-5)


def test_attention_says_what_it_was_built_for():
    with pytest.raises(ValueError, match="memory_dim"):
        MultiHeadAttention(8, 2)(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MultiHeadAttention(9, 2)


def test_positions():
    positions = SinusoidalPositions(6, start=2)
    row = positions(torch.zeros(1, 1, 6), offset=5)[0, 0]
    rates = [1, 10000**-0.5, 10000**-1]
    want = [math.sin(7 * rate) for rate in rates] + [math.cos(7 * rate) for rate in rates]
    torch.testing.assert_close(row, torch.tensor(want), atol=1e-6, rtol=1e-5)
    short = positions(torch.zeros(1, 10, 6))
    long = positions(torch.zeros(1, 1000, 6))
    assert torch.equal(short[0], long[0, :10])
    assert positions.state_dict() == {}
    assert positions(torch.zeros(1, 3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="even dim"):
        SinusoidalPositions(5)


# The model


def test_decoder_alone():
    model = build(num_encoder_layers=0)
    assert not model.has_encoder
    memory = Padded(torch.randn(2, 5, 24), torch.tensor([5, 3]))
    assert model(memory, ids(3, 4)).data.shape == (2, 4, V)
    with pytest.raises(ValueError, match="num_encoder_layers"):
        model.encode(ids(3))


def test_memory_of_another_width_is_refused():
    with pytest.raises(ValueError, match="24"):
        build().decode(Padded(torch.randn(1, 5, 8), torch.tensor([5])), ids(3))


def test_tied_matrices_are_stored_once_and_switches_untie_them():
    def matrices(model):
        return [name for name, weight in model.state_dict().items() if weight.shape == (V, 24)]

    assert len(matrices(build())) == 1
    assert len(matrices(build(tie_output=False))) == 2
    untied = build(tie_output=False, tie_embeddings=False)
    assert len(matrices(untied)) == 3
    memory = untied.encode(ids(4))
    untied(memory, ids(3)).data.sum().backward()
    assert all(weight.grad is not None for weight in untied.parameters())


def test_position_start_and_scale_change_the_numbers():
    text = ids(5)
    base = build().encode(text).data
    for change in ({"position_start": 1}, {"scale_embeddings": False}):
        assert (build(**change).encode(text).data - base).abs().max() > 1e-3


def test_dropout_kinds_act_only_in_training():
    text = ids(6, 4)
    for kind in ("dropout", "attention_dropout", "activation_dropout", "ffn_dropout", "layerdrop"):
        off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "ffn_dropout", "layerdrop"), 0.0)
        model = build(**{**off, kind: 0.5})
        assert torch.equal(model.encode(text).data, model.encode(text).data), kind
        model.train()
        draws = [model.encode(text).data for _ in range(6)]
        assert any(not torch.equal(draws[0], other) for other in draws[1:]), kind


def test_a_dropped_layer_still_gives_every_parameter_a_gradient():
    model = build(layerdrop=1.0).train()
    model(model.encode(ids(5)), ids(4)).data.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad.abs().max() == 0 for weight in model.encoder.layers.parameters())


def test_step_in_training_mode_is_refused():
    model = build().train()
    memory = Padded(torch.randn(1, 5, 24), torch.tensor([5]))
    with pytest.raises(RuntimeError, match="eval"):
        model.step(torch.tensor([3]), model.start(memory))


def test_materialised_from_meta_equals_built_directly():
    real = build()
    with torch.device("meta"):
        empty = TransformerSeq2Seq(
            vocab_size=V, dim=24, num_heads=3, ffn_dim=40, num_encoder_layers=2, num_decoder_layers=2
        )
    text = ids(5)
    empty.encode(Padded(text.data.to("meta"), text.lengths))
    empty.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(empty.eval().encode(text).data, real.encode(text).data)
