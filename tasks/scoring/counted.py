"""Corpus scores as functions of summed statistics: what `significance` resamples. Needs numpy alone.

Letters: N sentences, S sentences of a slice of them, K statistics, R resamples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from . import ngrams

References = str | Sequence[str]
"""Of a sentence: the reference, or several; how many may differ from sentence to sentence."""


def first_of(references: References) -> str:
    """The reference, or the first of several."""
    return references if isinstance(references, str) else references[0]


def each_of(references: References, change: Callable[[str], str]) -> References:
    """The reference, or each of several, changed."""
    return change(references) if isinstance(references, str) else [change(text) for text in references]


def how_many(references: Iterable[References]) -> int | None:
    """References of each sentence; None where sentences have unequal numbers."""
    counts = {1 if isinstance(found, str) else len(found) for found in references}
    return counts.pop() if len(counts) == 1 else None


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

    def statistics(self, hypotheses: Sequence[str], references: Sequence[References]) -> np.ndarray:
        """N sentences with their references -> (N, K) int64 (float64 where a mean over references counts, as in TER),
        counted slice by slice, so that only the counts are held for all.

        Raises:
            ValueError: numbers of hypotheses and references differ, or there are none.
        """
        _check(hypotheses, references)
        first = [first_of(found) for found in references]
        sizes = np.fromiter((len(h) + len(r) for h, r in zip(hypotheses, first, strict=True)), np.int64)
        counts = np.concatenate([self.count(hypotheses[part], first[part]) for part in ngrams.slices(sizes)])
        several = {
            place: self.count_several(hypotheses[place], found)
            for place, found in enumerate(references)
            if not isinstance(found, str) and len(found) > 1
        }
        if any(isinstance(number, float) for found in several.values() for number in found):
            counts = counts.astype(np.float64)
        for place, found in several.items():
            counts[place] = found
        return counts

    @abstractmethod
    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """S sentence pairs -> (S, K) int64."""

    @abstractmethod
    def count_several(self, hypothesis: str, references: Sequence[str]) -> Sequence[float]:
        """K statistics of a sentence that has several references."""

    @property
    def signature(self) -> str:
        return self.signature_on(1)

    def signature_with(self, **tests: int) -> str:
        return self.signature_on(1, **tests)

    @abstractmethod
    def signature_on(self, num_references: int | None, **tests: int) -> str:
        """The signature of a score on so many references of each sentence (`how_many`), as `signature_with`."""


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
        statistics: (N, K) int64, or float64 where `Metric.statistics` says so.
    """

    metric: Summed
    statistics: np.ndarray
    score: float

    @classmethod
    def of(cls, metric: Metric, hypotheses: Sequence[str], references: Sequence[References]) -> Counted:
        """Raises ValueError where the numbers of hypotheses and references differ, or there are none."""
        return cls.sum(metric, metric.statistics(hypotheses, references))

    @classmethod
    def sum(cls, metric: Summed, statistics: np.ndarray) -> Counted:
        """Of (N, K) statistics that exist."""
        return cls(metric, statistics, metric.score(statistics.sum(axis=0)))

    def at(self, places: Sequence[int] | np.ndarray) -> Counted:
        """The same of some of the sentences, as of a group."""
        return Counted.sum(self.metric, self.statistics[places])


def _check(hypotheses: Sequence[str], references: Sequence[References]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("scores take lists of sentences, one per utterance; got one string")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} references: give one line each, in the same order"
        )
    if not references:
        raise ValueError("no sentences to score: the corpus is empty")
    empty = next((place for place, found in enumerate(references) if not isinstance(found, str) and not found), None)
    if empty is not None:
        raise ValueError(f"sentence {empty + 1} has no reference: give an empty text, or leave the sentence out")
