"""Minimum Bayes risk: of several candidates the one that the others agree with most (Kumar and Byrne 2004; Eikema and
Aziz 2020). Letters: M candidates, K statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .counted import Metric
from .text import Bleu, Chrf


def utility_of(name: str, lang: str = "eng") -> Metric:
    """The metric that says how well two candidates agree. Raises ValueError: another name."""
    if name not in ("chrf", "bleu"):
        raise ValueError(f"utility must be chrf or bleu; got {name!r}")
    return Chrf() if name == "chrf" else SentenceBleu(lang)


class SentenceBleu(Bleu):
    """BLEU of sentences, as sacrebleu's `sentence_bleu`: orders that a sentence is too short for do not count."""

    def scores(self, totals: np.ndarray) -> np.ndarray:
        orders = self.metric.max_ngram_order
        most = np.minimum((totals[:, 2 + orders :] > 0).sum(1), orders)
        found = np.zeros(len(totals))
        for number in range(1, orders + 1):
            rows = most == number
            if rows.any():
                found[rows] = self._up_to(totals[rows], number)
        return found

    def _up_to(self, totals: np.ndarray, orders: int) -> np.ndarray:
        """The scores of sentences that have n-grams of so many orders."""
        whole = self.metric.max_ngram_order
        ours, theirs = totals[:, 0].astype(np.float64), totals[:, 1].astype(np.float64)
        matches, there = totals[:, 2 : 2 + orders], totals[:, 2 + whole : 2 + whole + orders]
        misses = np.cumsum(matches == 0, axis=1)  # each halves what the next one counts
        with np.errstate(divide="ignore"):
            precision = np.where(matches == 0, 100.0 / (2.0**misses * there), 100.0 * matches / there)
        penalty = np.where(ours < theirs, np.exp(1 - theirs / ours), 1.0)
        return np.where(matches.any(axis=1), penalty * np.exp(np.log(precision).mean(1)), 0.0)


def expected_utilities(candidates: Sequence[str], metric: Metric) -> np.ndarray:
    """(M,) mean utility of each candidate with all of them, itself too, as references; equal ones count as often as
    they stand there."""
    kinds = list(dict.fromkeys(candidates))
    number = {text: place for place, text in enumerate(kinds)}
    weights = np.bincount([number[text] for text in candidates], minlength=len(kinds)) / len(candidates)
    pairs = metric.statistics([text for text in kinds for _ in kinds], [other for _ in kinds for other in kinds])
    table = metric.scores(np.asarray(pairs, dtype=np.float64)).reshape(len(kinds), len(kinds))
    return (table @ weights)[[number[text] for text in candidates]]


def choose(candidates: Sequence[str], metric: Metric) -> int:
    """Place of the candidate of the highest expected utility; of equal ones the first."""
    return int(np.argmax(np.round(expected_utilities(candidates, metric), 9)))
