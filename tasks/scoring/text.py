"""Corpus scores of text with signatures and bootstrap intervals.

A metric turns sentence pairs into rows of sufficient statistics (n-gram counts, edit counts). The corpus score is a
function of the summed rows, so resampling a corpus is one matrix product, and all that is scored on the same sentences
shares its resamples: several metrics, and two systems (paired bootstrap, Koehn 2004, "Statistical significance tests
for machine translation").

Letters: N sentences, S sentences of a slice of them, K statistics, R resamples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any, Generic, Literal, TypeVar

import jiwer
import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ...components.languages import is_spaceless
from . import ngrams

RESAMPLES = 1000
SEED = 12345
_DRAWN_AT_ONCE = 1_000_000


class Summed(ABC):
    """A corpus score that is a function of summed statistics of its sentences."""

    name: str
    higher_is_better: bool = True

    @property
    @abstractmethod
    def signature(self) -> str:
        """Everything that changes the number, in one line."""

    @abstractmethod
    def score(self, total: np.ndarray) -> float:
        """(K,) summed statistics -> the corpus score."""


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


_Counter = TypeVar("_Counter", BLEU, CHRF)


class _SacreBLEU(Metric, Generic[_Counter]):
    """Tokens and the score of the counts by sacrebleu itself, so that it is exactly the one its command line prints."""

    metric: _Counter

    @property
    def signature(self) -> str:
        # sacrebleu knows the number of references only after it has seen some; ours is always one per sentence.
        self.metric.num_refs = 1
        return str(self.metric.get_signature())

    def score(self, total: np.ndarray) -> float:
        return float(self.metric._compute_score_from_stats(total.tolist()).score)


class Bleu(_SacreBLEU[BLEU]):
    """BLEU (Papineni et al. 2002) by sacrebleu: 13a tokens, or characters where `is_spaceless`; exp smoothing.

    Args:
        lang: ISO 639-3 code of the text.
        lowercase: fold case, as ASR-BLEU does.
    """

    name = "bleu"

    def __init__(self, lang: str = "eng", lowercase: bool = False):
        self.metric = BLEU(tokenize="char" if is_spaceless(lang) else "13a", lowercase=lowercase)

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        words = [
            [self.metric._preprocess_segment(text).split() for text in texts] for texts in (hypotheses, references)
        ]
        pairs, orders = ngrams.pair_words(*words), self.metric.max_ngram_order
        matches, totals = ngrams.count_matches(pairs, orders), ngrams.count_ngrams(pairs.lengths[0], orders)
        # As sacrebleu has them: the two lengths, n-grams that match, n-grams of the hypothesis.
        return np.concatenate([pairs.lengths.T, matches, totals], axis=1)


class Chrf(_SacreBLEU[CHRF]):
    """chrF2 (Popovic 2015) by sacrebleu; `word_order=2` gives chrF++ (Popovic 2017)."""

    name = "chrf"

    def __init__(self, word_order: int = 0, lowercase: bool = False):
        self.metric = CHRF(word_order=word_order, lowercase=lowercase)

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        sides = [[self.metric._preprocess_segment(text) for text in texts] for texts in (hypotheses, references)]
        characters = ngrams.pair_characters(*(["".join(text.split()) for text in texts] for texts in sides))
        parts = [(characters, self.metric.char_order)]
        if self.metric.word_order:
            words = ngrams.pair_words(*([self.metric._remove_punctuation(text) for text in texts] for texts in sides))
            parts.append((words, self.metric.word_order))
        counts = []
        for pairs, orders in parts:
            ours, theirs = (ngrams.count_ngrams(lengths, orders) for lengths in pairs.lengths)
            # As sacrebleu has them, three for each order: n-grams of the hypothesis (none where the reference has
            # none), n-grams of the reference, n-grams that match.
            triples = np.stack([ours * (theirs > 0), theirs, ngrams.count_matches(pairs, orders)], axis=2)
            counts.append(triples.reshape(len(triples), -1))
        return np.concatenate(counts, axis=1)


class ErrorRate(Metric):
    """Word or character error rate in percent: (substitutions + deletions + insertions) / reference length, by jiwer.

    The rate of a corpus is the sum of errors over the sum of lengths. A sentence without reference words counts its
    hypothesis words as insertions. Characters are counted without spaces where `is_spaceless`.

    Args:
        unit: `word` for WER, `char` for CER.
        lang: ISO 639-3 code of the text; decides only whether CER counts spaces.
    """

    higher_is_better = False

    def __init__(self, unit: Literal["word", "char"] = "word", lang: str = "eng"):
        self.unit = unit
        self.name = "wer" if unit == "word" else "cer"
        self._squeeze = unit == "char" and is_spaceless(lang)

    @property
    def signature(self) -> str:
        spaces = "|spaces:no" if self._squeeze else ""
        return f"{self.name}|unit:{self.unit}{spaces}|jiwer:{version('jiwer')}"

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(references), 2), dtype=np.int64)
        process = jiwer.process_words if self.unit == "word" else jiwer.process_characters
        for row, hypothesis, reference in zip(rows, hypotheses, references, strict=True):
            hypothesis, reference = " ".join(hypothesis.split()), " ".join(reference.split())
            if self._squeeze:
                hypothesis, reference = hypothesis.replace(" ", ""), reference.replace(" ", "")
            if not reference:
                row[0] = len(hypothesis.split()) if self.unit == "word" else len(hypothesis)
                continue
            counts = process(reference, hypothesis)
            row[0] = counts.substitutions + counts.deletions + counts.insertions
            row[1] = counts.substitutions + counts.deletions + counts.hits
        return rows

    def score(self, total: np.ndarray) -> float:
        errors, length = (int(value) for value in total)
        if length == 0:
            return 0.0 if errors == 0 else 100.0
        return 100.0 * errors / length


class Mean(Summed):
    """The mean of a number of each sentence.

    Args:
        name, signature: of the number.
    """

    def __init__(self, name: str, signature: str = "") -> None:
        self.name, self._signature = name, signature

    @property
    def signature(self) -> str:
        return self._signature

    def counted(self, values: Sequence[float]) -> Counted:
        """N numbers, in millionths, since what resamples sum is whole. Raises ValueError where there are none."""
        if not values:
            raise ValueError(f"{self.name}: no values to average")
        millionths = np.rint(np.asarray(values, np.float64) * 1e6).astype(np.int64)
        return Counted(self, np.stack([millionths, np.ones_like(millionths)], axis=1), fmean(values))

    def score(self, total: np.ndarray) -> float:
        return float(total[0]) / 1e6 / float(total[1])


def error_rate_for(lang: str) -> ErrorRate:
    """WER, or CER for languages written without spaces."""
    return ErrorRate("char" if is_spaceless(lang) else "word", lang)


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
        statistics = metric.statistics(hypotheses, references)
        return cls(metric, statistics, metric.score(statistics.sum(axis=0)))


def bootstrap(tables: Iterable[Counted], resamples: int = RESAMPLES, seed: int = SEED) -> list[np.ndarray]:
    """Scores (R,) of each table under R draws of its N sentences with replacement: the same for all of one N."""
    tables = list(tables)
    scores: list[list[float]] = [[] for _ in tables]
    for count in dict.fromkeys(len(table.statistics) for table in tables):
        places = [place for place, table in enumerate(tables) if len(table.statistics) == count]
        # All tables side by side. In float64 the product is BLAS's, and exact: sums of counts are far below 2**53.
        counts = np.concatenate([tables[place].statistics for place in places], axis=1, dtype=np.float64)
        edges = np.cumsum([tables[place].statistics.shape[1] for place in places])[:-1]
        generator = np.random.default_rng(seed)
        share = np.full(count, 1 / count)
        # A resample is how often each sentence was drawn; in slices: a large corpus does not need R x N numbers.
        step = max(1, _DRAWN_AT_ONCE // count)
        for start in range(0, resamples, step):
            weights = generator.multinomial(count, share, size=min(step, resamples - start))
            totals = (weights.astype(np.float64) @ counts).astype(np.int64)
            for place, part in zip(places, np.split(totals, edges, axis=1), strict=True):
                scores[place].extend(tables[place].metric.score(total) for total in part)
    return [np.asarray(out, dtype=np.float64) for out in scores]


def evaluate_corpus(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Score N sentence pairs.

    Returns:
        Plain dict: `score`, `low` and `high` (95 % percentile bootstrap over sentences; it does not cover training
        seeds), `num_sentences`, `signature`.

    Raises:
        ValueError: numbers of hypotheses and references differ, or there are none.
    """
    table = Counted.of(metric, hypotheses, references)
    (scores,) = bootstrap([table], resamples, seed)
    low, high = interval(scores)
    return {
        "score": table.score,
        "low": low,
        "high": high,
        "num_sentences": len(references),
        "signature": metric.signature,
    }


def compare_systems(
    metric: Metric,
    system: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Paired bootstrap of two systems on the same N sentences.

    Returns:
        Plain dict: `score`, `baseline`, `difference` with `low` and `high` (95 %), `ratio` with `ratio_low` and
        `ratio_high` (None where the baseline scores 0), `p_value`: two-sided share of resamples in which the order of
        the two turns round, `num_sentences`, `signature`.
    """
    ours, theirs = (Counted.of(metric, hypotheses, references) for hypotheses in (system, baseline))
    a, b = bootstrap([ours, theirs], resamples, seed)
    return comparison(ours, theirs, a, b)


def comparison(system: Counted, baseline: Counted, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """What `compare_systems` returns, of two tables and their (R,) scores under the same resamples."""
    score, other = system.score, baseline.score
    low, high = interval(a - b)
    usable = b > 0
    ratio_low, ratio_high = interval(a[usable] / b[usable]) if other > 0 and usable.any() else (None, None)
    # The usual +1: an estimate from R resamples is never below 1 / (R + 1).
    tail = min(np.count_nonzero(a - b <= 0), np.count_nonzero(a - b >= 0))
    return {
        "score": score,
        "baseline": other,
        "difference": score - other,
        "low": low,
        "high": high,
        "ratio": score / other if other > 0 else None,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "p_value": float(min(1.0, 2 * (tail + 1) / (len(a) + 1))),
        "num_sentences": len(system.statistics),
        "signature": system.metric.signature,
    }


def interval(scores: np.ndarray) -> tuple[float | None, float | None]:
    """95 % of (R,) scores, from the 2.5th to the 97.5th percentile; None where there are none."""
    if len(scores) == 0:
        return None, None
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise ValueError("scores take lists of sentences, one per utterance; got one string")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} references: give one line each, in the same order"
        )
    if not references:
        raise ValueError("no sentences to score: the corpus is empty")
