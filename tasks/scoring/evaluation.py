"""Scores of a split: text against references, and what a recogniser heard in speech. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .counted import Counted, Mean, Metric
from .normalise import normalise
from .normalise import signature as normaliser_signature
from .significance import bootstrap, comparison, interval
from .text import Bleu, Chrf, error_rate_for


@dataclass
class Scored:
    """One utterance of a split with what became of it; a line of the hypotheses file.

    Attributes:
        reference: target text of the manifest, "" where there is none.
        hypothesis: text of the first pass, None where the task has no text.
        source_audio: file of the input speech.
        audio: file of the output speech; duration in seconds.
        heard, heard_reference, heard_resynthesis: what the recogniser made of the output speech, of the target
            recording and of the reference units through the vocoder.
        speaker: of the source, as the manifest labels it.
        quality: name -> number of how the output speech sounds (`scoring.quality`), None where nobody asked.
    """

    id: str
    task: str
    src_lang: str
    tgt_lang: str
    reference: str
    hypothesis: str | None = None
    score: float | None = None
    source_audio: str | None = None
    audio: str | None = None
    duration: float | None = None
    reference_duration: float | None = None
    silent: bool | None = None
    clipped: bool | None = None
    heard: str | None = None
    heard_reference: str | None = None
    heard_resynthesis: str | None = None
    speaker: str | None = None
    quality: dict[str, float] | None = None

    @property
    def direction(self) -> str:
        return f"{self.src_lang}-{self.tgt_lang}"

    def line(self) -> dict[str, Any]:
        """Fields that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


def score_rows(
    rows: Sequence[Scored], recogniser: str | None = None, quality: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Scores of the rows of one task.

    A split with several directions is scored for each, and the scores of the task are means over directions.

    Args:
        rows: of one task.
        recogniser: signature of what heard the speech.
        quality: score -> signature of what measured it, for the scores in `quality` of the rows.

    Returns:
        Plain dict: a number for each score, `intervals` (name -> [low, high], 95 %; absent for means over directions),
        `signatures`, `num_utterances`, and `directions` where there are several.
    """
    directions: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        directions[row.direction].append(row)
    parts = {name: _score_direction(members, recogniser, quality or {}) for name, members in sorted(directions.items())}
    if len(parts) == 1:
        return next(iter(parts.values()))
    names = dict.fromkeys(
        name for part in parts.values() for name, value in part.items() if isinstance(value, float | int)
    )
    answer: dict[str, Any] = {"num_utterances": len(rows)}
    for name in names:
        values = [part[name] for part in parts.values() if part.get(name) is not None]
        if name in ("silent", "clipped"):
            answer[name] = sum(values)
        elif name != "num_utterances":
            answer[name] = fmean(values)
    answer["intervals"], answer["signatures"] = {}, {}
    for part in parts.values():
        for name, line in part["signatures"].items():
            answer["signatures"].setdefault(name, line)
    answer["directions"] = parts
    return answer


_HEARD = {
    "asr_bleu": "heard",
    "asr_bleu_ceiling": "heard_reference",
    "asr_bleu_resynthesis": "heard_resynthesis",
}


def _score_direction(rows: Sequence[Scored], recogniser: str | None, quality: Mapping[str, str]) -> dict[str, Any]:
    lang = rows[0].tgt_lang
    answer: dict[str, Any] = {"num_utterances": len(rows)}
    signatures: dict[str, str] = {}
    tables: dict[str, Counted] = {}

    def put(name: str, metric: Metric, hypotheses: list[str], references: list[str], prefix: str = "") -> None:
        if not hypotheses:
            return
        tables[name] = Counted.of(metric, hypotheses, references)
        answer[name] = tables[name].score
        signatures[name] = prefix + metric.signature

    known = [row for row in rows if row.reference.strip()]
    texts = [row.hypothesis for row in known if row.hypothesis is not None]
    references = [row.reference for row in known if row.hypothesis is not None]
    rate, cleaned = error_rate_for(lang), f"{normaliser_signature(lang)}|"
    if rows[0].task == "asr":
        ours, theirs = ([normalise(text, lang) for text in side] for side in (texts, references))
        put(rate.name, rate, ours, theirs, cleaned)
    else:
        put("bleu", Bleu(lang), texts, references)
        put("chrf", Chrf(), texts, references)

    spoken = [row for row in rows if row.duration is not None]
    if spoken:
        answer["silent"] = sum(bool(row.silent) for row in spoken)
        answer["clipped"] = sum(bool(row.clipped) for row in spoken)
        ratios = [r.duration / r.reference_duration for r in spoken if r.duration is not None and r.reference_duration]
        if ratios:
            tables["duration_ratio"] = Mean("duration_ratio").counted(ratios)
            answer["duration_ratio"] = tables["duration_ratio"].score
    for name, signature in quality.items():
        values = [row.quality[name] for row in rows if row.quality is not None and name in row.quality]
        if values:
            tables[name] = Mean(name, signature).counted(values)
            answer[name], signatures[name] = tables[name].score, signature
    places: dict[str, list[int]] = {name: [] for name in _HEARD}
    if recogniser is not None:
        metric, judged = Bleu(lang, lowercase=True), f"{recogniser}|{cleaned}"
        said = [normalise(row.reference, lang) for row in known]
        heard: dict[str, list[str]] = {}
        for name, field in _HEARD.items():
            places[name] = [place for place, row in enumerate(known) if getattr(row, field) is not None]
            heard[name] = [normalise(getattr(known[place], field), lang) for place in places[name]]
            put(name, metric, heard[name], [said[place] for place in places[name]], judged)
        put("asr_wer", rate, heard["asr_bleu"], [said[place] for place in places["asr_bleu"]], judged)

    scores = dict(zip(tables, bootstrap(tables.values()), strict=True))
    intervals: dict[str, list[float | None]] = {name: list(interval(found)) for name, found in scores.items()}
    ceiling = "asr_bleu_ceiling"
    for name, ratio in (("asr_bleu", "asr_bleu_ratio"), ("asr_bleu_resynthesis", "resynthesis_ratio")):
        if name in tables and places[name] == places[ceiling]:
            pair = comparison(tables[name], tables[ceiling], scores[name], scores[ceiling])
            answer[ratio] = pair["ratio"]
            intervals[ratio] = [pair["ratio_low"], pair["ratio_high"]]
    return {**answer, "intervals": intervals, "signatures": signatures}
