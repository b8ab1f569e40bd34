"""Shares of the training data: exact in each epoch, on any number of ranks, before and after a restart."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_corpora import lines
from voxzoo.components.errors import UserError
from voxzoo.configs.build import build
from voxzoo.configs.check import check
from voxzoo.configs.compose import compose
from voxzoo.configs.targets import allow_list
from voxzoo.datamodules import BatchSampler, Mix, SpeechTranslationData
from voxzoo.datamodules.contract import examine_data
from voxzoo.datamodules.mixing import Mixture, apportioned

RANDOM = np.random.RandomState(0)
SIZES = {"que-spa": 40, "fra-eng": 300, "spa-eng": 1660}
NAMES = np.repeat([*SIZES], [*SIZES.values()])
SECONDS = np.clip(RANDOM.lognormal(1.2, 0.7, len(NAMES)), 0.3, 34)
TOKENS = (3 + 4 * SECONDS + RANDOM.randint(0, 9, len(NAMES))).astype(int)


def mixture(**options: object) -> Mixture:
    names = sorted(SIZES)
    settings = {"by": "languages", "temperature": 3.0, **options}
    return Mix(**settings).mixture(np.searchsorted(names, NAMES), names, SECONDS)  # pyright: ignore


def sampler(made: Mixture, world_size: int = 1, rank: int = 0, **options: object) -> BatchSampler:
    settings = {"batch_seconds": 60.0, "batch_tokens": 300, "seed": 5, **options}
    return BatchSampler(
        seconds=SECONDS, tokens=TOKENS, mixture=made, world_size=world_size, rank=rank, **settings  # pyright: ignore
    )  # fmt: skip


def shares(indices: list[int], by: np.ndarray | None = None) -> dict[str, float]:
    weights = np.ones(len(NAMES)) if by is None else by
    total = weights[indices].sum()
    return {name: weights[[i for i in indices if NAMES[i] == name]].sum() / total for name in SIZES}


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, math.inf])
def test_shares_are_those_of_the_temperature(temperature: float):
    theory = {name: size ** (1 / temperature) for name, size in SIZES.items()}
    made = sampler(mixture(temperature=temperature))
    for epoch in range(3):
        found = shares(flat(made.plan(epoch)))
        for name, share in theory.items():
            assert found[name] == pytest.approx(share / sum(theory.values()), abs=1 / len(NAMES))


def test_shares_are_those_of_the_weights():
    made = sampler(mixture(temperature=1.0, weights={"que-spa": 3, "fra-eng": 1, "spa-eng": 0}, size=500))
    taken = Counter(NAMES[flat(made.plan(0))])
    assert taken == {"que-spa": 375, "fra-eng": 125}


def test_shares_of_hours():
    made = sampler(mixture(temperature=1.0, count="hours", weights={"que-spa": 1, "fra-eng": 1, "spa-eng": 2}))
    found = shares(flat(made.plan(0)), SECONDS)
    assert all(
        abs(found[name] - share) < 0.01 for name, share in (("que-spa", 0.25), ("fra-eng", 0.25), ("spa-eng", 0.5))
    )


def test_the_natural_shares_take_each_once():
    made = sampler(mixture(temperature=1.0))
    for epoch in range(2):
        assert sorted(flat(made.plan(epoch))) == list(range(len(NAMES)))


def test_budgets_hold_and_epochs_are_of_one_length():
    made = sampler(mixture())
    plans = [made.plan(epoch) for epoch in range(6)]
    assert len({len(plan) for plan in plans}) == 1
    assert len(made) == len(plans[0])
    for plan in plans:
        assert len(flat(plan)) == len(NAMES)
        for batch in plan:
            assert SECONDS[batch].max() * len(batch) <= 60 + 1e-6 or len(batch) == 1
            assert TOKENS[batch].max() * len(batch) <= 300 or len(batch) == 1
    padded = sum(SECONDS[batch].max() * len(batch) for batch in plans[0])
    assert SECONDS[flat(plans[0])].sum() / padded > 0.9
    assert plans[0] != plans[1]


def test_all_of_a_group_are_taken_in_turn_and_equally_often():
    made = sampler(mixture(temperature=1.0, weights={"que-spa": 1, "fra-eng": 1, "spa-eng": 2}, size=640))
    often = {"que-spa": 4.0, "fra-eng": 160 / 300, "spa-eng": 320 / 1660}
    epochs = 200
    found = Counter(index for epoch in range(epochs) for index in flat(made.plan(epoch)))
    for name, rate in often.items():
        counts = np.array([found[index] for index in np.flatnonzero(name == NAMES)]) / epochs
        assert counts.min() > rate - 0.03
        assert counts.max() < rate + 0.03
        within = math.ceil(2.62 / min(rate, 1))
        soon = {index for epoch in range(within) for index in flat(made.plan(epoch)) if NAMES[index] == name}
        assert len(soon) == SIZES[name]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_same_on_any_number_of_ranks(world_size: int):
    made = mixture()
    whole = Counter(flat(sampler(made).plan(3)))
    dealt = []
    for rank in range(world_size):
        one = sampler(made, world_size, rank)
        one.set_epoch(3)
        dealt.append([[index for _, index in batch] for batch in one])
    assert len({len(found) for found in dealt}) == 1
    assert Counter(index for found in dealt for index in flat(found)) == whole


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 3), (3, 1), (1, 4)])
def test_a_restart_in_the_middle_keeps_the_shares(before: int, after: int):
    """Killed after 20 batches of each rank, on with as many ranks or others."""
    made, epoch, done = mixture(), 2, 20
    taken: list[int] = []
    states = []
    for rank in range(before):
        one = sampler(made, before, rank)
        one.set_epoch(epoch)
        taken += flat([[index for _, index in batch] for batch, _ in zip(one, range(done))])
        states.append(one.state_dict(epoch))
    carried = 0
    for rank in range(after):
        one = sampler(made, after, rank)
        assert one.fingerprint == states[0]["plan"]
        one.load_state_dict(states[0])
        if before == after:
            one.seek(epoch, done)
        else:
            _, carried = one.take_over(epoch, before, done, begin=done)
            one.seek(epoch, done)
        taken += flat([[index for _, index in batch] for batch in one])
    whole = Counter(flat(sampler(made).plan(epoch)))
    assert sum((whole - Counter(taken)).values()) == carried < after
    assert not Counter(taken) - whole
    theory = {name: made.shares[sorted(SIZES).index(name)] for name in SIZES}
    assert all(abs(share - theory[name]) < 0.01 for name, share in shares(taken).items())


def test_another_mixture_is_another_plan():
    prints = {sampler(mixture(temperature=temperature)).fingerprint for temperature in (1.0, 2.0, 3.0)}
    assert len({*prints, BatchSampler(seconds=SECONDS, tokens=TOKENS, batch_seconds=60.0, seed=5).fingerprint}) == 4


def test_whole_numbers_of_shares():
    assert apportioned(10, np.array([0.5, 0.26, 0.24])).tolist() == [5, 3, 2]
    assert apportioned(10, np.array([0.98, 0.02, 0.0]), least=1).tolist() == [9, 1, 0]
    assert apportioned(7, np.ones(3)).sum() == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 2.0}, r"data\.mix\.by=null: weights, temperature and size are of groups"),
        ({"by": "languages", "temperature": 0.0}, r"data\.mix\.temperature=0\.0: expected more than 0"),
        ({"by": "languages", "temperature": 2.0, "weights": {"a": 1}}, r"of temperature and weights one alone"),
        ({"by": "languages", "weights": {"a": -1}}, r"data\.mix\.weights=.*expected numbers from 0"),
        ({"by": "languages", "size": 0}, r"data\.mix\.size=0: expected utterances"),
    ],
)
def test_settings_that_cannot_be(options: dict, words: str):
    with pytest.raises(UserError, match=words):
        Mix(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": {"que-spa": 1}}, r"data\.mix\.weights says nothing of fra-eng, spa-eng; 0 leaves a group out"),
        ({"weights": {"que-sp": 1}}, r"data\.mix\.weights\.que-sp: there is no such group, did you mean que-spa"),
        ({"size": 2}, r"data\.mix\.size=2: there are 3 groups"),
    ],
)
def test_groups_that_are_not_there(options: dict, words: str):
    with pytest.raises(UserError, match=words):
        mixture(temperature=1.0, **options)


def manifests(folder: Path) -> list[str]:
    """Two of text pairs, one a quarter of the other."""
    paths = []
    for name, count, langs in (("que", 12, ("que", "spa")), ("eng", 48, ("eng", "spa"))):
        rows = [
            {
                "id": f"{name}{n}",
                "src_lang": langs[0],
                "tgt_lang": langs[1],
                "src_text": "a " * (1 + n % 9),
                "tgt_text": "b",
            }
            for n in range(count)
        ]
        paths.append(str(lines(folder / f"{name}.jsonl", *rows)))
    return paths


def data(folder: Path, **mix: object) -> SpeechTranslationData:
    tasks = {"s2tt": False, "t2tt": True}
    return SpeechTranslationData(train=manifests(folder), tasks=tasks, batch_size=4, mix=Mix(**mix))  # pyright: ignore


@pytest.mark.parametrize(
    "mix", [{"by": "manifest", "weights": {"que": 1, "eng.jsonl": 1}}, {"by": "src_lang", "temperature": 5.0}]
)
def test_a_data_module_that_mixes_keeps_the_contract(tmp_path: Path, mix: dict):
    """Ranks, restarts and moves to other numbers of ranks, in Lightning's loops."""
    outcomes = examine_data(lambda: data(tmp_path, **mix), {"source", "target"})
    assert {outcome.name: outcome.fault for outcome in outcomes if outcome.fault} == {}
    asked = {outcome.name for outcome in outcomes}
    assert {"ranks", "once", "resume", "plan"} <= asked


def test_shares_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    module = data(tmp_path, by="manifest", weights={"que": 1, "eng": 3})
    items, batches, _ = module.plan({"source"})
    assert Counter(items[index].src_lang for index in flat(batches)) == {"que": 15, "eng": 45}
    assert "60 utterances an epoch: " in caplog.text
    assert "que.jsonl 25.0% (1.25 times)" in caplog.text


def test_what_rows_do_not_say_cannot_mix(tmp_path: Path):
    with pytest.raises(UserError, match=r"count=hours: the group 'eng-spa' has no speech"):
        data(tmp_path, by="languages", count="hours").plan({"source"})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["data.mix.by=languages", "data.mix.temperature=inf"], {"temperature": math.inf}),
        (
            ["data.mix.by=manifest", "data.mix.weights={es.jsonl: 2, que-spa: 1}"],
            {"weights": {"es.jsonl": 2, "que-spa": 1}},
        ),
        (["data.mix.by=task", "data.mix.count=hours", "data.mix.size=7"], {"count": "hours", "size": 7}),
    ],
)
def test_a_mixture_is_a_word_on_the_command_line(words: list[str], found: dict):
    config = compose(["frontend=tiny", "data=manifest", "data.train=a.jsonl", *words])
    assert not [fault for fault in check(config) if fault.path.startswith("data")]
    mix = build(config.data, allowed=allow_list(config), tokenizer=None).mix
    assert {key: getattr(mix, key) for key in found} == found


def test_a_wrong_mixture_is_a_fault_of_the_config():
    config = compose(["frontend=tiny", "data=manifest", "data.train=a.jsonl", "data.mix.by=langauge"])
    assert any(fault.path == "data.mix.by" for fault in check(config))
