"""Corpus scores as functions of summed statistics: what `significance` resamples. Needs numpy alone.

Letters: N sentences, S sentences of a slice of them, K statistics, R resamples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from . import ngrams


class Summed(ABC):
    """A corpus score that is a function of summed statistics of its sentences.

    Attributes:
        precision: in which resamples are summed and scored. What is sacrebleu's score has float32, as sacrebleu, so
            that its intervals and tests come out the same; sums of counts are whole, and exact below 2**24.
    """

    name: str
    higher_is_better: bool = True
    precision: type[np.floating] = np.float64

    @property
    @abstractmethod
    def signature(self) -> str:
        """Everything that changes the number, in one line."""

    def signature_with(self, **tests: int) -> str:
        """The signature, and what else was drawn: `bs` resamples or `ar` trials, with `seed`."""
        return "|".join([self.signature, *(f"{key}:{value}" for key, value in tests.items())])

    @abstractmethod
    def score(self, total: np.ndarray) -> float:
        """(K,) summed statistics -> the corpus score."""

    def scores(self, totals: np.ndarray) -> np.ndarray:
        """(R, K) summed statistics -> (R,) scores, computed in the precision of the sums."""
        return np.asarray([self.score(total) for total in totals], dtype=np.float64)


class Metric(Summed):
    """One that counts sentence pairs."""

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """N sentence pairs -> (N, K) int64, counted slice by slice, so that only the counts are held for all.

        Raises:
            ValueError: numbers of hypotheses and references differ, or there are none.
        """
        _check(hypotheses, references)
        sizes = np.fromiter((len(h) + len(r) for h, r in zip(hypotheses, references, strict=True)), np.int64)
        parts = [self.count(hypotheses[part], references[part]) for part in ngrams.slices(sizes)]
        return np.concatenate(parts)

    @abstractmethod
    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """S sentence pairs -> (S, K) int64."""


class Mean(Summed):
    """The mean of a number of each sentence.

    Args:
        name, signature: of the number.
        higher_is_better: whether more of it is better.
    """

    def __init__(self, name: str, signature: str = "", higher_is_better: bool = True) -> None:
        self.name, self._signature, self.higher_is_better = name, signature, higher_is_better

    @property
    def signature(self) -> str:
        return self._signature

    def counted(self, values: Sequence[float]) -> Counted:
        """N numbers, in millionths, since what resamples sum is whole. Raises ValueError where there are none."""
        if not len(values):
            raise ValueError(f"{self.name}: no values to average")
        millionths = np.rint(np.asarray(values, np.float64) * 1e6).astype(np.int64)
        return Counted(self, np.stack([millionths, np.ones_like(millionths)], axis=1), fmean(values))

    def score(self, total: np.ndarray) -> float:
        return float(total[0]) / 1e6 / float(total[1])

    def scores(self, totals: np.ndarray) -> np.ndarray:
        return totals[:, 0] / 1e6 / totals[:, 1]


@dataclass(frozen=True, eq=False)
class Counted:
    """N sentence pairs as a metric counts them, and the score.

    Attributes:
        statistics: (N, K) int64.
    """

    metric: Summed
    statistics: np.ndarray
    score: float

    @classmethod
    def of(cls, metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Counted:
        """Raises ValueError where the numbers of hypotheses and references differ, or there are none."""
        return cls.sum(metric, metric.statistics(hypotheses, references))

    @classmethod
    def sum(cls, metric: Summed, statistics: np.ndarray) -> Counted:
        """Of (N, K) statistics that exist."""
        return cls(metric, statistics, metric.score(statistics.sum(axis=0)))

    def at(self, places: Sequence[int] | np.ndarray) -> Counted:
        """The same of some of the sentences, as of a group."""
        return Counted.sum(self.metric, self.statistics[places])


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("scores take lists of sentences, one per utterance; got one string")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} references: give one line each, in the same order"
        )
    if not references:
        raise ValueError("no sentences to score: the corpus is empty")
