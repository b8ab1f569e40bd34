"""What a manifest holds, in numbers and pictures: hours, lengths, languages, speakers, texts.

By whole columns, so that a million rows take little memory. Letters: N rows.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..components.languages import is_spaceless
from .manifest import Paths
from .rows import Rows, open_rows

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the rows that are not longer than what is said."""


@dataclass(frozen=True)
class Group:
    """Some rows.

    Attributes:
        name: languages, or a split.
        rows: how many.
        hours: of source speech, of those that say their length.
        unsaid: rows with audio that do not say their length.
        speakers: how many labels.
        target_speech, source_text, target_text: rows that have it.
        source_words, target_words: in their texts; characters where a language is written without spaces.
    """

    name: str
    rows: int
    hours: float
    unsaid: int
    speakers: int
    target_speech: int
    source_text: int
    target_text: int
    source_words: int
    target_words: int


@dataclass(frozen=True)
class Statistics:
    """What a manifest holds.

    Attributes:
        whole: all of it.
        languages: `spa-eng`, or `spa` where there is no target.
        splits: as rows name them, where they do.
        seconds, characters_a_second: at each of `SHARES`; [] where nothing is known.
        recordings: of the source side.
        largest_speaker: share of the rows that say a speaker.
        durations, rates: (n,) seconds and characters a second, for pictures.
    """

    whole: Group
    languages: list[Group]
    splits: list[Group]
    seconds: list[float]
    characters_a_second: list[float]
    recordings: int
    largest_speaker: float
    durations: np.ndarray
    rates: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what pictures are made of."""
        found = asdict(self)
        return {key: value for key, value in found.items() if key not in ("durations", "rates")}


def statistics(manifest: Paths) -> Statistics:
    """Count a manifest, or several as one. Raises UserError where it is faulty."""
    with tempfile.TemporaryDirectory() as folder:
        rows = open_rows(manifest, folder)
        return _statistics(rows)


def _statistics(rows: Rows) -> Statistics:
    seconds = rows.durations()
    speaker, names = rows.codes("speaker")
    speaker = np.where(speaker == 0, -1, speaker) if names[:1] == [""] else speaker
    words = {key: _words(rows, key) for key in ("src", "tgt")}
    columns = _Columns(
        seconds, rows.has("audio"), speaker, rows.has("tgt_audio"), rows.has("src_text"), rows.has("tgt_text"),
        words["src"], words["tgt"],
    )  # fmt: skip
    source, source_names = rows.codes("src_lang")
    target, target_names = rows.codes("tgt_lang")
    pairs, pair = np.unique(source * len(target_names) + target, return_inverse=True)
    called = [
        (source_names[int(one) // len(target_names)], target_names[int(one) % len(target_names)]) for one in pairs
    ]
    languages = [columns.of("-".join(filter(None, two)), pair == number) for number, two in enumerate(called)]
    split, split_names = rows.codes("split")
    splits = [columns.of(name, split == number) for number, name in enumerate(split_names) if name]
    known = seconds[~np.isnan(seconds)]
    spoken = ~np.isnan(seconds) & rows.has("src_text")
    rates = rows.characters("src_text")[spoken] / seconds[spoken]
    told = speaker[speaker >= 0]
    return Statistics(
        columns.of("all", np.ones(len(rows), bool)),
        sorted(languages, key=lambda group: -group.rows),
        splits,
        [round(float(one), 3) for one in np.quantile(known, SHARES)] if len(known) else [],
        [round(float(one), 2) for one in np.quantile(rates, SHARES)] if len(rates) else [],
        len(np.unique(rows.recordings())) - bool((~rows.has("audio")).any()),
        round(float(np.bincount(told).max() / len(told)), 4) if len(told) else 0.0,
        known,
        rates,
    )


@dataclass(frozen=True)
class _Columns:
    seconds: np.ndarray
    audio: np.ndarray
    speaker: np.ndarray
    target_speech: np.ndarray
    source_text: np.ndarray
    target_text: np.ndarray
    source_words: np.ndarray
    target_words: np.ndarray

    def of(self, name: str, these: np.ndarray) -> Group:
        unsaid = np.isnan(self.seconds)
        return Group(
            name,
            int(these.sum()),
            round(float(self.seconds[these & ~unsaid].sum()) / 3600, 4),
            int((these & unsaid & self.audio).sum()),
            len(np.unique(self.speaker[these & (self.speaker >= 0)])),
            *(int(column[these].sum()) for column in (self.target_speech, self.source_text, self.target_text)),
            *(int(column[these].sum()) for column in (self.source_words, self.target_words)),
        )


def _words(rows: Rows, side: str) -> np.ndarray:
    """(N,) words of a side; characters where its language is written without spaces."""
    codes, names = rows.codes(f"{side}_lang")
    spaceless = np.array([bool(name) and is_spaceless(name) for name in names])[codes]
    texts = rows.texts(f"{side}_text")
    return np.fromiter(
        (len("".join(text.split())) if alone else len(text.split()) for text, alone in zip(texts, spaceless)),
        np.int64,
        len(rows),
    )


def write_pictures(found: Statistics, folder: Path) -> list[Path]:
    """Lengths, speed of speech, and languages as SVG files in a folder; those that there is something to show of."""
    from matplotlib.figure import Figure  # half a second

    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def save(figure: Figure, name: str) -> None:
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        made.append(folder / f"{name}.svg")

    for name, values, label in (
        ("lengths", found.durations, "seconds of an utterance"),
        ("rates", found.rates, "characters a second"),
    ):
        if len(values):
            figure = Figure(figsize=(6, 3))
            axes = figure.subplots()
            axes.hist(values, bins=50)
            axes.set(xlabel=label, ylabel="utterances")
            save(figure, name)
    shown = found.languages[:30]
    figure = Figure(figsize=(6, 1 + 0.25 * len(shown)))
    axes = figure.subplots()
    hours = any(group.hours for group in shown)
    axes.barh([group.name for group in shown], [group.hours if hours else group.rows for group in shown])
    axes.invert_yaxis()
    axes.set(xlabel="hours" if hours else "utterances")
    save(figure, "languages")
    return made
