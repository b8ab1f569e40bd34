"""Text-to-unit models and the duration predictor: shapes, padding, gradients, meta run, learning, generation."""

import warnings

import pytest
import torch
from rows import garbage, row_of
from voxzoo.components import CTCT2U, AutoregressiveT2U
from voxzoo.components.layers.duration import CHARACTER_STEPS, DurationPredictor, bound_rows
from voxzoo.components.layers.runs import reduce_runs
from voxzoo.components.types import Padded

INPUT, UNITS, V = 12, 9, 20


def table():
    """Characters of 20 ids: 0..3 and the last have none, the others 1 to 3."""
    out = torch.zeros(V, 3, dtype=torch.int64)
    for row in range(4, V - 1):
        out[row, : 1 + row % 3] = torch.arange(1 + row % 3) + 2 + row % 5
    return out


def build(kind, **changes):
    torch.manual_seed(0)
    if kind == "autoregressive":
        return AutoregressiveT2U(
            **{"input_dim": INPUT, "num_units": UNITS, "dim": 16, "num_heads": 2, "ffn_dim": 32,
               "num_encoder_layers": 1, "num_decoder_layers": 2, "num_languages": 2, "default_language": 1,
               "dropout": 0.0, "attention_dropout": 0.0, "beam_size": 2, **changes}
        )  # fmt: skip
    part = CTCT2U(
        **{"input_dim": INPUT, "num_units": UNITS, "vocab_size": V, "upsample_by": kind, "upsample": 4, "dim": 16,
           "num_conv_layers": 2, "num_attention_layers": 1, "num_output_layers": 1, "num_heads": 2, "kernel_size": 3,
           "num_characters": 16, "duration_dim": 12, "duration_kernel_size": 3, **changes}
    )  # fmt: skip
    part.set_characters(table())
    return part


KINDS = ["character", "subword", "autoregressive"]


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 3, 5, 1])
    states = Padded(torch.randn(4, 7, INPUT, generator=generator), lengths)
    text = Padded(torch.randint(4, V - 1, (4, 7), generator=generator), lengths)
    text.data[torch.arange(4), lengths - 1] = 3
    units = Padded(torch.randint(0, UNITS, (4, 9), generator=generator), torch.tensor([9, 5, 6, 3]))
    units.data[:, 1] = units.data[:, 0]  # a run in every row
    return states, units.zeroed(), text


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_reduced_units(kind):
    part = build(kind)
    states, units, text = inputs()
    reduced, _ = reduce_runs(units)
    counts = {key: int(loss.count) for key, loss in part(states, units, text).items()}
    total = int(reduced.lengths.sum())
    if kind == "autoregressive":
        assert counts == {"t2u_unit": total + 4}  # and an eos for each row
    elif kind == "character":
        assert counts == {"t2u_ctc": total, "t2u_duration": total}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_meta_tensors(kind):
    with torch.device("meta"):
        part = build(kind)
    assert all(p.is_meta for p in part.parameters())
    states, units, text = (Padded(x.data.to("meta"), x.lengths) for x in inputs())
    losses = part(states, units, text)
    assert all(loss.total.is_meta and loss.total.shape == () for loss in losses.values())
    sum(loss.total for loss in losses.values()).backward()
    if kind != "autoregressive":
        output = part.generate(states, text)
        assert output.units.data.is_meta
        assert output.durations.data.shape == output.units.data.shape


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives_a_checkpoint(kind, tmp_path):
    part = build(kind).eval()
    torch.save(part.state_dict(), tmp_path / "part.pt")
    torch.manual_seed(9)
    if kind == "autoregressive":
        other = build(kind)
    else:  # without set_characters: the table is in the checkpoint
        other = CTCT2U(INPUT, UNITS, V, kind, 4, 16, 2, 1, 1, 2, 3, num_characters=16, duration_dim=12, duration_kernel_size=3)  # fmt: skip # noqa: E501
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    states, units, text = inputs()
    for key, loss in other.eval()(states, units, text).items():
        assert torch.equal(loss.total, part(states, units, text)[key].total)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_a_few_sentences_and_says_them_back(kind):
    part = build(kind, **({"label_smoothing": 0.0} if kind == "autoregressive" else {"dim": 32}))
    states, units, text = inputs()
    optimizer = torch.optim.Adam(part.parameters(), lr=5e-3 if kind == "autoregressive" else 1e-2)
    for _ in range(200 if kind == "autoregressive" else 120):
        losses = part(states, units, text)
        optimizer.zero_grad()
        sum(loss.mean for loss in losses.values()).backward()
        optimizer.step()
    part.eval()
    output = part.generate(states, text)
    reduced, durations = reduce_runs(units)
    # The text of the last row (eos alone) has room for 4 steps: enough for its 2 or 3 units.
    assert [r.tolist() for r in output.units.unpad()] == [r.tolist() for r in reduced.unpad()]
    assert output.scores.shape == (4,)
    assert output.units.data.dtype == torch.int64
    assert not output.units.data[~output.units.mask].any()
    if kind == "autoregressive":
        assert output.durations is None
    else:
        assert [r.tolist() for r in output.durations.unpad()] == [r.tolist() for r in durations.unpad()]
        slow = part.generate(states, text, duration_factor=3.0).durations
        assert (slow.data[slow.mask] >= 2 * durations.data[slow.mask]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_generation_of_a_batch_is_that_of_each_row(kind):
    part = build(kind).eval()
    states, _, text = inputs(seed=3)
    with torch.no_grad():  # far from uniform, so that rows differ and CTC does not write blanks alone
        for parameter in part.parameters():
            parameter.mul_(2)
    if kind == "autoregressive":
        part.search = type(part.search)(beam_size=2, max_length_a=2.0, max_length_b=1)
    together = part.generate(garbage(states), garbage(text))
    assert int(together.units.lengths.max()) > 0
    for i in range(4):
        alone = part.generate(row_of(states, i), row_of(text, i))
        n = int(alone.units.lengths[0])
        assert int(together.units.lengths[i]) == n
        assert torch.equal(together.units.data[i, :n], alone.units.data[0, :n])
        torch.testing.assert_close(together.scores[i], alone.scores[0], atol=1e-4, rtol=1e-5)
        if alone.durations is not None:
            assert torch.equal(together.durations.data[i, :n], alone.durations.data[0, :n])
            assert (alone.durations.data[0, :n] >= 1).all()


def test_a_state_is_repeated_for_each_character():
    part = build("character", num_conv_layers=0, num_attention_layers=0, num_output_layers=0, upsample=2).eval()
    states, _, text = inputs()
    counts = (table() > 0).sum(1)[text.data].clamp(min=1).masked_fill(~text.mask, 0)
    logits = part.logits(states, text)
    assert torch.equal(logits.lengths, 2 * counts.sum(1))
    # Without layers that mix steps, a step is a function of its state and its character.
    first = 2 * int(counts[0, 0])
    ids = table()[text.data[0, 0]]
    hidden = part.input(states.data[0, 0]) + part.character_embedding(ids[: counts[0, 0]])
    expected = part.head(part.norm(part.expand(hidden).view(-1, 16)))
    torch.testing.assert_close(logits.data[0, :first], expected)


def test_rows_that_ctc_cannot_align_add_nothing():
    part = build("subword", upsample=1).eval()
    states, units, text = inputs()
    reduced, _ = reduce_runs(units)
    assert (reduced.lengths > states.lengths).any()  # more units than steps
    losses = part(states, units, text)
    fits = [i for i in range(4) if int(reduced.lengths[i]) <= int(states.lengths[i])]
    rows = [part(row_of(states, i), row_of(units, i))["t2u_ctc"] for i in fits]
    torch.testing.assert_close(losses["t2u_ctc"].total, sum((r.total for r in rows), torch.zeros(())))
    assert losses["t2u_ctc"].total.isfinite()
    assert int(losses["t2u_duration"].count) == int(reduced.lengths.sum())


def test_an_empty_answer_is_allowed():
    part = build("subword").eval()
    with torch.no_grad():
        part.head.bias[part.blank] = 1e4
    states, _, _ = inputs()
    output = part.generate(states)
    assert output.units.lengths.tolist() == [0, 0, 0, 0]
    assert output.durations.lengths.tolist() == [0, 0, 0, 0]


def test_ctc_errors():
    states, units, text = inputs()
    with pytest.raises(ValueError, match="needs `text`"):
        build("character")(states, units)
    with pytest.raises(ValueError, match=r"text is \(4, 6\) but the states are \(4, 7\)"):
        build("character")(states, units, Padded(text.data[:, :6], text.lengths.clamp(max=6)))
    bare = CTCT2U(INPUT, UNITS, V)
    with pytest.raises(RuntimeError, match="set_characters"):
        bare(states, units, text)
    with pytest.raises(ValueError, match=r"\(7, 3\), expected \(20, at most 16\)"):
        bare.set_characters(torch.zeros(7, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"num_characters=512 but the tokenizer has 601"):
        bare.set_characters(torch.full((V, 3), 600))
    with pytest.raises(ValueError, match="needs vocab_size"):
        CTCT2U(INPUT, UNITS)
    with pytest.raises(ValueError, match="kernel_size=4"):
        CTCT2U(INPUT, UNITS, V, kernel_size=4)
    with pytest.raises(TypeError, match="beam"):
        build("subword").eval().generate(states, beam=3)


def test_autoregressive_targets():
    part = build("autoregressive")
    assert part.vocab_size == 4 + UNITS + 2
    units = Padded(torch.tensor([[5, 0, 8], [2, 0, 0]]), torch.tensor([3, 1]))
    tokens, labels, counts = part.pack(units, torch.tensor([0, 1]))
    assert tokens.data.tolist() == [[2, 13, 9, 4, 12], [2, 14, 6, 1, 1]]
    assert tokens.lengths.tolist() == [5, 3]
    assert labels.tolist() == [[13, 9, 4, 12, 2], [14, 6, 2, 1, 1]]
    assert counts.tolist() == [[False, True, True, True, True], [False, True, True, False, False]]
    tokens, labels, counts = build("autoregressive", num_languages=0, default_language=None).pack(units)
    assert tokens.data.tolist() == [[2, 9, 4, 12], [2, 6, 1, 1]]
    assert labels.tolist() == [[9, 4, 12, 2], [6, 2, 1, 1]]
    assert counts.tolist() == [[True] * 4, [True, True, False, False]]


def test_autoregressive_language_matters_and_stays_out_of_the_output():
    part = build("autoregressive").eval()
    states, units, _ = inputs()
    zero, one = (part(states, units, lang=torch.full((4,), i))["t2u_unit"].total for i in (0, 1))
    assert not torch.isclose(zero, one)
    assert torch.equal(one, part(states, units)["t2u_unit"].total)  # the default
    with torch.no_grad():  # a decoder in love with a language token
        part.decoder.norm.bias.copy_(20 * part.decoder.embed.embedding.weight[part.first_language_id])
    assert int(part.generate(states).units.data.max()) < UNITS


def test_autoregressive_errors():
    states, units, _ = inputs()
    with pytest.raises(ValueError, match="give `lang`"):
        build("autoregressive", default_language=None)(states, units)
    with pytest.raises(ValueError, match="first free row is 13"):
        build("autoregressive", first_language_id=12)
    with pytest.raises(ValueError, match=r"vocab_size=14 .* need 15 rows"):
        build("autoregressive", vocab_size=14)
    with pytest.raises(ValueError, match="default_language=2"):
        build("autoregressive", default_language=2)
    with pytest.raises(TypeError, match="duration_factor"):
        build("autoregressive").eval().generate(states, duration_factor=2.0)


def test_duration_predictor_ignores_padding():
    torch.manual_seed(0)
    predictor = DurationPredictor(6, 10, 5, 0.5).eval()
    states = Padded(torch.randn(3, 7, 6), torch.tensor([7, 2, 1]))
    durations = Padded(torch.randint(1, 9, (3, 7)), states.lengths)
    together = predictor(garbage(states)).data
    for i, n in enumerate(states.lengths.tolist()):
        torch.testing.assert_close(together[i, :n], predictor(row_of(states, i)).data[0], atol=1e-5, rtol=1e-5)
    whole = predictor.loss(garbage(states), garbage(durations))
    parts = [predictor.loss(row_of(states, i), row_of(durations, i)) for i in range(3)]
    assert int(whole.count) == 10
    torch.testing.assert_close(whole.total, sum(p.total for p in parts))
    by_hand = (together[0, :7] - (durations.data[0].float() + 1).log()).square().sum()
    torch.testing.assert_close(parts[0].total, by_hand)


def test_duration_predictor_learns_and_scales():
    torch.manual_seed(0)
    predictor = DurationPredictor(6, 16, 3, 0.0)
    states = Padded(torch.randn(2, 6, 6), torch.tensor([6, 4]))
    durations = Padded(torch.randint(1, 12, (2, 6)), states.lengths).zeroed()
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        predictor.loss(states, durations).mean.backward()
        optimizer.step()
    predicted = predictor.predict(states)
    assert predicted.data.dtype == torch.int64
    assert torch.equal(predicted.data, durations.data)
    slow = predictor.predict(states, factor=10.0)
    assert ((slow.data - 10 * durations.data).abs() <= 5)[states.mask].all()
    assert (predictor.predict(states, factor=1e-6).data == states.mask).all()  # never below one frame


def test_durations_that_run_away_are_cut_by_row_and_said():
    """The sum of a row is bounded by what it has; rows that are not beyond it stay, and so do short durations."""
    durations = Padded(torch.tensor([[3, 10_000, 2, 9], [400, 50, 4, 10_000]]), torch.tensor([4, 3]))
    with pytest.warns(RuntimeWarning, match=r"in 1 of 2 rows and were cut: 10014 steps for 4 units, at most 580"):
        found = bound_rows(durations)
    assert found.data.tolist() == [[3, 145, 2, 9], [400, 50, 4, 0]]
    with pytest.warns(RuntimeWarning, match="for 4 characters, at most 1400"):
        assert bound_rows(durations, 2.0, CHARACTER_STEPS).data.tolist()[0] == [3, 350, 2, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bound_rows(Padded(durations.data[1:], torch.tensor([3]))).data.tolist() == [[400, 50, 4, 0]]


def test_a_predictor_that_runs_away_asks_for_no_more_than_its_bound():
    predictor = DurationPredictor(6, 10, 3, 0.0).eval()
    torch.nn.init.constant_(predictor.proj.bias, 50.0)
    states = Padded(torch.zeros(2, 40, 6), torch.tensor([40, 1]))
    with pytest.warns(RuntimeWarning, match="durations ran away in 2 of 2 rows"):
        assert predictor.predict(states).data.sum(1).tolist() == [1280, 520]
