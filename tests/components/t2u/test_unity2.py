"""UnitY2T2U and its aligner: paths against brute force, padding, training, generation, meta run, errors."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from rows import garbage, row_of
from voxzoo.components import UnitY2T2U
from voxzoo.components.errors import UserError
from voxzoo.components.layers.characters import CharacterTable
from voxzoo.components.layers.packing import Packing
from voxzoo.components.layers.runs import keep_steps
from voxzoo.components.t2u.aligner import UnitAligner, best_durations, diagonal_prior
from voxzoo.components.types import Padded
from voxzoo.configs import compose
from voxzoo.configs.targets import allow_list
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.training.train import build_for_training, prepare_data

INPUT, UNITS, EOS = 12, 9, 3
PIECES = ["", "", "", "", "\u2581ab", "c", ",", "\u2581d", "bd", ".", "\u2581", "aac", ""]
CHARACTERS = {character: number for number, character in enumerate(sorted(set("".join(PIECES))), start=2)}


def table():
    out = torch.zeros(len(PIECES), 3, dtype=torch.int64)
    for row, piece in zip(out, PIECES, strict=True):
        row[: len(piece)] = torch.tensor([CHARACTERS[character] for character in piece], dtype=torch.int64)
    out[1, 0] = 1
    return out


def build(**changes):
    torch.manual_seed(0)
    part = UnitY2T2U(
        **{"input_dim": INPUT, "num_units": UNITS, "dim": 16, "num_heads": 2, "ffn_dim": 32, "num_encoder_layers": 1,
           "num_decoder_layers": 2, "kernel_size": 3, "num_characters": 16, "duration_dim": 12, "duration_dropout": 0.0,
           "dropout": 0.0, "attention_dropout": 0.0, "conv_dropout": 0.0, "aligner_dim": 16, "aligner_dropout": 0.0,
           **changes}
    )  # fmt: skip
    part.set_characters(table(), PIECES)
    return part


def inputs(seed=0):
    """Four rows; the last has eos alone, so no character."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[4, 6, 7, 5, 9, EOS], [11, EOS], [10, 6, 4, 6, 1, EOS], [EOS]]
    text = Padded.from_list([torch.tensor(row) for row in rows])
    states = Padded(torch.randn(4, 6, INPUT, generator=generator), text.lengths)
    units = Padded(torch.randint(0, UNITS, (4, 25), generator=generator), torch.tensor([25, 9, 17, 4]))
    return states, units.zeroed(), text


# Characters


def test_the_word_mark_behind_punctuation_sounds_with_it():
    characters = CharacterTable(table(), PIECES)
    text = Padded(torch.tensor([[12, 4, 6, 7, 9, 10, 6, 5, 3], [6, 4, 4, 4, 4, 4, 4, 4, 4]]), torch.tensor([9, 1]))
    # A bare word mark opens no word, and what lies beyond the length is no neighbour.
    assert characters.counts(text).tolist() == [[0, 3, 2, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert CharacterTable(table()).counts(text)[0].tolist() == [0, 3, 1, 2, 1, 1, 1, 1, 0]


def test_spelling_repeats_states_and_lists_characters():
    states, _, text = inputs()
    repeated, ids = CharacterTable(table(), PIECES).spell(states, text)
    spelled = {character: number for number, character in CHARACTERS.items()} | {1: "?"}
    said = ["".join(spelled[i] for i in line.tolist()) for line in ids.unpad()]
    assert said == ["\u2581ab,\u2581dc.", "aac", "\u2581,\u2581ab,?", ""]
    assert not ids.data[~ids.mask].any()
    assert repeated.lengths.tolist() == [8, 3, 7, 0]
    which = [0, 0, 0, 1, 1, 2, 3, 4]
    assert torch.equal(repeated.data[0], states.data[0, which])


def test_steps_that_are_kept_move_left():
    units = Padded(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 9], [4, 4, 9, 9]]), torch.tensor([4, 3, 2]))
    kept = keep_steps(units, units.mask & (units.data % 2 == 0))
    assert kept.lengths.tolist() == [2, 1, 2]
    assert kept.data.tolist() == [[6, 8], [2, 0], [4, 4]]


@pytest.mark.parametrize("lengths", [[7, 3, 5, 1], [0, 4, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0], [2, 9, 1, 1]])
@pytest.mark.parametrize("gap", [0, 2])
def test_packed_rows_come_back(lengths, gap):
    states = Padded(torch.randn(4, 9, 3), torch.tensor(lengths))
    packing = Packing(lengths, 9, gap, states.device)
    packed = packing.pack(states.data)
    assert packed.shape[1] == max(sum(lengths) + 3 * gap, 1)
    assert int(packing.real.sum()) == sum(lengths)
    assert torch.equal(packed[0, packing.real], states.data[states.mask])
    back = packing.unpack(packed)
    assert back.shape == states.data.shape
    assert torch.equal(back[states.mask], states.data[states.mask])
    # A convolution that reaches as far as the gap sees no neighbour.
    weight = torch.randn(3, 3, 2 * gap + 1)
    alone = torch.conv1d(states.zeroed().data.mT, weight, padding=gap).mT
    zeroed = packed.mT.masked_fill(~packing.real, 0)
    together = packing.unpack(torch.conv1d(zeroed, weight, padding=gap).mT)
    torch.testing.assert_close(together[states.mask], alone[states.mask], atol=1e-5, rtol=1e-5)


def test_rows_are_packed_where_it_pays():
    states = Padded(torch.randn(3, 20, 2), torch.tensor([20, 19, 18]))
    assert Packing.of(states, 3) is None
    assert Packing.of(Padded(states.data, torch.tensor([20, 4, 18])), 3) is not None
    assert Packing.of(Padded(states.data[:1], torch.tensor([4])), 3) is None


# Alignment


def every_path(num_characters, num_units):
    """All durations of at least 1 that sum to the number of units."""
    for cuts in combinations(range(1, num_units), num_characters - 1):
        edges = [0, *cuts, num_units]
        yield [b - a for a, b in pairwise(edges)]


def score(log_probs, durations):
    places = torch.arange(len(durations)).repeat_interleave(torch.tensor(durations))
    return float(log_probs.double()[torch.arange(len(places)), places].sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_best_path_is_that_of_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    characters, units = torch.tensor([4, 1, 5, 3, 2]), torch.tensor([9, 6, 5, 10, 7])
    log_probs = torch.randn(5, 10, 5, generator=generator).log_softmax(-1) * 3
    durations = best_durations(log_probs, characters, units)
    assert torch.equal(durations.lengths, characters)
    for i, (c, u) in enumerate(zip(characters.tolist(), units.tolist(), strict=True)):
        got = durations.data[i].tolist()
        assert sum(got) == u
        assert got[c:] == [0] * (5 - c)
        best = max(score(log_probs[i], path) for path in every_path(c, u))
        assert score(log_probs[i], got[:c]) == pytest.approx(best, abs=1e-9)


def test_of_equal_paths_characters_begin_late():
    durations = best_durations(torch.zeros(1, 6, 3), torch.tensor([3]), torch.tensor([6]))
    assert durations.data.tolist() == [[4, 1, 1]]


def test_rows_without_a_path_have_no_durations():
    durations = best_durations(torch.randn(3, 6, 4), torch.tensor([4, 0, 4]), torch.tensor([3, 6, 4]))
    assert durations.lengths.tolist() == [0, 0, 4]
    assert durations.data.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_the_forward_sum_is_over_all_paths():
    """Against the sum over all ways through three characters, a blank of fixed score allowed between them."""
    torch.manual_seed(3)
    aligner = UnitAligner(16, UNITS, 8, dropout=0.0, prior=0.0)
    characters, units = (
        Padded(torch.tensor([[2, 5, 2]]), torch.tensor([3])),
        Padded(torch.arange(6)[None], torch.tensor([6])),
    )
    log_probs = aligner.log_probs(characters, units)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1, 6))
    _, loss, binarisation = aligner(characters, units)
    assert int(loss.count) == 3
    scores = torch.cat([torch.full((1, 6, 1), -1.0), log_probs], -1).log_softmax(-1)[0]
    total = torch.logsumexp(
        torch.stack([
            scores[torch.arange(6), torch.tensor(way)].sum()
            for way in torch.cartesian_prod(*[torch.arange(4)] * 6).tolist()
            if [b for a, b in zip([0, *way], way) if b and b != a] == [1, 2, 3]
        ]), 0,
    )  # fmt: skip
    torch.testing.assert_close(loss.total, -total, atol=1e-4, rtol=1e-5)
    best = max(score(log_probs[0].detach(), path) for path in every_path(3, 6))
    assert float(binarisation.total.detach()) == pytest.approx(-best, abs=1e-4)
    assert int(binarisation.count) == 6


def test_the_prior_is_a_distribution_around_the_diagonal():
    characters, units = (
        Padded(torch.zeros(2, 7), torch.tensor([7, 4])),
        Padded(torch.zeros(2, 30), torch.tensor([30, 9])),
    )
    prior = diagonal_prior(characters, units, 1.0)
    for i, (c, u) in enumerate([(7, 30), (4, 9)]):
        shares = prior[i, :u, :c].exp()
        torch.testing.assert_close(shares.sum(-1), torch.ones(u), atol=1e-3, rtol=1e-3)
        peaks = shares.argmax(-1)
        assert peaks[0] == 0
        assert peaks[-1] == c - 1
        assert (peaks.diff() >= 0).all()
        beta = torch.arange(1, u + 1)[:, None], u + 1 - torch.arange(1, u + 1)[:, None]
        mean = (shares * torch.arange(c)).sum(-1)
        torch.testing.assert_close(mean, ((c - 1) * beta[0] / (beta[0] + beta[1]))[:, 0], atol=1e-2, rtol=1e-3)
    assert not prior[1, 9:].any()
    assert not prior[1, :, 4:].any()


def synthetic(num_rows, generator):
    """Each character repeats its own unit for a time: characters, units and true durations."""
    characters, units, durations = [], [], []
    for _ in range(num_rows):
        size = int(torch.randint(3, 9, (1,), generator=generator))
        # No neighbours alike: where one of two ends cannot be known.
        line = torch.cumsum(torch.randint(1, UNITS, (size,), generator=generator), 0) % UNITS
        lasts = torch.randint(1, 6, (size,), generator=generator)
        characters.append(line + 2)
        units.append(line.repeat_interleave(lasts))
        durations.append(lasts)
    return Padded.from_list(characters), Padded.from_list(units), Padded.from_list(durations)


def test_the_aligner_recovers_known_durations():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    aligner = UnitAligner(16, UNITS, 24, dropout=0.0)
    optimizer = torch.optim.Adam(aligner.parameters(), lr=5e-3)
    for _ in range(120):
        characters, units, _ = synthetic(16, generator)
        _, forward_sum, binarisation = aligner(characters, units)
        optimizer.zero_grad()
        (forward_sum.mean + binarisation.mean).backward()
        optimizer.step()
    characters, units, durations = synthetic(50, generator)
    got = aligner(characters, units)[0]
    right = (got.data == durations.data)[durations.mask].float().mean()
    assert float(right) > 0.98


# The part


def test_losses_add_over_rows_whatever_the_padding():
    part = build().eval()
    states, units, text = inputs()
    whole = part(states, units, text)
    dirty = part(garbage(states), garbage(units), garbage(text))
    rows = [part(row_of(states, i), row_of(units, i), row_of(text, i)) for i in range(4)]
    assert list(whole) == ["t2u_unit", "t2u_duration", "t2u_alignment", "t2u_binarisation"]
    for key, loss in whole.items():
        assert int(loss.count) == sum(int(r[key].count) for r in rows) > 0
        torch.testing.assert_close(loss.total, torch.stack([r[key].total for r in rows]).sum(), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(loss.total, dirty[key].total, atol=1e-4, rtol=1e-5)
    # The last row has no characters.
    counts = {key: int(loss.count) for key, loss in whole.items()}
    assert counts == {"t2u_unit": 51, "t2u_binarisation": 51, "t2u_duration": 18, "t2u_alignment": 18}


def test_a_row_with_fewer_units_than_characters_adds_nothing():
    part = build().eval()
    states, units, text = inputs()
    units = Padded(units.data, torch.tensor([7, 9, 7, 4])).zeroed()  # 8, 3, 7 and 0 characters
    losses = part(states, units, text)
    rows = [part(row_of(states, i), row_of(units, i), row_of(text, i)) for i in (1, 2)]
    for key, loss in losses.items():
        assert loss.total.isfinite()
        assert int(loss.count) == sum(int(r[key].count) for r in rows)
        torch.testing.assert_close(loss.total, sum(r[key].total for r in rows), atol=1e-4, rtol=1e-5)
    alone = part(row_of(states, 0), row_of(units, 0), row_of(text, 0))
    sum(loss.total for loss in alone.values()).backward()
    assert all(int(loss.count) == 0 and float(loss.total.detach()) == 0 for loss in alone.values())
    assert all(p.grad is None or not p.grad.any() for p in part.parameters())


def test_durations_may_come_from_elsewhere():
    part = build(aligner=False).eval()
    states, units, text = inputs()
    with pytest.raises(UserError, match="aligner=true"):
        part(states, units, text)
    given = Padded(torch.zeros(4, 8, dtype=torch.int64), torch.tensor([8, 3, 7, 0]))
    given.data[0] = torch.tensor([4, 3, 3, 3, 3, 3, 3, 3])
    given.data[1, :3] = 3
    given.data[2, :7] = 2  # not the 17 units of the row
    losses = part(states, units, text, durations=given)
    assert {key: int(loss.count) for key, loss in losses.items()} == {
        "t2u_unit": 34, "t2u_duration": 11, "t2u_alignment": 0, "t2u_binarisation": 0
    }  # fmt: skip
    # And it is those durations that the units are named under.
    hidden, _ = part.spell(row_of(states, 1), row_of(text, 1))
    decoded = part.decode(hidden, Padded(torch.tensor([[3, 3, 3]]), torch.tensor([3])))
    wrong = part.decode(hidden, Padded(torch.tensor([[1, 1, 7]]), torch.tensor([3])))
    assert decoded.data.shape == wrong.data.shape == (1, 9, 16)
    assert (decoded.data - wrong.data).abs().max() > 1e-2


def test_learns_a_few_sentences_and_says_them_back():
    part = build(dim=32, label_smoothing=0.0)
    states, _, text = inputs()
    generator = torch.Generator().manual_seed(1)
    # A unit for each character, with noise in how long it lasts.
    _, characters = part._characters.spell(states, text)
    lasts = [torch.randint(1, 6, (len(line),), generator=generator) for line in characters.unpad()]
    units = Padded.from_list([(line % UNITS).repeat_interleave(n) for line, n in zip(characters.unpad(), lasts)])
    optimizer = torch.optim.Adam(part.parameters(), lr=5e-3)
    history = []
    for _ in range(160):
        losses = part(states, units, text)
        history.append({key: float(loss.mean.detach()) for key, loss in losses.items()})
        optimizer.zero_grad()
        sum(loss.mean for loss in losses.values()).backward()
        optimizer.step()
    for key in history[0]:
        assert history[-1][key] < 0.5 * history[0][key], key
    part.eval()
    output = part.generate(states, text)
    assert [line.tolist() for line in output.units.unpad()] == [line.tolist() for line in units.unpad()]
    assert output.durations.data[output.units.mask].eq(1).all()
    assert output.units.lengths[3] == 0
    slow = part.generate(states, text, duration_factor=2.0).units
    assert int(slow.lengths.sum()) > 1.5 * int(units.lengths.sum())


def test_generation_of_a_batch_is_that_of_each_row():
    part = build().eval()
    states, _, text = inputs(seed=3)
    with torch.no_grad():  # far from uniform, so that rows and durations differ
        for parameter in part.parameters():
            parameter.mul_(1.5)
        part.duration.proj.bias.fill_(1.0)
        part.output.weight[:4] -= 1.0
    together = part.generate(garbage(states), garbage(text))
    assert len(set(together.units.data[together.units.mask].tolist())) > 2
    logits = part.logits(garbage(states), garbage(text))
    for i in range(4):
        alone = part.generate(row_of(states, i), row_of(text, i))
        n = int(alone.units.lengths[0])
        assert int(together.units.lengths[i]) == n
        assert torch.equal(together.units.data[i, :n], alone.units.data[0, :n])
        torch.testing.assert_close(together.scores[i], alone.scores[0], atol=1e-4, rtol=1e-5)
        steps = int(logits.lengths[i])
        single = part.logits(row_of(states, i), row_of(text, i)).data[0, :steps]
        torch.testing.assert_close(logits.data[i, :steps], single, atol=1e-5, rtol=1e-5)
    assert not together.units.data[~together.units.mask].any()


def test_units_are_chosen_in_pieces_alike(monkeypatch):
    part = build().eval()
    states, _, text = inputs()
    whole = part.generate(states, text)
    monkeypatch.setattr("voxzoo.components.t2u.unity2._CHUNK_LOGITS", 40)
    pieces = part.generate(states, text)
    assert torch.equal(whole.units.data, pieces.units.data)
    torch.testing.assert_close(whole.scores, pieces.scores)


def test_temperature_draws():
    part = build().eval()
    states, _, text = inputs()
    with torch.no_grad():
        part.duration.proj.bias.fill_(3.0)
        part.output.weight.mul_(0)
    torch.manual_seed(1)
    drawn = part.generate(states, text, temperature=0.7).units
    assert set(drawn.data[drawn.mask].tolist()) == set(range(UNITS))
    assert len(set(part.generate(states, text).units.data.flatten().tolist())) == 1


def test_who_says_how_long_a_unit_lasts():
    states, _, text = inputs()
    assert build(vocoder_predicts_durations=True).eval().generate(states, text).durations is None


@pytest.mark.parametrize("aligner", [True, False])
def test_runs_on_meta_tensors(aligner):
    with torch.device("meta"):
        part = build(aligner=aligner)
        part.set_characters(torch.zeros(len(PIECES), 3, dtype=torch.int64))  # a table that knows nothing is no table
    assert all(p.is_meta for p in part.parameters())
    assert not list(part.buffers())
    part.set_characters(table(), PIECES)
    states, units, text = (Padded(x.data.to("meta"), x.lengths) for x in inputs())
    losses = part(states, units, text)
    assert all(loss.total.is_meta and loss.total.shape == () for loss in losses.values())
    sum(loss.total for loss in losses.values()).backward()
    output = part.generate(states, text)
    assert output.units.data.is_meta
    assert output.durations.data.shape == output.units.data.shape


def test_a_task_built_without_weights_still_spells(tiny, tmp_path):
    """Characters come from the tokenizer, not from a checkpoint, also where the parts begin on the meta device."""
    parts = ["unit_extractor=tiny", "vocoder=tiny", "t2u=tiny_unity2", "task=speech_to_speech_unity"]
    config = compose([*tiny, *parts, f"root={tmp_path}"])
    prepare_data(config)
    task = build_for_training(config, Path(config.run_dir)).eval()
    empty = assemble(config, allow_list(config), weights="empty", assets=task.assets())
    assert all(p.is_meta for p in empty.parts()["t2u"].parameters())
    empty.load_state_dict(task.state_dict(), assign=True)
    ids = [*task.tokenizer.encode("one, two. three"), task.tokenizer.eos_id]
    text = Padded(torch.tensor([ids]), torch.tensor([len(ids)]))
    states = Padded(torch.randn(1, len(ids), task.t2u.input_dim), text.lengths)
    got = empty.eval().t2u.generate(states, text).units
    assert int(got.lengths[0]) > 0
    assert torch.equal(got.data, task.t2u.generate(states, text).units.data)


def test_the_published_layout_is_all_that_a_part_without_aligner_holds():
    names = build(aligner=False).state_dict().keys()
    extra = build().state_dict().keys() - names
    assert extra
    assert all(name.startswith("aligner.") for name in extra)


def test_errors():
    states, units, text = inputs()
    with pytest.raises(ValueError, match="needs `text`"):
        build()(states, units)
    with pytest.raises(ValueError, match="one token for each state"):
        build()(states, units, Padded(text.data[:, 1:], text.lengths))
    with pytest.raises(ValueError, match="vocab_size=12 is too small"):
        build(vocab_size=12)
    with pytest.raises(ValueError, match="kernel_size=4 is even"):
        build(kernel_size=4)
    with pytest.raises(ValueError, match=r"raise t2u\.num_characters"):
        build(num_characters=5)
    with pytest.raises(ValueError, match="give one each"):
        build().set_characters(table(), PIECES[:-1])
    bare = UnitY2T2U(INPUT, UNITS, 16, 2)
    with pytest.raises(RuntimeError, match="set_characters"):
        bare(states, units, text)
    with pytest.raises(TypeError, match="no option beams"):
        build().generate(states, text, beams=3)
    with pytest.raises(ValueError, match="temperature"):
        build().generate(states, text, temperature=-1.0)
    with pytest.raises(ValueError, match="aligner_prior"):
        build(aligner_prior=-1.0)
