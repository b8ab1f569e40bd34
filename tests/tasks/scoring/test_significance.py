"""Bootstrap and paired tests against sacrebleu, against theory, and on tables without a difference."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, _bootstrap_resample, estimate_ci
from voxzoo.tasks.scoring import significance
from voxzoo.tasks.scoring.counted import Counted, Mean, Metric
from voxzoo.tasks.scoring.significance import (
    approximate_randomisation,
    as_sacrebleu,
    bootstrap,
    compare_systems,
    holm,
    paired_bootstrap,
    smallest_difference,
    student_quantile,
    student_tails,
    two_level,
)
from voxzoo.tasks.scoring.text import Bleu, Chrf, ErrorRate, Ter

WORDS = "the a train to Peru leaves on the 15th of August, at 10:15 . costs € ! no-one's café one two".split()  # noqa: SIM905


def corpus(noise: float, seed: int, count: int = 80) -> tuple[list[str], list[str]]:
    """Hypotheses that change with the seed, references that do not; some of both empty."""
    rng = random.Random(0)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(0, 16))) for _ in range(count)]
    rng = random.Random(seed)
    return [
        " ".join(w if rng.random() > noise else rng.choice(WORDS) for w in r.split()) for r in references
    ], references


METRICS = {
    "bleu": (Bleu(), BLEU), "chrf": (Chrf(), CHRF), "chrf++": (Chrf(2), lambda: CHRF(word_order=2)),
    "ter": (Ter(), TER),
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("at_once", [1, 3000, 1_000_000])
def test_tests_and_intervals_are_those_of_sacrebleu(name: str, at_once: int, monkeypatch):
    """To the last digit that its command line can be asked for, and however many draws are made at once."""
    monkeypatch.setattr(significance, "_DRAWN_AT_ONCE", at_once)
    ours, peer = METRICS[name]
    base, references = corpus(0.3, 1)
    outputs = [base, corpus(0.3, 2)[0], corpus(0.4, 3)[0]]
    tables = [Counted.of(ours, each, references) for each in outputs]
    for kind, size in (("bs", 100), ("ar", 320)):
        metric = peer()
        systems = [(f"{place}", each) for place, each in enumerate(outputs)]
        signatures, found = PairedTest(systems, {"x": metric}, [references], kind, n_samples=size)()
        (key,) = set(found) - {"System"}
        assert ours.signature_with(**{kind: size, "seed": 12345}) == str(signatures[key])
        for table, result in zip(tables[1:], found[key][1:], strict=True):
            if kind == "bs":
                test = paired_bootstrap([table], [tables[0]], resamples=size)
                (scores,) = bootstrap([table], size)
                assert as_sacrebleu(scores) == pytest.approx((result.mean, result.ci), rel=1e-6)
            else:
                test = approximate_randomisation([table], [tables[0]], trials=size)
            assert test is not None
            assert test.as_sacrebleu == result.p_value
            assert table.score == result.score


@pytest.mark.parametrize("name", METRICS)
def test_resamples_are_those_of_sacrebleu(name: str):
    ours, peer = METRICS[name]
    hypotheses, references = corpus(0.3, 1)
    metric = peer()
    _, expected = _bootstrap_resample(metric._extract_corpus_statistics(hypotheses, [references]), metric, 50)
    (scores,) = bootstrap([Counted.of(ours, hypotheses, references)], 50)
    assert scores.astype(np.float64) == pytest.approx([each.score for each in expected], rel=1e-12)
    assert as_sacrebleu(scores) == pytest.approx(estimate_ci(np.array([each.score for each in expected])), rel=1e-6)


@pytest.mark.parametrize("metric", [*(each for each, _ in METRICS.values()), ErrorRate(), ErrorRate("char")])
def test_scores_of_many_sums_are_those_of_one(metric: Metric):
    hypotheses, references = corpus(0.5, 4)
    statistics = metric.statistics(hypotheses, references)
    totals = np.concatenate([[statistics.sum(0)], statistics, np.zeros_like(statistics[:1])])
    expected = [metric.score(total) for total in totals]
    assert metric.scores(totals.astype(np.float64)) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert metric.scores(totals.astype(metric.precision)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_systems_that_differ_in_three_sentences_are_not_told_apart():
    """By exchange there are eight outcomes, two of them as large: p is a quarter. sacrebleu leaves out ties."""
    base, references = corpus(0.3, 1)
    changed = list(base)
    places = [place for place, text in enumerate(base) if text.split() and text != references[place]][:3]
    for place in places:
        changed[place] = references[place]
    metric = ErrorRate()
    a, b = (Counted.of(metric, each, references) for each in (changed, base))
    found = approximate_randomisation([a], [b], trials=3200)
    assert found is not None
    assert found.p_value == pytest.approx(0.25, abs=0.03)
    assert found.as_sacrebleu == 1 / 3201
    same = paired_bootstrap([a], [a]), approximate_randomisation([a], [a])
    assert [each.p_value for each in same if each is not None] == [1, 1]


def lengths(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Words of each utterance, and how likely one is wrong: a test set, easy and difficult parts in it."""
    return rng.integers(4, 25, count), rng.beta(2, 6, count)


def error_rates(rng: np.random.Generator, words: np.ndarray, wrong: np.ndarray) -> Counted:
    return Counted.sum(ErrorRate(), np.stack([rng.binomial(words, wrong), words], axis=1))


def bleus(rng: np.random.Generator, words: np.ndarray, wrong: np.ndarray) -> Counted:
    """A system that keeps or replaces words, as BLEU counts it."""
    right = (rng.random((len(words), words.max())) > wrong[:, None]) & (np.arange(words.max()) < words[:, None])
    matches, run = [], np.ones((len(words), words.max() + 1), bool)
    for order in range(4):
        run = run[:, :-1] & right[:, order:]
        matches.append(run.sum(axis=1))
    totals = np.maximum(words[:, None] - np.arange(4), 0)
    return Counted.sum(Bleu(), np.concatenate([np.stack([words, words, *matches], axis=1), totals], axis=1))


Maker = Callable[[np.random.Generator, np.ndarray, np.ndarray], Counted]


def fired(make: Maker, tables: int, count: int, runs: int = 1, between: float = 0.0) -> dict[str, float]:
    """In which share of tables of two systems without a true difference a test fires at 0.05.

    Args:
        runs, between: seeds, and how far they move all chances of an error (standard deviation of its logarithm).
    """
    found = {"p_bootstrap": 0, "p_randomisation": 0, "p_bootstrap_sacrebleu": 0}
    for table in range(tables):
        rng = np.random.default_rng(table)
        words, wrong = lengths(rng, count)
        systems = {
            name: [make(rng, words, np.clip(wrong * rng.lognormal(0, between), 0, 1)) for _ in range(runs)]
            for name in ("base", "other")
        }
        row = compare_systems(systems, "base", resamples=999, trials=992)["other"]
        for key in found:
            found[key] += row[key] is not None and row[key] < 0.05
    return {key: number / tables for key, number in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("make", [error_rates, bleus])
def test_without_a_difference_tests_fire_in_a_twentieth_of_tables(make: Maker):
    found = fired(make, 1000, 200)
    assert 0.035 <= found["p_bootstrap"] <= 0.065
    assert 0.035 <= found["p_randomisation"] <= 0.065
    assert found["p_bootstrap_sacrebleu"] > 0.08  # one tail: why it is not our p-value


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "between"), [(3, 0.08), (5, 0.08), (5, 0.3)])
def test_seeds_that_vary_are_not_taken_for_a_difference(runs: int, between: float):
    found = fired(error_rates, 1000, 150, runs, between)
    assert 0.035 <= found["p_bootstrap"] <= 0.065


@pytest.mark.slow
def test_a_table_claims_a_difference_by_chance_in_a_twentieth_of_tables():
    """Four systems, Holm's correction over the table; without it three tests would fire in more than a tenth."""
    corrected = plain = 0
    for table in range(1000):
        rng = np.random.default_rng(table)
        words, wrong = lengths(rng, 200)
        systems = {name: [error_rates(rng, words, wrong)] for name in "abcd"}
        rows = list(compare_systems(systems, "a", resamples=999, trials=0).values())[1:]
        corrected += any(row["p_bootstrap_holm"] < 0.05 for row in rows)
        plain += any(row["p_bootstrap"] < 0.05 for row in rows)
    assert 35 <= corrected <= 65
    assert plain > 100


@pytest.mark.slow
@pytest.mark.parametrize("chance", [0.3, 0.8])
def test_a_true_difference_is_found_as_often_as_theory_says(chance: float):
    """Power of a two-sided z-test with the true standard error, within three binomial standard deviations."""
    normal, tables, count = NormalDist(), 1000, 200
    rng = np.random.default_rng(7)
    words, wrong = lengths(rng, count)
    wrong = np.clip(wrong, 0.1, 0.8)

    def error(better: float) -> float:
        """Of the difference, where the other system is right more often by so many points everywhere."""
        chances = [wrong, wrong - better / 100]
        return 100 * math.sqrt(sum(float((words * p * (1 - p)).sum()) for p in chances)) / float(words.sum())

    # One test set, so that the true error is known: outputs alone are drawn anew.
    gap = 0.0
    for _ in range(20):
        gap = (normal.inv_cdf(0.975) + normal.inv_cdf(chance)) * error(gap)
    found, said = {"p_bootstrap": 0, "p_randomisation": 0}, []
    for _ in range(tables):
        systems = {"a": [error_rates(rng, words, wrong)], "b": [error_rates(rng, words, wrong - gap / 100)]}
        row = compare_systems(systems, "a", resamples=999, trials=992)["b"]
        said.append(row["smallest_difference"])
        for key in found:
            found[key] += row[key] < 0.05
    width = 3 * math.sqrt(chance * (1 - chance) / tables)
    for number in found.values():
        assert chance - width <= number / tables <= chance + width
    if chance == 0.8:  # then the gap is what such a table finds with that chance
        assert np.mean(said) == pytest.approx(gap, rel=0.05)


def test_intervals_of_several_seeds_hold_the_seeds():
    """Beside one run, whose interval knows utterances alone. With a known variance of runs, it is as wide as that."""
    rng = np.random.default_rng(0)
    words = np.full(400, 12)
    runs = [Counted.sum(ErrorRate(), np.stack([rng.binomial(words, p), words], axis=1)) for p in (0.1, 0.2, 0.3, 0.4)]
    rows = compare_systems({"seeds": runs, "one": runs[:1]}, resamples=4000)
    assert rows["one"]["high"] - rows["one"]["low"] < 3
    assert rows["seeds"]["spread"] == pytest.approx(np.std([run.score for run in runs], ddof=1))
    half = (rows["seeds"]["high"] - rows["seeds"]["low"]) / 2
    assert half == pytest.approx(1.96 * rows["seeds"]["spread"] / 2, rel=0.1)
    assert rows["seeds"]["score"] == pytest.approx(25, abs=2)


def test_two_levels_of_one_run_are_its_resamples():
    scores = np.arange(12.0).reshape(1, 12)
    assert two_level(scores).tolist() == scores[0].tolist()


def test_runs_are_compared_with_what_is_known_of_seeds():
    """Two means over seeds that lie apart no farther than seeds do, on a test set that is no source of doubt."""
    words = np.full(500, 100)

    def run(errors: int) -> Counted:
        return Counted.sum(ErrorRate(), np.stack([np.full(500, errors), words], axis=1))

    ours, theirs = [run(e) for e in (10, 14, 18)], [run(e) for e in (13, 17, 21)]
    row = compare_systems({"base": theirs, "ours": ours}, "base")["ours"]
    # By hand: Welch's t of two samples, and its tail from a table of Student's t (freedom 4).
    assert row["standard_error"] == pytest.approx(math.sqrt(16 / 3 + 16 / 3))
    assert row["p_bootstrap"] == pytest.approx(student_tails(3 / math.sqrt(32 / 3), 4))
    assert 0.3 < row["p_bootstrap"] < 0.5
    exchanged = approximate_randomisation(ours, theirs, trials=320)
    assert exchanged is not None
    assert exchanged.p_value < 0.01  # these runs do differ
    assert row["p_randomisation"] is None  # which says nothing of other seeds
    assert row["difference_low"] == pytest.approx(-3 - 2.776 * math.sqrt(32 / 3), abs=0.01)
    # Of one run alone nothing is known of seeds, but of the other side's.
    row = compare_systems({"base": [run(17)], "ours": ours}, "base")["ours"]
    assert row["p_bootstrap"] == pytest.approx(student_tails(3 / math.sqrt(16 / 3), 2))
    assert row["difference_low"] == pytest.approx(-3 - 4.3027 * math.sqrt(16 / 3), abs=0.01)
    assert row["p_bootstrap"] > 0.3


@pytest.mark.parametrize(("t", "freedom", "tails"), [
    (12.7062, 1, 0.05), (63.657, 1, 0.01), (4.3027, 2, 0.05), (9.9248, 2, 0.01), (0.7649, 3, 0.5), (2.7764, 4, 0.05),
    (0.0, 5, 1.0), (2.2281, 10, 0.05), (1.984, 100, 0.05), (1.9623, 1000, 0.05), (1.95996, math.inf, 0.05),
])  # fmt: skip
def test_tails_of_students_t_are_those_of_tables(t: float, freedom: float, tails: float):
    assert student_tails(t, freedom) == pytest.approx(tails, abs=1e-5)
    if t > 0:
        assert student_quantile(1 - tails / 2, freedom) == pytest.approx(t, rel=1e-4)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_the_smallest_difference_grows_with_comparisons_and_with_few_seeds():
    assert smallest_difference(1.0) == pytest.approx(1.96 + 0.8416, abs=1e-3)
    assert smallest_difference(0.5, comparisons=5) == pytest.approx(0.5 * (2.5758 + 0.8416), abs=1e-3)
    assert smallest_difference(1.0, freedom=2) == pytest.approx(4.303 + 1.061, abs=2e-3)


def test_a_mean_of_numbers_is_compared_like_any_score():
    rng = np.random.default_rng(0)
    seconds = rng.normal(2, 0.5, 300)
    tables = [Mean("seconds").counted((seconds + shift).tolist()) for shift in (0, 0.1)]
    row = compare_systems({"a": tables[:1], "b": tables[1:]}, "a")["b"]
    assert row["difference"] == pytest.approx(0.1)
    assert row["p_bootstrap"] == pytest.approx(1 / 1001)


def test_tables_that_cannot_be_compared_are_refused():
    a, b = (Counted.of(ErrorRate(), ["x"] * n, ["y"] * n) for n in (2, 3))
    with pytest.raises(ValueError, match="tables of 2 and 3 utterances"):
        paired_bootstrap([a], [b])
    with pytest.raises(ValueError, match="two kinds"):
        compare_systems({"a": [a], "b": [Counted.of(ErrorRate("char"), ["x"] * 2, ["y"] * 2)]}, "a")
    with pytest.raises(ValueError, match="no such system; there are a"):
        compare_systems({"a": [a]}, "c")
    with pytest.raises(ValueError, match="a: no runs"):
        compare_systems({"a": []})
