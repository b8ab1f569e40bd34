"""What came of the points of an ablation, row by row: scores over seeds, what differs from the base, what it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...components.errors import UserError
from ...components.lines import open_text, parse_json, raw_lines, read_json
from ..runs.folder import result_of
from ..scoring.care import WordList
from ..scoring.counted import Counted, Summed
from ..scoring.evaluation import Measured, Scored, measure
from ..scoring.significance import compare_systems

_FIELDS = {one.name for one in fields(Scored)}


@dataclass
class Run:
    """One trained and scored point, or a system of elsewhere.

    Attributes:
        seed: "" where that is not swept.
        rows: of its hypotheses file; none where nothing was scored.
        conditions: name -> rows of the file of that, where source speech was served in noise or through a codec.
        answer: what `voxzoo evaluate` answered, {} likewise.
        facts: numbers of its training: `parameters`, `trainable`, `steps`, `audio_hours`.
        costs: what was measured of time and memory.
        error: why there is nothing of it.
        folder: where the file of its hypotheses lies, on which paths of audio build.
        config: path of its config.
        curves: name of a training ("" of the only one) -> what each validation measured (`training.curve`).
    """

    name: str
    seed: str = ""
    rows: list[Scored] = field(default_factory=list)
    conditions: dict[str, list[Scored]] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    folder: Path | None = None
    config: Path | None = None
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The one that is compared: the first of its answer or of its rows."""
        return next(iter(self.answer.get("tasks", {})), self.rows[0].task if self.rows else "")


class Averaged(Summed):
    """The mean over directions of a score, of statistics that stand in blocks side by side, one for each direction.

    Args:
        parts: the scores of the directions, with their numbers of statistics.
    """

    def __init__(self, parts: Sequence[tuple[Summed, int]]) -> None:
        self._parts = list(parts)
        first = parts[0][0]
        self.name, self.higher_is_better, self.precision = first.name, first.higher_is_better, first.precision

    @property
    def signature(self) -> str:
        lines = dict.fromkeys(part.signature for part, _ in self._parts)
        return f"mean over {len(self._parts)} directions|{'|'.join(lines)}"

    def _blocks(self, totals: np.ndarray) -> list[tuple[Summed, np.ndarray]]:
        ends = np.cumsum([width for _, width in self._parts])
        return list(zip((part for part, _ in self._parts), np.split(totals, ends[:-1], axis=-1), strict=True))

    def score(self, total: np.ndarray) -> float:
        return fmean(part.score(block) for part, block in self._blocks(total))

    def scores(self, totals: np.ndarray) -> np.ndarray:
        return np.mean([part.scores(block) for part, block in self._blocks(totals)], axis=0)


def read_hypotheses(path: Path) -> list[Scored]:
    """Rows of a file that `voxzoo evaluate` wrote.

    Raises:
        UserError: a line that is none of them, or two of one id and task.
    """
    rows: list[Scored] = []
    seen: set[tuple[str, str]] = set()
    with open_text(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                content = parse_json(line)
                row = Scored(**{name: value for name, value in content.items() if name in _FIELDS})
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: no line of a hypotheses file: {error}") from None
            if (row.id, row.task) in seen:
                raise UserError(f"{path}, line {number}: {row.id!r} stands twice")
            seen.add((row.id, row.task))
            rows.append(row)
    return rows


def facts_of(results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """What is known of the trainings of a point, of which the last is what it stands for, and the metrics of that.

    Args:
        results: what each training answered when it ended.
    """
    if not results:
        return {}, {}
    last = results[-1]
    facts = {name: last[name] for name in ("parameters", "trainable") if name in last}
    facts["steps"] = sum(one.get("steps", 0) for one in results)
    heard = [one["audio_seconds"] for one in results if "audio_seconds" in one]
    if heard:
        facts["audio_hours"] = round(sum(heard) / 3600, 2)
    return facts, {name: value for name, value in last.get("metrics", {}).items() if name.startswith("valid/")}


@dataclass(frozen=True)
class Shared:
    """What systems have in common in one direction: tables of the same utterances.

    Attributes:
        ids: of the N utterances.
        systems: name -> a table for each run.
    """

    ids: list[str]
    systems: dict[str, list[Counted]]


Tables = dict[str, dict[str, Shared]]
"""Score -> direction -> what systems share."""


def tables_of(runs: Mapping[str, Sequence[Run]], lists: Sequence[WordList] = ()) -> Tables:
    """Tables of each score, of the utterances that all systems have. Scores in a condition are called `bleu in white 0
    dB`.

    Args:
        runs: system -> its runs, one a seed; those without rows are left out.
        lists: of words that were asked for.
    """
    measured: dict[str, list[dict[str, dict[str, Measured]]]] = {}
    for system, own in runs.items():
        found = [_by_direction(run, lists) for run in own if run.rows]
        if found:
            measured[system] = found
    names = dict.fromkeys(name for own in measured.values() for one in own for name in one)
    tables: Tables = {}
    for name in names:
        with_it = {system: [one[name] for one in own if name in one] for system, own in measured.items()}
        with_it = {system: own for system, own in with_it.items() if own}
        directions = [set(one) for own in with_it.values() for one in own]
        shared = sorted(set.intersection(*directions)) if directions else []
        if not shared:
            continue
        ids = {
            direction: _common([one[direction].ids for own in with_it.values() for one in own]) for direction in shared
        }
        if all(ids.values()):
            tables[name] = {
                direction: Shared(
                    ids[direction],
                    {system: [_at(one[direction], ids[direction]) for one in own] for system, own in with_it.items()},
                )
                for direction in shared
            }
    return tables


def joined(parts: Sequence[Shared]) -> dict[str, list[Counted]]:
    """System -> a table for each run, of several directions side by side."""
    systems = {system: len(own) for system, own in parts[0].systems.items()}
    return {
        system: [_joined([part.systems[system][place] for part in parts]) for place in range(count)]
        for system, count in systems.items()
    }


def _by_direction(run: Run, lists: Sequence[WordList]) -> dict[str, dict[str, Measured]]:
    """Score -> direction -> table, of the first task of a run, and of the words of its recognition."""
    tasks = list(run.answer.get("tasks", {})) or list(dict.fromkeys(row.task for row in run.rows))
    found: dict[str, dict[str, Measured]] = {}
    for task in tasks:
        scores = run.answer.get("tasks", {}).get(task, {})
        quality = {
            name: line
            for name, line in scores.get("signatures", {}).items()
            if any(row.quality is not None and name in row.quality for row in run.rows)
        }
        for condition, all_rows in {"": run.rows, **run.conditions}.items():
            for direction, rows in _directions([row for row in all_rows if row.task == task]):
                for name, one in measure(rows, run.answer.get("recogniser"), quality, lists).items():
                    if task == tasks[0] or (task == "asr" and name in ("wer", "cer")):
                        found.setdefault(f"{name} in {condition}" if condition else name, {})[direction] = one
    return found


def _directions(rows: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    groups: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        groups[row.direction].append(row)
    return sorted(groups.items())


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """Ids that are in all lists, in the order of the first."""
    shared = set(lists[0]).intersection(*lists[1:])
    return [name for name in lists[0] if name in shared]


def _at(one: Measured, ids: Sequence[str]) -> Counted:
    if one.ids == ids:  # a mean of them all is exact
        return one.counted
    places = {name: place for place, name in enumerate(one.ids)}
    return one.counted.at([places[name] for name in ids])


def _joined(parts: Sequence[Counted]) -> Counted:
    """One table of several directions."""
    if len(parts) == 1:
        return parts[0]
    rows, width = sum(len(part.statistics) for part in parts), sum(part.statistics.shape[1] for part in parts)
    statistics = np.zeros((rows, width), np.int64)
    row = column = 0
    for part in parts:
        count, size = part.statistics.shape
        statistics[row : row + count, column : column + size] = part.statistics
        row, column = row + count, column + size
    return Counted.sum(Averaged([(part.metric, part.statistics.shape[1]) for part in parts]), statistics)


SHOWN = (
    "bleu", "chrf", "wer", "cer", "asr_bleu", "asr_wer", "speaker_similarity", "dnsmos", "f0_correlation",
    "coef_var_ms", "added_toxicity", "asr_added_toxicity",
)  # fmt: skip
"""Scores of the table, in its order; the rest is in the JSON."""

IN_CONDITIONS = ("bleu", "wer", "cer", "asr_bleu")
"""Those that the table has once more for each condition."""


def compare(
    runs: Mapping[str, Sequence[Run]], base: str, lists: Sequence[WordList] = (), tables: Tables | None = None
) -> dict[str, Any]:
    """The rows of a table.

    Args:
        runs: system -> its runs.
        base: the system that the others are compared with; where nothing came of it, they stand alone.
        lists: as for `tables_of`.
        tables: of the runs, where they are known.

    Returns:
        Plain dict: `base`, `scores` (name -> `signature`, `higher_is_better`, `num_utterances`, `systems`: name -> what
        `significance.compare_systems` says), `systems` (name -> `seeds`, `facts`, `failed`: name -> why), `notes`.
    """
    scores: dict[str, Any] = {}
    notes: list[str] = []
    for name, parts in (tables_of(runs, lists) if tables is None else tables).items():
        systems = joined([*parts.values()])
        metric = next(iter(systems.values()))[0]
        compared = compare_systems(systems, base if base in systems else None)
        scores[name] = {
            "signature": _signature(runs, name) + metric.metric.signature,
            "higher_is_better": metric.metric.higher_is_better,
            "num_utterances": len(metric.statistics),
            "systems": compared,
        }
    for name in _of_training(runs) if not scores else ():
        scores[name] = _plain(runs, name)
    systems = {}
    for system, own in runs.items():
        sound = [run for run in own if run.error is None]
        systems[system] = {
            "seeds": [run.seed for run in sound if run.seed],
            "facts": _means([run.facts for run in sound]),
            "failed": {run.seed or system: run.error for run in own if run.error is not None},
        }
        if sound and len(sound) < len(own):
            notes.append(f"{system}: {len(own) - len(sound)} of {len(own)} seeds failed; the rest is what is shown")
        notes += [f"{run.name}: {count} utterances were not served" for run in sound if (count := _dropped(run))]
    return {"base": base, "scores": scores, "systems": systems, "notes": notes}


def _signature(runs: Mapping[str, Sequence[Run]], score: str) -> str:
    """What a condition adds to the signature of a score in it."""
    conditions = [run.answer.get("conditions", {}) for own in runs.values() for run in own]
    _, within, name = score.partition(" in ")
    return next((f"{one[name]['signature']}|" for one in conditions if within and name in one), "")


def _dropped(run: Run) -> int:
    return int(run.answer.get("num_dropped", 0))


def _of_training(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Names of what every run measured in its last validation."""
    found = [set(run.metrics) for own in runs.values() for run in own if run.error is None]
    return sorted(set.intersection(*found)) if found else []


def _plain(runs: Mapping[str, Sequence[Run]], name: str) -> dict[str, Any]:
    """A number of the validation: without utterances there is nothing to resample."""
    values = {system: [run.metrics[name] for run in own if run.error is None] for system, own in runs.items()}
    systems = {
        system: {
            "score": fmean(own),
            "num_runs": len(own),
            "spread": float(np.std(own, ddof=1)) if len(own) > 1 else None,
        }
        for system, own in values.items()
        if own
    }
    return {"signature": "of the last validation", "higher_is_better": None, "num_utterances": 0, "systems": systems}


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    means = {name: fmean(part[name] for part in parts if name in part) for name in names}
    return {name: int(value) if float(value).is_integer() else value for name, value in means.items()}


def read_run(name: str, split: str, scores: Path, trainings: Mapping[str, Path], seed: str = "") -> Run:
    """A point that was trained, and scored where its file is there.

    Args:
        scores: folder of what `voxzoo evaluate` wrote of the split.
        trainings: stage ("" of a run without any) -> folder of a training that has ended.
    """
    results = {stage: result_of(folder) for stage, folder in trainings.items()}
    facts, metrics = facts_of([*results.values()])
    run = Run(name, seed, facts=facts, metrics=metrics, folder=scores)
    run.curves = {stage: one["validations"] for stage, one in results.items() if one.get("validations")}
    answer = scores / f"{split}.json"
    if answer.exists():
        run.answer = read_json(answer)
        run.rows = read_hypotheses(scores / f"{split}.hypotheses.jsonl")
        for condition, about in run.answer.get("conditions", {}).items():
            run.conditions[condition] = read_hypotheses(scores / Path(about["hypotheses"]).name)
    return run


def mean_costs(runs: Sequence[Run]) -> dict[str, float]:
    """What a run of a system took, on average over seeds."""
    names = dict.fromkeys(name for run in runs for name, value in run.costs.items() if value)
    found = {name: [run.costs[name] for run in runs if run.costs.get(name)] for name in names}
    return {name: max(values) if name == "peak_mb" else sum(values) / len(values) for name, values in found.items()}
