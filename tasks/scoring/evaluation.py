"""Scores of a split: text against references, and speech through a recogniser.

Letters: N samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from ...datamodules.audio import level, resample
from .normalise import normalise
from .normalise import signature as normaliser_signature
from .recogniser import SAMPLE_RATE, Recogniser
from .text import Bleu, Chrf, Metric, compare_systems, error_rate_for, evaluate_corpus


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

    @property
    def direction(self) -> str:
        return f"{self.src_lang}-{self.tgt_lang}"

    def line(self) -> dict[str, Any]:
        """Fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def note_audio(row: Scored, audio: Tensor, sample_rate: int) -> None:
    """Enter what can be seen in (N,) samples of output speech."""
    row.duration = round(len(audio) / sample_rate, 4)
    if len(audio) == 0:
        row.silent, row.clipped = True, False
        return
    found = level(audio)
    row.silent, row.clipped = found.silent, found.clipped


def listen(recogniser: Recogniser, audio: Sequence[Tensor], sample_rate: int, langs: Sequence[str]) -> list[str]:
    """Transcribe (N,) waveforms of several languages, in order."""
    heard = [""] * len(audio)
    for lang in sorted(set(langs)):
        places = [place for place, other in enumerate(langs) if other == lang]
        waves = [resample(audio[p], sample_rate, SAMPLE_RATE) for p in places]
        for place, text in zip(places, recogniser.transcribe(waves, lang), strict=True):
            heard[place] = text
    return heard


def score_rows(rows: Sequence[Scored], recogniser: str | None = None) -> dict[str, Any]:
    """Scores of the rows of one task.

    A split with several directions is scored for each, and the scores of the task are means over directions.

    Returns:
        Plain dict: a number for each score, `intervals` (name -> [low, high], 95 %; absent for means over directions),
        `signatures`, `num_utterances`, and `directions` where there are several.
    """
    directions: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        directions[row.direction].append(row)
    parts = {name: _score_direction(members, recogniser) for name, members in sorted(directions.items())}
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


def _score_direction(rows: Sequence[Scored], recogniser: str | None) -> dict[str, Any]:
    lang = rows[0].tgt_lang
    answer: dict[str, Any] = {"num_utterances": len(rows)}
    intervals: dict[str, list[float | None]] = {}
    signatures: dict[str, str] = {}

    def put(name: str, metric: Metric, pairs: list[tuple[str, str]], prefix: str = "") -> None:
        if not pairs:
            return
        hypotheses, references = zip(*pairs, strict=True)
        found = evaluate_corpus(metric, hypotheses, references)
        answer[name] = found["score"]
        intervals[name] = [found["low"], found["high"]]
        signatures[name] = prefix + found["signature"]

    known = [row for row in rows if row.reference.strip()]
    texts = [(row.hypothesis, row.reference) for row in known if row.hypothesis is not None]
    clean = [(normalise(h, lang), normalise(r, lang)) for h, r in texts] if rows[0].task == "asr" else []
    if rows[0].task == "asr":
        rate = error_rate_for(lang)
        put(rate.name, rate, clean, f"{normaliser_signature(lang)}|")
    else:
        put("bleu", Bleu(lang), texts)
        put("chrf", Chrf(), texts)

    spoken = [row for row in rows if row.duration is not None]
    if spoken:
        answer["silent"] = sum(bool(row.silent) for row in spoken)
        answer["clipped"] = sum(bool(row.clipped) for row in spoken)
        ratios = [r.duration / r.reference_duration for r in spoken if r.duration is not None and r.reference_duration]
        if ratios:
            answer["duration_ratio"] = fmean(ratios)
    if recogniser is not None:
        judged = f"{recogniser}|{normaliser_signature(lang)}|"
        metric = Bleu(lang, lowercase=True)
        heard = {
            name: [
                (normalise(text, lang), normalise(row.reference, lang))
                for row in known
                if (text := getattr(row, field)) is not None
            ]
            for name, field in (
                ("asr_bleu", "heard"),
                ("asr_bleu_ceiling", "heard_reference"),
                ("asr_bleu_resynthesis", "heard_resynthesis"),
            )
        }
        for name, pairs in heard.items():
            put(name, metric, pairs, judged)
        if heard["asr_bleu"]:
            put("asr_wer", error_rate_for(lang), heard["asr_bleu"], judged)
        for name, base in (("asr_bleu", "asr_bleu_ratio"), ("asr_bleu_resynthesis", "resynthesis_ratio")):
            ours, ceiling = heard[name], heard["asr_bleu_ceiling"]
            if ours and len(ours) == len(ceiling):
                pair = compare_systems(metric, [h for h, _ in ours], [h for h, _ in ceiling], [r for _, r in ceiling])
                answer[base] = pair["ratio"]
                intervals[base] = [pair["ratio_low"], pair["ratio_high"]]
    return {**answer, "intervals": intervals, "signatures": signatures}
