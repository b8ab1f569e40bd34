"""Corpus scores of text with signatures and bootstrap intervals.

A metric turns sentence pairs into rows of sufficient statistics (n-gram counts, edit counts). The corpus score is a
function of the summed rows, so resampling a corpus is one matrix product (`significance`), and all that is scored on
the same sentences shares its resamples.

Letters: N sentences, S sentences of a slice of them, K statistics, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Generic, Literal, TypeVar

import jiwer
import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.lib_ter import translation_edit_rate
from sacrebleu.metrics.ter import TER

from ...components.languages import is_spaceless
from . import ngrams
from .counted import Counted, Metric, References, how_many
from .significance import RESAMPLES, SEED, bootstrap, interval

_Counter = TypeVar("_Counter", BLEU, CHRF, TER)


class _SacreBLEU(Metric, Generic[_Counter]):
    """Tokens and the score of the counts by sacrebleu itself, so that it is exactly the one its command line prints."""

    metric: _Counter
    precision = np.float32

    def signature_on(self, num_references: int | None, **tests: int) -> str:
        """The signature that sacrebleu prints where `bs` resamples or `ar` trials were drawn with `seed`."""
        # sacrebleu knows the number of references only after it has seen some; -1 is its word for `var`.
        self.metric.num_refs = -1 if num_references is None else num_references
        signature = self.metric.get_signature()
        for key, value in tests.items():
            signature.update(key, value)
        return str(signature)

    def count_several(self, hypothesis: str, references: Sequence[str]) -> Sequence[float]:
        # For BLEU n-grams of any reference and the length of the nearest one, for chrF those of the reference with the
        # best score of the sentence, for TER the fewest edits and the mean length.
        prepared = self.metric._preprocess_segment
        about = self.metric._extract_reference_info([prepared(text) for text in references])
        return self.metric._compute_segment_statistics(prepared(hypothesis), about)

    def score(self, total: np.ndarray) -> float:
        return float(self.metric._compute_score_from_stats(total.tolist()).score)


class Bleu(_SacreBLEU[BLEU]):
    """BLEU (Papineni et al. 2002) by sacrebleu: 13a tokens, or characters where `is_spaceless`; exp smoothing.

    Args:
        lang: ISO 639-3 code of the text.
        lowercase: fold case, as ASR-BLEU does.
        tokenize: another tokenizer of sacrebleu; None: what `lang` asks for.
    """

    name = "bleu"

    def __init__(self, lang: str = "eng", lowercase: bool = False, tokenize: str | None = None):
        self.metric = BLEU(tokenize=tokenize or ("char" if is_spaceless(lang) else "13a"), lowercase=lowercase)

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        words = [
            [self.metric._preprocess_segment(text).split() for text in texts] for texts in (hypotheses, references)
        ]
        pairs, orders = ngrams.pair_words(*words), self.metric.max_ngram_order
        matches, totals = ngrams.count_matches(pairs, orders), ngrams.count_ngrams(pairs.lengths[0], orders)
        # As sacrebleu has them: the two lengths, n-grams that match, n-grams of the hypothesis.
        return np.concatenate([pairs.lengths.T, matches, totals], axis=1)

    def scores(self, totals: np.ndarray) -> np.ndarray:
        """The formula of sacrebleu, step by step as there, so that roundings are the same too."""
        orders = self.metric.max_ngram_order
        ours, theirs = (totals[:, side].astype(np.float64) for side in (0, 1))
        matches, ngrams_of_ours = totals[:, 2 : 2 + orders], totals[:, 2 + orders :]
        smoothing, logs = np.ones(len(totals), totals.dtype), np.zeros(len(totals))
        with np.errstate(divide="ignore", invalid="ignore"):
            penalty = np.where(ours < theirs, np.exp(1 - theirs / ours), 1.0)
            for order in range(orders):
                match, total = matches[:, order], ngrams_of_ours[:, order]
                smoothing = np.where((match == 0) & (total > 0), smoothing * 2, smoothing)
                precision = np.where(match == 0, 100.0 / (smoothing * total), 100.0 * match / total)
                logs += np.where(total > 0, np.log(precision.astype(np.float64)), -math.inf)
        return np.where(matches.any(axis=1), penalty * np.exp(logs / orders), 0.0)


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

    def scores(self, totals: np.ndarray) -> np.ndarray:
        """The formula of sacrebleu, step by step as there, so that roundings are the same too."""
        factor = self.metric.beta**2
        precision, recall, orders = (np.zeros(len(totals), totals.dtype) for _ in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):
            for order in range(self.metric.order):
                ours, theirs, match = totals[:, 3 * order : 3 * order + 3].T
                known = (ours > 0) & (theirs > 0)
                precision += np.where(known, match / ours, 0)
                recall += np.where(known, match / theirs, 0)
                orders += known
            precision, recall = precision / orders, recall / orders
            score = (1 + factor) * precision * recall / (factor * precision + recall)
        return np.where(precision + recall > 0, 100 * score, 0)


class Ter(_SacreBLEU[TER]):
    """Translation edit rate in percent (Snover et al. 2006) by sacrebleu: edits and shifts over reference length."""

    name = "ter"
    higher_is_better = False

    def __init__(self):
        self.metric = TER()

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        words = self.metric._preprocess_segment
        rows = [
            translation_edit_rate(words(hypothesis).split(), words(reference).split())
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
        return np.asarray(rows, dtype=np.int64).reshape(-1, 2)

    def scores(self, totals: np.ndarray) -> np.ndarray:
        edits, length = totals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(length > 0, 100 * (edits / length), np.where(edits > 0, 100, 0)).astype(totals.dtype)


class ErrorRate(Metric):
    """Word or character error rate in percent: (substitutions + deletions + insertions) / reference length, by jiwer.

    The rate of a corpus is the sum of errors over the sum of lengths. A sentence without reference words counts its
    hypothesis words as insertions. Characters are counted without spaces where `is_spaceless`. Of several references
    the first counts, and the signature says so.

    Args:
        unit: `word` for WER, `char` for CER.
        lang: ISO 639-3 code of the text; decides only whether CER counts spaces.
    """

    higher_is_better = False

    def __init__(self, unit: Literal["word", "char"] = "word", lang: str = "eng"):
        self.unit = unit
        self.name = "wer" if unit == "word" else "cer"
        self._squeeze = unit == "char" and is_spaceless(lang)

    def signature_on(self, num_references: int | None, **tests: int) -> str:
        spaces = "|spaces:no" if self._squeeze else ""
        first = "" if num_references == 1 else "|refs:first"
        own = f"{self.name}|unit:{self.unit}{spaces}{first}|jiwer:{version('jiwer')}"
        return "|".join([own, *(f"{key}:{value}" for key, value in tests.items())])

    def count_several(self, hypothesis: str, references: Sequence[str]) -> Sequence[float]:
        return self.count([hypothesis], references[:1])[0].tolist()

    def count(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(references), 2), dtype=np.int64)
        process = jiwer.process_words if self.unit == "word" else jiwer.process_characters
        for row, hypothesis, reference in zip(rows, hypotheses, references, strict=True):
            if self._squeeze:
                hypothesis, reference = "".join(hypothesis.split()), "".join(reference.split())
            hypothesis, reference = hypothesis.strip(), reference.strip()
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

    def scores(self, totals: np.ndarray) -> np.ndarray:
        errors, length = totals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(length > 0, 100.0 * errors / length, np.where(errors > 0, 100.0, 0.0))


def error_rate_for(lang: str) -> ErrorRate:
    """WER, or CER for languages written without spaces."""
    return ErrorRate("char" if is_spaceless(lang) else "word", lang)


def evaluate_corpus(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[References],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Score N sentences, each with a reference or several.

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
        "signature": metric.signature_on(how_many(references)),
    }
