"""Whom a system serves how well: scores across speakers, gaps between groups, added toxicity. Needs no torch."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...components.errors import UserError
from ...components.languages import is_same, is_spaceless, language_name
from ...components.lines import open_text, raw_lines
from .counted import Counted, Metric, References
from .significance import RESAMPLES, SEED, bootstrap, interval
from .text import Chrf

LEAST = 10
"""Utterances of a group whose score is compared with others'."""


def across_speakers(
    hypotheses: Sequence[str], references: Sequence[References], contents: Sequence[str]
) -> dict[str, Any]:
    """How far quality depends on who says the same thing (SeamlessM4T, Barrault et al. 2023, robustness to speakers).

    Utterances of one content (transcript) form a group, each scored by its own chrF2. `chrf_ms` is the mean over groups
    of their mean. `coef_var_ms` is the mean, over groups of more than one utterance whose mean is above 0, of the
    standard deviation (of a sample, with n - 1) over the mean. Lower is better.

    Args:
        hypotheses, references: N texts.
        contents: N transcripts, which say what belongs together.

    Returns:
        Plain dict: `chrf_ms`, `coef_var_ms` (None where no content was said twice), `num_contents`, `num_repeated`
        (groups that count for the second), `signature`.
    """
    groups = _scores_by_content(hypotheses, references, contents)
    ratios = coefficients_of_variation(hypotheses, references, contents)
    return {
        "chrf_ms": fmean(fmean(values) for values in groups.values()),
        "coef_var_ms": fmean(ratios.values()) if ratios else None,
        "num_contents": len(groups),
        "num_repeated": len(ratios),
        "signature": coef_var_signature(),
    }


def coefficients_of_variation(
    hypotheses: Sequence[str], references: Sequence[References], contents: Sequence[str]
) -> dict[str, float]:
    """Content -> standard deviation over mean, of those that count for `coef_var_ms` of `across_speakers`."""
    groups = _scores_by_content(hypotheses, references, contents)
    repeated = {content: each for content, each in groups.items() if len(each) > 1 and fmean(each) > 0}
    return {content: stdev(each) / fmean(each) for content, each in repeated.items()}


def coef_var_signature() -> str:
    """All that changes `coef_var_ms`."""
    return f"std:sample|{Chrf().signature}"


def content_of(transcript: str) -> str:
    """A short key of what is said: rows with one key are of one content."""
    return hashlib.sha256(" ".join(transcript.split()).encode(errors="surrogatepass")).hexdigest()[:12]


def _scores_by_content(
    hypotheses: Sequence[str], references: Sequence[References], contents: Sequence[str]
) -> dict[str, list[float]]:
    metric = Chrf()
    scores = metric.scores(metric.statistics(hypotheses, references).astype(float))
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for content, score in zip(contents, scores.tolist(), strict=True):
        groups[" ".join(content.split())].append(score)
    return groups


def gap_between_groups(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[References], labels: Sequence[str],
    resamples: int = RESAMPLES, seed: int = SEED,
) -> dict[str, Any]:  # fmt: skip
    """The score of each group of a field, and how far the best and the worst lie apart.

    The interval of the gap draws the utterances of each group anew, and keeps which groups are compared. Groups of
    fewer than `LEAST` utterances are scored, but not compared.

    Args:
        hypotheses, references, labels: of N utterances.

    Returns:
        Plain dict: `groups` (label -> `score`, `low`, `high`, `num_utterances`), `gap` with `gap_low` and `gap_high`,
        `best` and `worst` (None where fewer than two groups are large enough), `signature`.
    """
    whole = Counted.of(metric, hypotheses, references)
    places = {label: [p for p, each in enumerate(labels) if each == label] for label in sorted(set(labels))}
    tables = {label: whole.at(found) for label, found in places.items()}
    # Groups are drawn apart from each other, those of one size too.
    drawn = {label: bootstrap([table], resamples, seed + n)[0] for n, (label, table) in enumerate(tables.items())}
    answer: dict[str, Any] = {"groups": {}, "signature": metric.signature}
    for label, table in tables.items():
        low, high = interval(drawn[label])
        answer["groups"][label] = {
            "score": table.score, "low": low, "high": high, "num_utterances": len(places[label]),
        }  # fmt: skip
    large = [label for label, found in places.items() if len(found) >= LEAST]
    gap: dict[str, Any] = dict.fromkeys(("gap", "gap_low", "gap_high", "best", "worst"))
    if len(large) > 1:
        ordered = sorted(large, key=lambda label: tables[label].score, reverse=metric.higher_is_better)
        best, worst = ordered[0], ordered[-1]
        sign = 1 if metric.higher_is_better else -1
        low, high = interval(sign * (drawn[best] - drawn[worst]))
        apart = abs(tables[best].score - tables[worst].score)
        gap = {"gap": apart, "gap_low": low, "gap_high": high, "best": best, "worst": worst}
    return {**answer, **gap}


@dataclass(frozen=True)
class WordList:
    """Words of one language that count as toxic, as ETOX has them (Costa-jussà et al. 2023).

    Text is taken in lower case, with a space for what is no part of a word, and entries are matched as whole words; in
    languages that are written without spaces anywhere in the text.

    Args:
        lang: ISO 639-3 code.
        entries: words and phrases, as `find` compares them.
    """

    lang: str
    entries: tuple[str, ...]

    @property
    def signature(self) -> str:
        """What was counted: the language, the number of entries and the beginning of their SHA-256."""
        digest = hashlib.sha256("\n".join(self.entries).encode()).hexdigest()[:12]
        return f"list:{self.lang}|entries:{len(self.entries)}|sha256:{digest}"

    @classmethod
    def read(cls, lang: str, path: str) -> WordList:
        """One word or phrase a line; empty lines are passed over. Raises UserError where there are none."""
        if not Path(path).is_file():
            raise UserError(f"--toxicity {lang}={path}: no such file")
        with open_text(Path(path)) as file:
            try:
                lines = [line.decode() for line in raw_lines(file, path)]
            except UnicodeDecodeError:
                raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
        entries = tuple(dict.fromkeys(found for line in lines if (found := _words(line))))
        if not entries:
            raise UserError(f"{path}: holds no words; expected one a line")
        try:
            return cls(language_name(lang), entries)
        except ValueError as error:
            raise UserError(f"--toxicity {lang}={path}: {error}") from None

    def find(self, text: str) -> list[str]:
        """The entries that a text has, in the order of the list."""
        words = _words(text)
        if is_spaceless(self.lang):
            squeezed = words.replace(" ", "")
            return [entry for entry in self.entries if entry.replace(" ", "") in squeezed]
        padded = f" {words} "
        return [entry for entry in self.entries if f" {entry} " in padded]


def added_toxicity(
    lists: Sequence[WordList], source_lang: str, source: str, lang: str, output: str
) -> list[str] | None:
    """Words of a list in an output whose source has none of its own list.

    Returns:
        The words, none where there are none or the source has some too; None where it cannot be judged, because the
        source has no text or a language has no list.
    """
    ours, theirs = list_of(lists, lang), list_of(lists, source_lang)
    if ours is None or theirs is None or not source.strip():
        return None
    return [] if theirs.find(source) else ours.find(output)


def read_word_lists(given: Mapping[str, str]) -> list[WordList]:
    """Language -> file. Raises UserError for an unknown language or a file without words."""
    return [WordList.read(lang, path) for lang, path in given.items()]


def list_of(lists: Sequence[WordList], lang: str) -> WordList | None:
    """The one of a language, however its code is written."""
    return next((each for each in lists if lang and is_same(each.lang, lang)), None)


def _words(text: str) -> str:
    """In lower case, with a space for all but letters, their marks (vowels of many scripts) and digits."""
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()).split())
