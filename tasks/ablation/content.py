"""What a page of results says, as plain values: tables, curves, groups, examples, clips."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...components.errors import UserError
from ...components.languages import is_spaceless
from ...components.lines import open_text
from ...datamodules.manifest import paths_of, scan_manifest
from ..scoring.counted import Counted
from ..scoring.evaluation import Scored
from ..scoring.outputs import read_rows
from ..scoring.significance import RESAMPLES
from .differences import differences
from .groups import Field, fields_of, score_groups
from .results import Run, Tables
from .table import cells, cost_cells, explanation, label, shown_scores

CLIPS = 12
"""Utterances that can be heard, unless another number is asked for."""

_OF_SENTENCES = ("chrf", "wer", "cer", "asr_wer", "speaker_similarity", "dnsmos", "f0_correlation", "unit_exact")
"""Scores that say something of a single utterance."""


@dataclass(frozen=True)
class Known:
    """What a manifest says of utterances.

    Attributes:
        rows: id -> its row, as written.
        source, target: id -> file of the speech, or a part of one (`datamodules.segments`).
        notes: what could not be read.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_known(manifest: str | list[str] | None) -> Known:
    """The rows of a manifest and where their speech is; nothing of one that is gone."""
    known = Known()
    if manifest is None:
        return known
    paths = paths_of(manifest)
    try:
        for path in paths:
            with open_text(path):
                known.rows.update({row["id"]: row for row in read_rows(str(path)).rows})
        for row in scan_manifest(paths).utterances:
            if row.audio:
                known.source[row.id] = row.audio
            if row.tgt_audio:
                known.target[row.id] = row.tgt_audio
    except (UserError, OSError) as error:
        known.notes.append(f"fields of the manifest are left out: {' '.join(str(error).split())}")
    return known


@dataclass(frozen=True)
class Examples:
    """What systems made of the same utterances.

    Attributes:
        rows: one for each utterance that at least one system has, in the order of the first system.
        systems: name -> id -> its row; of several seeds those of the first.
        runs: name -> the run that they are of.
    """

    rows: list[Scored]
    systems: dict[str, dict[str, Scored]]
    runs: dict[str, Run]


def examples_of(runs: Mapping[str, Sequence[Run]]) -> Examples:
    """The rows that are compared, side by side."""
    rows: dict[str, Scored] = {}
    systems: dict[str, dict[str, Scored]] = {}
    chosen: dict[str, Run] = {}
    for system, own in runs.items():
        run = next((run for run in own if run.rows), None)
        if run is not None:
            chosen[system] = run
            systems[system] = {row.id: row for row in run.rows if row.task == run.task}
            for name, row in systems[system].items():
                rows.setdefault(name, row)
    return Examples([*rows.values()], systems, chosen)


def content_of(
    title: str,
    runs: Mapping[str, Sequence[Run]],
    results: Mapping[str, Any],
    tables: Tables,
    *,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    known: Known | None = None,
    clips: int = CLIPS,
) -> dict[str, Any]:
    """All that a page shows: what the template writes, and under `data` what the script reads.

    Args:
        title: of the page.
        runs: system -> its runs.
        results: of `results.compare`.
        tables: of `results.tables_of`.
        costs: system -> what was measured of time and memory.
        known: what a manifest says of the utterances.
        clips: utterances that can be heard, if they have audio.
    """
    known = known or Known()
    examples = examples_of(runs)
    fields, single = fields_of(examples.rows, known.rows)
    notes = [*known.notes]
    if single:
        notes.append(f"no groups of {', '.join(single)}: nearly each utterance has a value of its own")
    names = [name for name in shown_scores(results) if name in tables and _is_of_groups(name)]
    heard, unheard = _clips(examples, known, clips)
    if unheard:
        notes.append(f"{len(unheard)} clips could not be read; the first: {unheard[0]}")
    systems = [{"name": name, "run": run.seed and f"seed={run.seed}"} for name, run in examples.runs.items()]
    data = {
        "title": title,
        "systems": systems,
        "base": next((place for place, one in enumerate(systems) if one["name"] == results["base"]), 0),
        **_texts(examples, known),
        "scores": _sentence_scores(examples, tables),
        "fields": [
            {"name": one.name, "labels": one.labels, "of": [one.of[row.id] for row in examples.rows]} for one in fields
        ],
        "groups": [_groups(tables, names, one, [*examples.runs]) for one in fields],
        "groupScores": [_score(name, tables) for name in names],
        "curves": [*_curves(runs)],
        "clips": heard,
    }
    return {
        "title": title,
        "table": cells(results),
        "explanation": explanation(results),
        "differences": differences(runs),
        "costs": cost_cells(costs) if costs else ([], []),
        "notes": notes,
        "resamples": RESAMPLES,
        "data": _finite(data),
    }


def _is_of_groups(name: str) -> bool:
    """Whether groups of utterances have a score: not once more in each condition, nor where it is of whole contents."""
    return " in " not in name and name != "coef_var_ms"


def _texts(examples: Examples, known: Known) -> dict[str, Any]:
    """Columns of the examples; those that are empty are left out."""
    rows = examples.rows
    columns: dict[str, Any] = {
        "ids": [row.id for row in rows],
        "references": [row.references or row.reference for row in rows],
        "source": [row.src_text or str(known.rows.get(row.id, {}).get("src_text") or "") for row in rows],
        "letters": [int(is_spaceless(row.tgt_lang)) for row in rows],
    }
    own = examples.systems.values()
    for name, of in (("texts", "hypothesis"), ("heard", "heard")):
        columns[name] = [[getattr(found.get(row.id), of, None) for row in rows] for found in own]
        if not any(text is not None for column in columns[name] for text in column):
            columns[name] = []
    for name in ("source", "letters"):
        if not any(columns[name]):
            columns[name] = []
    return columns


def _score(name: str, tables: Tables) -> dict[str, Any]:
    metric = _metric(name, tables)
    return {"name": name, "label": label(name), "higher": metric.higher_is_better}


def _metric(name: str, tables: Tables) -> Any:
    shared = next(iter(tables[name].values()))
    return next(iter(shared.systems.values()))[0].metric


def _sentence_scores(examples: Examples, tables: Tables) -> list[dict[str, Any]]:
    """Scores of single utterances: for each a column for each system."""
    found = []
    for name in _OF_SENTENCES:
        if name not in tables:
            continue
        values: dict[str, dict[str, float]] = {system: {} for system in examples.systems}
        for shared in tables[name].values():
            for system, own in shared.systems.items():
                values[system].update(zip(shared.ids, _each(own[0]), strict=True))  # of the run that is shown
        columns = [[values[system].get(row.id) for row in examples.rows] for system in examples.systems]
        found.append({**_score(name, tables), "of": columns})
    return found


def _each(table: Counted) -> list[float]:
    """The score of each utterance alone."""
    metric = table.metric
    scores = metric.scores(table.statistics.astype(metric.precision))
    return [round(float(score), 2 if abs(score) >= 1.5 else 4) for score in np.asarray(scores, np.float64)]


def _groups(tables: Tables, names: Sequence[str], one: Field, systems: Sequence[str]) -> dict[str, Any]:
    groups = score_groups(tables, names, one)
    return {
        "name": one.name,
        "ordered": one.ordered,
        "groups": [
            {
                "label": called,
                "count": group["count"],
                "scores": {
                    name: [
                        [round(number, 3) for number in own[system]] if system in own else None for system in systems
                    ]
                    for name, own in group["scores"].items()
                },
            }
            for called, group in zip(one.labels, groups, strict=True)
            if group["count"]
        ],
    }


def _curves(runs: Mapping[str, Sequence[Run]]) -> Iterator[dict[str, Any]]:
    """Metrics of the validations, for each training of several stages: a line for each run."""
    named = {
        (stage, name): None
        for own in runs.values()
        for run in own
        for stage, points in run.curves.items()
        for point in points
        for name in point
        if name != "step"
    }
    for stage, name in named:
        lines = []
        for place, (system, own) in enumerate(runs.items()):
            for run in own:
                points = [[point["step"], point[name]] for point in run.curves.get(stage, ()) if name in point]
                if points:
                    lines.append({"system": place, "name": system, "seed": run.seed, "points": points})
        yield {"stage": stage, "name": name, "lines": lines}


def _clips(examples: Examples, known: Known, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What can be heard of some utterances, and what could not be read.

    The utterances are those of the smallest hashes of their ids: as good as drawn, and the same in each page.
    """
    from .sounds import clip_of  # reads torch, for pages that have sound

    there = [(place, row) for place, row in enumerate(examples.rows) if _speaks(examples, row.id)]
    there = there or [(place, row) for place, row in enumerate(examples.rows) if _source(examples, known, row.id)]
    there.sort(key=lambda one: hashlib.sha256(one[1].id.encode(errors="surrogatepass")).digest())
    found: list[dict[str, Any]] = []
    faults: list[str] = []

    def clip(path: str | Path | None) -> dict[str, Any] | None:
        if path is None:
            return None
        try:
            return clip_of(path)
        except (UserError, OSError) as error:
            faults.append(" ".join(str(error).split()))
            return None

    for place, row in sorted(there[:most]):
        one = {
            "row": place,
            "source": clip(_source(examples, known, row.id)),
            "target": clip(known.target.get(row.id)),
            "systems": [clip(_output(examples, system, row.id)) for system in examples.systems],
        }
        if any((one["source"], one["target"], *one["systems"])):
            found.append(one)
    return found, faults


def _speaks(examples: Examples, name: str) -> bool:
    return any(_output(examples, system, name) is not None for system in examples.systems)


def _output(examples: Examples, system: str, name: str) -> Path | None:
    row, folder = examples.systems[system].get(name), examples.runs[system].folder
    return folder / row.audio if row is not None and row.audio and folder is not None else None


def _source(examples: Examples, known: Known, name: str) -> str | None:
    rows = (own.get(name) for own in examples.systems.values())
    return next((row.source_audio for row in rows if row is not None and row.source_audio), known.source.get(name))


def _finite(value: Any) -> Any:
    """Numbers that JSON has; the others are null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
