"""How sure a score and a difference are: bootstrap, paired tests, several seeds, Holm's correction. Needs numpy alone.

A system is a list of runs, one for each training seed (often just one), each a `Counted` table of the same N
utterances in the same order. Everything works on the tables: a resample is one row of a matrix product.

    bleu = Bleu()
    systems = {
        "base": [Counted.of(bleu, outputs, references) for outputs in base_outputs],          # three seeds
        "conformer": [Counted.of(bleu, outputs, references) for outputs in conformer_outputs],
    }
    rows = compare_systems(systems, base="base")
    rows["conformer"]["difference"], rows["conformer"]["p_bootstrap_holm"], rows["conformer"]["smallest_difference"]

Both tests are two-sided. On 1,000 simulated tables without a difference (tests/tasks/scoring) they fire at 0.05 in 3.5
to 6.5 % of them; with several seeds the first fires in 5 %, and in 2 to 3 % where seeds hardly vary or there are two.
Exchanging outputs knows nothing of seeds and would then fire in up to 80 %, so a table has no such p-value.

sacrebleu's two tests differ: its paired bootstrap looks at one tail and fires twice as often as it says; its
approximate randomisation does not count ties, so that two systems that differ in three sentences get the smallest p
there is. What sacrebleu prints, from the same draws, is in `PairedTest.as_sacrebleu`.

Sources: paired bootstrap, Koehn 2004 ("Statistical significance tests for machine translation evaluation");
approximate randomisation, Riezler and Maxwell 2005; Holm 1979; several seeds, a crossed design of runs and utterances
(Owen 2007, "The pigeonhole bootstrap") with the degrees of freedom of Welch 1947 and Satterthwaite 1946.

Letters: N utterances, S runs (seeds) of a system, K statistics, R resamples or trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from .counted import Counted

RESAMPLES = 1000
TRIALS = 10000
SEED = 12345
_DRAWN_AT_ONCE = 1_000_000
_SAME = 1e-9
"""Below this two differences of scores are the same: they come of the same counts by other roundings."""

Runs = Sequence[Counted]


def draws(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each of N sentences is in each of R draws with replacement, (rows, N) float64 at a time.

    The draws are those of sacrebleu's bootstrap for the same seed, however many rows come at a time.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = generator.choice(count, size=(rows, count), replace=True)
        places += np.arange(rows)[:, None] * count
        yield np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def bootstrap(tables: Iterable[Counted], resamples: int = RESAMPLES, seed: int = SEED) -> list[np.ndarray]:
    """Scores (R,) of each table under R draws of its N sentences with replacement: the same for all of one N."""
    tables = list(tables)
    parts: list[list[np.ndarray]] = [[] for _ in tables]
    for count in dict.fromkeys(len(table.statistics) for table in tables):
        places = [place for place, table in enumerate(tables) if len(table.statistics) == count]
        # All tables side by side. In float64 the product is BLAS's, and exact: sums of counts are far below 2**53.
        counts = np.concatenate([tables[place].statistics for place in places], axis=1, dtype=np.float64)
        edges = np.cumsum([tables[place].statistics.shape[1] for place in places])[:-1]
        for weights in draws(count, resamples, seed):
            for place, totals in zip(places, np.split(weights @ counts, edges, axis=1), strict=True):
                metric = tables[place].metric
                parts[place].append(metric.scores(totals.astype(metric.precision)))
    return [np.concatenate(part) if part else np.zeros(0) for part in parts]


def interval(scores: np.ndarray) -> tuple[float | None, float | None]:
    """95 % of (R,) scores, from the 2.5th to the 97.5th percentile; None where there are none."""
    if len(scores) == 0:
        return None, None
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def as_sacrebleu(scores: np.ndarray) -> tuple[float, float]:
    """Mean of (R,) scores and half of their 95 % interval, as sacrebleu prints them behind a score."""
    ordered = np.sort(scores)
    edge = len(ordered) // 40
    mean = ordered.dtype.type(ordered.mean(dtype=np.float64))  # as exact as its numbers, like sacrebleu's
    return float(mean), float(0.5 * (ordered[len(ordered) - edge - 1] - ordered[edge]))


def two_level(scores: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Means (R,) over seeds, where each resample draws the runs too.

    A draw of S runs out of S varies by (S - 1) / S of what runs vary, so deviations from the mean of all runs are
    widened by the root of S / (S - 1). With one run nothing is known of seeds, and utterances alone are drawn.

    Args:
        scores: (S, R) scores of each run under the same draws of utterances (`bootstrap`).
    """
    runs, resamples = scores.shape
    centre = scores.mean(axis=0)
    if runs == 1:
        return centre
    drawn = np.random.default_rng(seed).integers(runs, size=(runs, resamples))
    return centre + math.sqrt(runs / (runs - 1)) * (np.take_along_axis(scores, drawn, axis=0).mean(axis=0) - centre)


@dataclass(frozen=True)
class PairedTest:
    """What a paired test found.

    Attributes:
        p_value: two-sided, never below 1 / (R + 1).
        as_sacrebleu: the p-value that sacrebleu prints for the same draws; None where it has no such test.
    """

    p_value: float
    as_sacrebleu: float | None = None


def paired_bootstrap(
    system: Runs, base: Runs, scores: np.ndarray | None = None, base_scores: np.ndarray | None = None,
    *, resamples: int = RESAMPLES, seed: int = SEED,
) -> PairedTest:  # fmt: skip
    """Would a difference this large come of the draw of the utterances, and of the seeds, alone?

    With one run on each side: the share of resamples in which the difference lies as far from its mean as that is from
    0. With several on one or both: by Student's t with the standard error of `standard_error`.

    Args:
        scores, base_scores: (S, R) of `bootstrap`, where they are known.

    Raises:
        ValueError: the tables are not of the same utterances or metric.
    """
    _same(system, base)
    if scores is None or base_scores is None:
        found = bootstrap([*system, *base], resamples, seed)
        scores, base_scores = np.stack(found[: len(system)]), np.stack(found[len(system) :])
    observed = mean_score(system) - mean_score(base)
    if len(system) > 1 or len(base) > 1:
        error, freedom = standard_error(system, base, scores, base_scores)
        if error == 0:
            return PairedTest(1.0 if abs(observed) <= _SAME else 1 / (scores.shape[1] + 1))
        return PairedTest(student_tails(abs(observed) / error, freedom))
    differences = scores.mean(axis=0) - base_scores.mean(axis=0)
    p_value = _share(np.abs(differences.astype(np.float64) - differences.mean(dtype=np.float64)), abs(observed))
    sizes = np.abs(differences)
    return PairedTest(p_value, _share_above(sizes - sizes.mean(), abs(observed)))


def approximate_randomisation(system: Runs, base: Runs, trials: int = TRIALS, seed: int = SEED) -> PairedTest | None:
    """Would a difference this large come of exchanging the two systems' outputs, utterance by utterance?

    The share of trials with a difference as large. It says whether these runs differ, nothing of other seeds: runs are
    exchanged in pairs, and without as many on both sides there is no such test (None).

    Raises:
        ValueError: the tables are not of the same utterances or metric.
    """
    _same(system, base)
    if len(system) != len(base):
        return None
    metric, (count, width) = system[0].metric, system[0].statistics.shape
    ours, theirs = (np.concatenate([r.statistics for r in side], axis=1, dtype=np.float64) for side in (system, base))
    observed = abs(_means(metric, ours.sum(0)[None], width)[0] - _means(metric, theirs.sum(0)[None], width)[0])
    generator, parts = np.random.default_rng(seed), []
    # Bits are drawn 32 at a time: by 32 rows, the draws of sacrebleu come out however many rows come at a time.
    step = 32 * max(1, _DRAWN_AT_ONCE // count // 32)
    for start in range(0, trials, step):
        kept = generator.integers(2, size=(min(step, trials - start), count), dtype=bool).astype(np.float64)
        moved = kept @ (theirs - ours)
        one, other = ours.sum(0) + moved, theirs.sum(0) - moved
        parts.append(np.abs(_means(metric, one, width) - _means(metric, other, width)))
    differences = np.concatenate(parts)
    return PairedTest(_share(differences, observed), _share_above(differences, observed) if len(system) == 1 else None)


def standard_error(system: Runs, base: Runs, scores: np.ndarray, base_scores: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of two means over seeds, and its degrees of freedom.

    Its square is the variance of the difference under draws of utterances, plus the variance between runs over their
    number, less what utterances put into the latter (they are in both). The freedom is infinite with one run a side:
    then nothing is known of seeds, and the error is that of utterances alone.

    Args:
        scores, base_scores: (S, R) of `bootstrap`.
    """
    variance = float(np.var(scores.mean(axis=0) - base_scores.mean(axis=0), ddof=1))
    of_seeds = spread = 0.0
    for runs, resampled in ((system, scores), (base, base_scores)):
        if (number := len(runs)) > 1:
            between = float(np.var([run.score for run in runs], ddof=1)) / number
            apart = resampled - resampled.mean(axis=0)
            of_utterances = float(np.var(apart, axis=1, ddof=1).mean()) / (number - 1)
            of_seeds += between - of_utterances
            spread += between**2 / (number - 1)
    total = variance + max(0.0, of_seeds)
    return math.sqrt(total), total**2 / spread if spread > 0 and of_seeds > 0 else math.inf


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: p-values under which one true difference or none is claimed by chance in 5 % of tables.

    The i-th smallest of m is multiplied by m - i + 1, and none falls below one before it; None stays, and is not
    counted.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def smallest_difference(
    error: float, comparisons: int = 1, freedom: float = math.inf, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The true difference that a comparison finds with probability `power`.

    (q(1 - alpha / (2 m)) + q(power)) * error, with the quantiles q of Student's t of that freedom and m comparisons in
    the table: the first step of Holm's correction, which the strongest difference of a table has to pass.

    Args:
        error: standard error of the difference, in points of the score.
        comparisons: m.
        freedom: degrees of freedom of the error.
    """
    return (student_quantile(1 - alpha / (2 * comparisons), freedom) + student_quantile(power, freedom)) * error


def mean_score(runs: Runs) -> float:
    """The mean over seeds."""
    return float(np.mean([run.score for run in runs]))


def compare_systems(
    systems: Mapping[str, Runs], base: str | None = None, *, resamples: int = RESAMPLES, trials: int = TRIALS,
    seed: int = SEED, power: float = 0.8,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """A table of systems on one test set, by one metric.

    Args:
        systems: name -> runs, one for each seed; all of the same N utterances, by the same metric.
        base: what all are compared with; None: with nothing.
        resamples, trials: of the bootstrap, of approximate randomisation (0: left out).
        power: of `smallest_difference`.

    Returns:
        name -> plain dict. `score` (mean over seeds), `low` and `high` (95 %, two-level bootstrap: it draws seeds where
        there are several), `num_runs`, `spread` (standard deviation over seeds), `mean` and `half_width` (the interval
        as sacrebleu prints it; one run). Beside a base, for the others: `difference` with `difference_low`,
        `difference_high` (95 %), `standard_error`, `p_bootstrap`, `p_randomisation` (where both have one run), both
        after Holm's correction over the table (`p_bootstrap_holm`, `p_randomisation_holm`), what sacrebleu would print
        (`p_bootstrap_sacrebleu`, `p_randomisation_sacrebleu`), and `smallest_difference`. What cannot be said is None.

    Raises:
        ValueError: a system without runs, an unknown base, or tables of other utterances or metrics.
    """
    if base is not None and base not in systems:
        raise ValueError(f"base {base!r}: no such system; there are {', '.join(systems)}")
    if base is not None and resamples < 2:
        raise ValueError(f"{resamples} resamples: a comparison needs at least two")
    first = next(iter(systems.values()))
    for name, runs in systems.items():
        if not runs:
            raise ValueError(f"{name}: no runs")
        _same(first, runs)
    found = iter(bootstrap([run for runs in systems.values() for run in runs], resamples, seed))
    resampled = {name: np.stack([next(found) for _ in runs]) for name, runs in systems.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in systems.items():
        low, high = interval(two_level(resampled[name], seed))
        alone = len(runs) == 1 and resamples > 0
        mean, half_width = as_sacrebleu(resampled[name][0]) if alone else (None, None)
        rows[name] = {
            "score": mean_score(runs), "low": low, "high": high, "num_runs": len(runs),
            "spread": float(np.std([run.score for run in runs], ddof=1)) if len(runs) > 1 else None,
            "mean": mean, "half_width": half_width,
        }  # fmt: skip
    if base is not None:
        others = [name for name in systems if name != base]
        for name in others:
            rows[name] |= _difference(systems[name], systems[base], resampled[name], resampled[base], trials, seed)
            error, freedom = rows[name]["standard_error"], rows[name].pop("freedom")
            rows[name]["smallest_difference"] = smallest_difference(error, len(others), freedom, power=power)
        for key in ("p_bootstrap", "p_randomisation"):
            for name, p in zip(others, holm([rows[name][key] for name in others]), strict=True):
                rows[name][f"{key}_holm"] = p
    return rows


def _difference(
    system: Runs, base: Runs, scores: np.ndarray, base_scores: np.ndarray, trials: int, seed: int
) -> dict[str, Any]:
    observed = mean_score(system) - mean_score(base)
    error, freedom = standard_error(system, base, scores, base_scores)
    if len(system) > 1 or len(base) > 1:
        reach = student_quantile(0.975, freedom) * error
        low, high = observed - reach, observed + reach
    else:
        low, high = interval(scores.mean(axis=0) - base_scores.mean(axis=0))
    by_draws = paired_bootstrap(system, base, scores, base_scores)
    alone = len(system) == len(base) == 1
    by_exchange = approximate_randomisation(system, base, trials, seed) if trials and alone else None
    return {
        "difference": observed,
        "difference_low": low,
        "difference_high": high,
        "standard_error": error,
        "freedom": freedom,
        "p_bootstrap": by_draws.p_value,
        "p_bootstrap_sacrebleu": by_draws.as_sacrebleu,
        "p_randomisation": by_exchange.p_value if by_exchange else None,
        "p_randomisation_sacrebleu": by_exchange.as_sacrebleu if by_exchange else None,
    }


def comparison(system: Counted, baseline: Counted, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Difference and ratio of two tables, of their (R,) scores under the same resamples.

    Returns:
        Plain dict: `score`, `baseline`, `difference` with `low` and `high` (95 %), `ratio` with `ratio_low` and
        `ratio_high` (None where the baseline scores 0), `p_value` of `paired_bootstrap`, `num_sentences`, `signature`.
    """
    score, other = system.score, baseline.score
    low, high = interval(a - b)
    usable = b > 0
    ratio_low, ratio_high = interval(a[usable] / b[usable]) if other > 0 and usable.any() else (None, None)
    return {
        "score": score,
        "baseline": other,
        "difference": score - other,
        "low": low,
        "high": high,
        "ratio": score / other if other > 0 else None,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "p_value": paired_bootstrap([system], [baseline], a[None], b[None]).p_value,
        "num_sentences": len(system.statistics),
        "signature": system.metric.signature,
    }


def student_tails(t: float, freedom: float) -> float:
    """Two-sided tail probability of Student's t, within 1e-9.

    By its integral, which is one of a power of the cosine (t = tan(x) * sqrt(freedom)) and smooth from one degree on.
    """
    if freedom > 1e6:
        return 2 * NormalDist().cdf(-abs(t))
    start = math.atan(abs(t) / math.sqrt(freedom))
    stop = min(math.pi / 2, start + 12 / math.sqrt(freedom))
    nodes, weights = _gauss()
    points = start + (stop - start) * (nodes + 1) / 2
    area = float((weights * np.cos(points) ** (freedom - 1)).sum()) * (stop - start) / 2
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * area)


def student_quantile(probability: float, freedom: float = math.inf) -> float:
    """The t below which Student's t lies with a probability from 0.5 to 1, both excluded."""
    if freedom > 1e6:
        return NormalDist().inv_cdf(probability)
    low, high = 0.0, 1.0
    while student_tails(high, freedom) > 2 * (1 - probability):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tails(middle, freedom) > 2 * (1 - probability) else (low, middle)
    return (low + high) / 2


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(120)


def _means(metric: Any, totals: np.ndarray, width: int) -> np.ndarray:
    """(R, S * K) sums of S runs side by side -> (R,) means of their scores."""
    parts = [metric.scores(totals[:, start : start + width]) for start in range(0, totals.shape[1], width)]
    return np.mean(parts, axis=0)


def _share(values: np.ndarray, observed: float) -> float:
    """Share of (R,) values at least as large as what was observed, which itself counts as one."""
    return (int(np.count_nonzero(values >= observed - _SAME)) + 1) / (len(values) + 1)


def _share_above(values: np.ndarray, observed: float) -> float:
    """As sacrebleu counts: ties are left out."""
    return (int(np.count_nonzero(values > observed)) + 1) / (len(values) + 1)


def _same(first: Runs, second: Runs) -> None:
    tables = [*first, *second]
    counts = {len(table.statistics) for table in tables}
    if len(counts) > 1:
        raise ValueError(f"tables of {' and '.join(map(str, sorted(counts)))} utterances cannot be compared in pairs")
    signatures = {table.metric.signature: None for table in tables}
    if len(signatures) > 1:
        raise ValueError(f"scores of two kinds cannot be compared: {' and '.join(signatures)}")
