"""Scores of a split: text against references, and what a recogniser heard in speech. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from .care import (
    WordList,
    across_speakers,
    added_toxicity,
    coef_var_signature,
    coefficients_of_variation,
    content_of,
    gap_between_groups,
    list_of,
)
from .counted import Counted, Mean, Metric, References, each_of, first_of, how_many
from .normalise import normalise
from .normalise import signature as normaliser_signature
from .significance import bootstrap, comparison, interval
from .text import Bleu, Chrf, error_rate_for
from .unit_errors import merged


@dataclass
class Scored:
    """One utterance of a split with what became of it; a line of the hypotheses file.

    Attributes:
        reference: target text of the manifest, the first of several, "" where there is none.
        references: all of several, else None.
        hypothesis: text of the first pass, None where the task has no text.
        source_audio: file of the input speech.
        audio: file of the output speech; duration in seconds.
        heard, heard_reference, heard_resynthesis: what the recogniser made of the output speech, of the target
            recording and of the reference units through the vocoder.
        heard_own: that of the output in the voice of its own source, where another was the prompt of `audio`.
        units, reference_units: of the target, as the model wrote them and as they should be.
        speaker: of the source, as the manifest labels it.
        src_text: text of the source, "" where there is none; not in the file.
        content: `care.content_of` the source, by which rows that say the same are known; None where nobody asked.
        toxic: words of a list that the output has though its source has none (`scoring.care`), None where nobody asked.
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
    heard_own: str | None = None
    units: list[int] | None = None
    reference_units: list[int] | None = None
    speaker: str | None = None
    quality: dict[str, float] | None = None
    src_text: str = ""
    toxic: list[str] | None = None
    references: list[str] | None = None
    content: str | None = None

    @property
    def direction(self) -> str:
        return f"{self.src_lang}-{self.tgt_lang}"

    def said(self) -> References:
        """The reference, or all of several."""
        return self.references or self.reference

    def line(self) -> dict[str, Any]:
        """Fields that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "src_text"}


@dataclass(frozen=True)
class Care:
    """What is asked beside the scores of all.

    Attributes:
        speakers: how far quality depends on who says the same thing (`care.across_speakers`).
        labels: field -> id -> label: the score of each group, and the gap between them.
        lists: of toxic words, by language.
    """

    speakers: bool = False
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lists: Sequence[WordList] = ()


def score_rows(
    rows: Sequence[Scored],
    recogniser: str | None = None,
    quality: Mapping[str, str] | None = None,
    care: Care | None = None,
) -> dict[str, Any]:
    """Scores of the rows of one task.

    A split with several directions is scored for each, and the scores of the task are means over directions. Where a
    row has several references, BLEU and chrF count as sacreBLEU does with all of them, error rates with the first; the
    signature says which.

    Args:
        rows: of one task.
        recogniser: signature of what heard the speech.
        quality: score -> signature of what measured it, for the scores in `quality` of the rows.
        care: what is asked beside. `toxic` and `content` of the rows are filled.

    Returns:
        Plain dict: a number for each score, `intervals` (name -> [low, high], 95 %; absent for means over directions),
        `signatures`, `num_utterances`, and `directions` where there are several. `gaps`, where groups were asked for
        (of each direction): field -> score -> what `care.gap_between_groups` returns.
    """
    care = care or Care()
    directions: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        directions[row.direction].append(row)
    parts = {
        name: _score_direction(members, recogniser, quality or {}, care) for name, members in sorted(directions.items())
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    names = dict.fromkeys(
        name for part in parts.values() for name, value in part.items() if isinstance(value, float | int)
    )
    answer: dict[str, Any] = {"num_utterances": len(rows)}
    for name in names:
        values = [part[name] for part in parts.values() if part.get(name) is not None]
        if name in ("silent", "clipped", "num_contents", "num_repeated"):
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
    "asr_bleu_own": "heard_own",
}


def _spelt(units: Sequence[int]) -> str:
    """Units as words, without repetitions."""
    return " ".join(map(str, merged(units)))


@dataclass(frozen=True)
class _Text:
    """What one score compares: texts of the rows that have both sides, as they are scored.

    Attributes:
        rows: those rows.
        prefix: of the signature.
    """

    metric: Metric
    rows: list[Scored]
    hypotheses: list[str]
    references: list[References]
    prefix: str = ""

    @property
    def signature(self) -> str:
        return self.prefix + self.metric.signature_on(how_many(self.references))


def _texts(rows: Sequence[Scored], recogniser: str | None) -> dict[str, _Text]:
    """Score -> what it compares, of the rows of one direction; nothing where no row has it."""
    lang = rows[0].tgt_lang
    rate, cleaned = error_rate_for(lang), f"{normaliser_signature(lang)}|"
    known = [row for row in rows if row.reference.strip()]
    found: dict[str, _Text] = {}
    said = [row for row in known if row.hypothesis is not None]
    texts, references = [row.hypothesis or "" for row in said], [row.said() for row in said]
    if said and rows[0].task == "asr":
        ours, first = ([normalise(text, lang) for text in side] for side in (texts, map(first_of, references)))
        found[rate.name] = _Text(rate, said, ours, [*first], cleaned)
    elif said:
        found["bleu"] = _Text(Bleu(lang), said, texts, references)
        found["chrf"] = _Text(Chrf(), said, texts, references)
    if written := [row for row in rows if row.units is not None and row.reference_units is not None]:
        ours, theirs = (
            [_spelt(row.units or ()) for row in written],
            [_spelt(row.reference_units or ()) for row in written],
        )
        found["unit_bleu"] = _Text(Bleu(tokenize="none"), written, ours, [*theirs], "units:merged|")
    if recogniser is None:
        return found
    metric, judged = Bleu(lang, lowercase=True), f"{recogniser}|{cleaned}"
    for name, heard_as in _HEARD.items():
        if there := [row for row in known if getattr(row, heard_as) is not None]:
            ours = [normalise(getattr(row, heard_as), lang) for row in there]
            theirs = [each_of(row.said(), lambda text: normalise(text, lang)) for row in there]
            found[name] = _Text(metric, there, ours, theirs, judged)
            if name in ("asr_bleu", "asr_bleu_own"):
                found[name.replace("bleu", "wer")] = _Text(rate, there, ours, theirs, judged)
    return found


@dataclass(frozen=True)
class Measured:
    """A score of rows, as it can be resampled and compared.

    Attributes:
        ids: of the rows that it counts, in their order.
    """

    ids: list[str]
    counted: Counted
    signature: str


def measure(
    rows: Sequence[Scored],
    recogniser: str | None = None,
    quality: Mapping[str, str] | None = None,
    lists: Sequence[WordList] = (),
) -> dict[str, Measured]:
    """Score -> what it says of the rows of one task and direction.

    Args:
        rows, recogniser, quality: as for `score_rows`; what that fills is read here.
        lists: those by which `toxic` was filled.
    """
    texts = _texts(rows, recogniser)
    return {**_of_texts(texts), **_of_numbers(rows, quality or {}), **_of_speakers(texts), **_of_words(rows, lists)}


def _of_texts(texts: Mapping[str, _Text]) -> dict[str, Measured]:
    return {
        name: Measured(
            [row.id for row in text.rows], Counted.of(text.metric, text.hypotheses, text.references), text.signature
        )
        for name, text in texts.items()
    }


def _of_numbers(rows: Sequence[Scored], quality: Mapping[str, str]) -> dict[str, Measured]:
    """Means over rows: how long their speech is, how it sounds, and whether its units are right."""
    found: dict[str, Measured] = {}

    def put(mean: Mean, values: Mapping[str, float]) -> None:
        if values:
            found[mean.name] = Measured(list(values), mean.counted(list(values.values())), mean.signature)

    ratios = {
        row.id: row.duration / row.reference_duration
        for row in rows
        if row.duration is not None and row.reference_duration
    }
    put(Mean("duration_ratio"), ratios)
    written = [row for row in rows if row.units is not None and row.reference_units is not None]
    exact = {row.id: 100.0 * (_spelt(row.units or ()) == _spelt(row.reference_units or ())) for row in written}
    put(Mean("unit_exact", "units:merged"), exact)
    for name, signature in quality.items():
        heard = [row for row in rows if row.quality and name in row.quality]
        put(Mean(name, signature), {row.id: row.quality[name] for row in heard if row.quality})
    return found


def _score_direction(
    rows: Sequence[Scored], recogniser: str | None, quality: Mapping[str, str], care: Care
) -> dict[str, Any]:
    answer: dict[str, Any] = {"num_utterances": len(rows)}
    signatures: dict[str, str] = {}
    tables: dict[str, Counted] = {}
    texts = _texts(rows, recogniser)
    for name, one in {**_of_texts(texts), **_of_numbers(rows, quality)}.items():
        tables[name], answer[name] = one.counted, one.counted.score
        if one.signature:
            signatures[name] = one.signature
    spoken = [row for row in rows if row.duration is not None]
    if spoken:
        answer["silent"] = sum(bool(row.silent) for row in spoken)
        answer["clipped"] = sum(bool(row.clipped) for row in spoken)
    if care.lists:
        _note_words(rows, care.lists)
    if care.speakers:
        _note_contents(rows, texts)
    for name, one in {**_of_words(rows, care.lists), **_of_speakers(texts)}.items():
        tables[name], answer[name], signatures[name] = one.counted, one.counted.score, one.signature

    scores = dict(zip(tables, bootstrap(tables.values()), strict=True))
    intervals: dict[str, list[float | None]] = {name: list(interval(found)) for name, found in scores.items()}
    ceiling = texts.get("asr_bleu_ceiling")
    for name, ratio in (("asr_bleu", "asr_bleu_ratio"), ("asr_bleu_resynthesis", "resynthesis_ratio")):
        if ceiling is not None and name in texts and texts[name].rows == ceiling.rows:
            pair = comparison(tables[name], tables["asr_bleu_ceiling"], scores[name], scores["asr_bleu_ceiling"])
            answer[ratio] = pair["ratio"]
            intervals[ratio] = [pair["ratio_low"], pair["ratio_high"]]
    if care.speakers and (main := _main(texts)) is not None and all(row.content for row in main.rows):
        found = across_speakers(main.hypotheses, main.references, [row.content or "" for row in main.rows])
        signatures["coef_var_ms"] = main.prefix + found.pop("signature")
        answer |= {name: value for name, value in found.items() if value is not None}
    answer = {**answer, "intervals": intervals, "signatures": signatures}
    return answer | ({"gaps": _gaps(texts, care)} if care.labels else {})


def _main(texts: Mapping[str, _Text]) -> _Text | None:
    """What the model itself wrote, beside its references."""
    return next((texts[name] for name in ("bleu", "wer", "cer") if name in texts), None)


def _note_contents(rows: Sequence[Scored], texts: Mapping[str, _Text]) -> None:
    main = _main(texts)
    if main is not None and all(row.src_text.strip() for row in main.rows):
        for row in main.rows:
            row.content = content_of(row.src_text)


def _of_speakers(texts: Mapping[str, _Text]) -> dict[str, Measured]:
    """How far quality varies with who says the same: a mean over contents."""
    main = _main(texts)
    if main is None or not all(row.content for row in main.rows):
        return {}
    contents = [row.content or "" for row in main.rows]
    ratios = coefficients_of_variation(main.hypotheses, main.references, contents)
    if not ratios:
        return {}
    mean = Mean("coef_var_ms", main.prefix + coef_var_signature(), higher_is_better=False)
    return {mean.name: Measured(list(ratios), mean.counted(list(ratios.values())), mean.signature)}


_TOXIC = {"added_toxicity": "hypothesis", "asr_added_toxicity": "heard"}


def _note_words(rows: Sequence[Scored], lists: Sequence[WordList]) -> None:
    """Say of each row which words of a list it has and its source has not, in text and in what was heard."""
    for row in rows:
        for output in (getattr(row, said_as) for said_as in _TOXIC.values()):
            words = None if output is None else added_toxicity(lists, row.src_lang, row.src_text, row.tgt_lang, output)
            if words is not None:
                row.toxic = sorted({*(row.toxic or []), *words})


def _of_words(rows: Sequence[Scored], lists: Sequence[WordList]) -> dict[str, Measured]:
    """Percentages of outputs with words that their sources have not, of text and of what was heard."""
    own = list_of(lists, rows[0].tgt_lang)
    if own is None:
        return {}
    found: dict[str, Measured] = {}
    for name, said_as in _TOXIC.items():
        judged = [row for row in rows if row.toxic is not None and getattr(row, said_as) is not None]
        if judged:
            mean = Mean(name, own.signature, higher_is_better=False)
            values = [100.0 * bool({*own.find(getattr(row, said_as))} & {*(row.toxic or ())}) for row in judged]
            found[name] = Measured([row.id for row in judged], mean.counted(values), mean.signature)
    return found


def _gaps(texts: Mapping[str, _Text], care: Care) -> dict[str, dict[str, Any]]:
    gaps: dict[str, dict[str, Any]] = {}
    for label, values in care.labels.items():
        gaps[label] = {}
        for name, text in texts.items():
            if name in ("bleu", "chrf", "wer", "cer", "asr_bleu", "asr_wer"):
                labels = [values.get(row.id, "(none)") for row in text.rows]
                gap = gap_between_groups(text.metric, text.hypotheses, text.references, labels)
                gaps[label][name] = {**gap, "signature": text.signature}
    return gaps


def compare_rows(rows: Sequence[Scored], plain: Sequence[Scored], recogniser: str | None = None) -> dict[str, Any]:
    """The same utterances of one task in two conditions: what a condition costs.

    Args:
        rows: in the condition; plain: without it. What one side alone has is left out.

    Returns:
        Score -> plain dict: `score`, `plain`, `difference`, and where there is one direction alone `low`, `high` (95 %)
        and `p_value` of a paired bootstrap. Of several directions all are means over them.
    """
    ids = {row.id for row in rows} & {row.id for row in plain}
    directions: defaultdict[str, tuple[list[Scored], list[Scored]]] = defaultdict(lambda: ([], []))
    for place, side in enumerate((rows, plain)):
        for row in sorted((row for row in side if row.id in ids), key=lambda row: row.id):
            directions[row.direction][place].append(row)
    parts = []
    for ours, theirs in directions.values():
        found = [_texts(side, recogniser) for side in (ours, theirs)]
        part: dict[str, dict[str, Any]] = {}
        for name in found[0].keys() & found[1].keys():
            one, other = (side[name] for side in found)
            if [row.id for row in one.rows] == [row.id for row in other.rows]:
                tables = [Counted.of(text.metric, text.hypotheses, text.references) for text in (one, other)]
                in_noise, in_quiet = tables
                pair = comparison(in_noise, in_quiet, *bootstrap(tables))
                part[name] = {key: pair[key] for key in ("score", "difference", "low", "high", "p_value")}
                part[name]["plain"] = pair["baseline"]
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    names = set.intersection(*(set(part) for part in parts)) if parts else set()
    keys = ("score", "plain", "difference")
    return {name: {key: fmean(part[name][key] for part in parts) for key in keys} for name in sorted(names)}
