"""Scores of groups of utterances: by length, language, speaker and any field of the manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...components.languages import is_spaceless
from ..scoring.counted import first_of
from ..scoring.evaluation import Scored
from ..scoring.significance import compare_systems
from .results import Shared, Tables, joined

LENGTH = "reference length"
"""The field of how many words, or letters where words have no spaces, a reference has."""

_MOST = 24  # groups of a field; the smaller ones are one
_BINS = 6
_REST = "(others)"
_NONE = "(none)"
_TEXTS = frozenset(
    (
        "id", "utt_id", "audio", "tgt_audio", "source_audio", "offset", "channel", "src_text", "tgt_text", "text",
        "translation", "hypothesis", "reference", "references", "heard", "heard_reference", "heard_resynthesis",
        "heard_own", "units", "reference_units", "quality", "silent", "clipped", "toxic", "lang", "task", "split",
        "score",
    )
)  # fmt: skip
"""Keys of rows that make no groups."""


@dataclass(frozen=True)
class Field:
    """A field by which utterances are grouped.

    Attributes:
        labels: names of the groups, in order.
        of: id -> place of its label.
        ordered: whether the groups are stretches of numbers.
    """

    name: str
    labels: list[str]
    of: dict[str, int]
    ordered: bool


def fields_of(rows: Sequence[Scored], known: Mapping[str, Mapping[str, Any]]) -> tuple[list[Field], list[str]]:
    """Fields that tell utterances apart, and names of those of which each utterance has a value of its own.

    Args:
        rows: one for each utterance.
        known: id -> its row in a manifest, as far as there is one.
    """
    columns: dict[str, dict[str, Any]] = {LENGTH: {row.id: _length(row) for row in rows if row.reference}}
    columns["direction"] = {row.id: row.direction for row in rows if row.src_lang}
    columns["speaker"] = {row.id: row.speaker for row in rows if row.speaker is not None}
    columns["target seconds"] = {row.id: row.reference_duration for row in rows if row.reference_duration is not None}
    names = dict.fromkeys(key for row in rows for key in known.get(row.id, ()) if key not in _TEXTS)
    for name in names:
        columns[name] = {row.id: known[row.id].get(name) for row in rows if row.id in known}
    fields: list[Field] = []
    single: list[str] = []
    for name, values in columns.items():
        found = _field(name, {row.id: values.get(row.id) for row in rows})
        if isinstance(found, Field):
            if not any(found.of == other.of for other in fields):  # as src_lang, where all have one target
                fields.append(found)
        elif found:
            single.append(name)
    return fields, single


def _length(row: Scored) -> int:
    text = first_of(row.said())
    return len("".join(text.split())) if is_spaceless(row.tgt_lang) else len(text.split())


def _field(name: str, values: Mapping[str, Any]) -> Field | bool:
    """A field; else whether (nearly) each utterance has a value of its own."""
    there = {key: value for key, value in values.items() if value not in (None, "") and not isinstance(value, dict)}
    distinct = {str(value) for value in there.values()}
    if not distinct or len(distinct) + (len(there) < len(values)) < 2:
        return False
    numbers = {key: number for key, value in there.items() if (number := _number(value)) is not None}
    if len(numbers) == len(there) and len(distinct) > _BINS:
        return _stretches(name, values, numbers)
    if len(distinct) > _MOST and len(distinct) > len(there) / 2:
        return True
    texts = {key: str(value) if value not in (None, "") else _NONE for key, value in values.items()}
    counts = Counter(texts.values())
    kept = sorted(counts, key=lambda text: (-counts[text], text))
    if len(kept) > _MOST:
        kept = kept[: _MOST - 1]
        texts = {key: text if text in kept else _REST for key, text in texts.items()}
    labels = sorted({*texts.values()} - {_REST, _NONE}, key=_natural)
    labels += [name for name in (_REST, _NONE) if name in texts.values()]
    places = {label: place for place, label in enumerate(labels)}
    return Field(name, labels, {key: places[text] for key, text in texts.items()}, False)


def _stretches(name: str, values: Mapping[str, Any], numbers: Mapping[str, float]) -> Field:
    """Groups of about as many utterances each, of numbers that lie side by side."""
    there = np.asarray([*numbers.values()])
    edges = np.unique(np.quantile(there, np.linspace(0, 1, _BINS + 1)[1:-1]))
    placed = {key: int(np.searchsorted(edges, number, side="left")) for key, number in numbers.items()}
    used = sorted({*placed.values()})
    labels = []
    for place in used:
        own = [number for key, number in numbers.items() if placed[key] == place]
        low, high = (f"{round(number, 2):.10g}" for number in (min(own), max(own)))
        labels.append(low if low == high else f"{low} to {high}")
    if len(numbers) < len(values):
        labels.append(_NONE)
    of = {key: used.index(placed[key]) if key in placed else len(used) for key in values}
    return Field(name, labels, of, True)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _natural(text: str) -> tuple[int, float, str]:
    number = _number(text)
    return (1, 0.0, text) if number is None else (0, number, text)


def score_groups(tables: Tables, names: Sequence[str], field: Field) -> list[dict[str, Any]]:
    """The scores of each group of a field.

    Args:
        tables: of the systems.
        names: of the scores.

    Returns:
        For each label: `count` of utterances, and `scores`: name -> system -> [score, low, high] (95 %); a group of
        which a score counts nothing has none.
    """
    groups: list[dict[str, Any]] = []
    of = field.of
    for place in range(len(field.labels)):
        scores: dict[str, dict[str, list[float]]] = {}
        count = 0
        for name in names:
            parts = [_part(shared, [at for at, key in enumerate(shared.ids) if of.get(key) == place])
                     for shared in tables.get(name, {}).values()]  # fmt: skip
            parts = [part for part in parts if part.ids]
            if parts:
                found = compare_systems(joined(parts), trials=0)
                scores[name] = {system: [one["score"], one["low"], one["high"]] for system, one in found.items()}
                count = max(count, sum(len(part.ids) for part in parts))
        groups.append({"count": count, "scores": scores})
    return groups


def _part(shared: Shared, places: Sequence[int]) -> Shared:
    if not places:
        return Shared([], {})
    systems = {name: [table.at(places) for table in own] for name, own in shared.systems.items()}
    return Shared([shared.ids[place] for place in places], systems)
