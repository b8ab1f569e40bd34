"""Trainings and scorings of an ablation, as many at a time as there is room for: what is done is left alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ...components.errors import UserError
from ...components.online import is_online
from ..processes.child import Child, pass_on, stopped_together
from ..processes.console import say
from ..processes.signals import child
from ..runs.folder import is_done, is_held, pid_lock
from ..scoring.care import WordList
from ..training.sharing import environment_of_stage
from .cluster import Cluster, Job
from .costs import cost_of_child, note_cost
from .keys import key_of
from .points import Point
from .prepared import Prepared, Training, lay_out, prepare

_PATIENCE = 60.0  # seconds from the start in which what was begun before may end


@dataclass(frozen=True)
class Scoring:
    """How each point is scored: as `voxzoo evaluate` does.

    Attributes:
        split: None: not at all, the table has what training measured.
        words: further options of `evaluate`.
        lists: of words that are counted, which `words` name by their files.
    """

    split: str | None = "test"
    words: tuple[str, ...] = ()
    lists: tuple[WordList, ...] = ()

    @property
    def key(self) -> str:
        return key_of(self.split or "", *self.words, *(each.signature for each in self.lists))

    def folder(self, point: Prepared) -> Path:
        """Where the scores of a point lie."""
        assert point.folder is not None
        return point.folder / "scores" / self.key


@dataclass
class Outcome:
    """What came of the points.

    Attributes:
        points: in their order; the `error` of those that failed says why.
        trainings: key -> training, of all points.
        trained: keys of those that were trained now.
    """

    folder: Path
    points: list[Prepared]
    trainings: dict[str, Training]
    scoring: Scoring
    trained: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        """How many trainings the points would take if they shared none."""
        return sum(len(point.keys) for point in self.points)


def run_points(
    points: Sequence[Point],
    root: Path,
    name: str,
    scoring: Scoring,
    *,
    jobs: int = 1,
    config_dirs: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> Outcome:
    """Train and score points, as many at a time as `jobs` says. Finished ones are left alone; one that fails ends no
    other.

    Args:
        points: see `points_of`.
        root, name: the folder of the ablation is root/name.
        cluster: where trainings and scorings are jobs; None: processes of this machine.

    Raises:
        UserError: the folder is in use, or no point is sound.
    """
    folder = root / name
    prepared, trainings = prepare(points, root, name, config_dirs)
    if all(point.error for point in prepared):
        raise UserError(f"none of {len(prepared)} points can be trained; {prepared[0].point.name}: {prepared[0].error}")
    outcome = Outcome(folder, prepared, trainings, scoring)
    with pid_lock(folder):
        for point in prepared:
            if point.error is None:
                lay_out(point, trainings, config_dirs)
        _Board(outcome, jobs, config_dirs, cluster).run()
    return outcome


class _Board:
    """What waits, what runs, and what has come of it."""

    def __init__(
        self,
        outcome: Outcome,
        jobs: int,
        config_dirs: Sequence[str],
        cluster: Cluster | None,
    ) -> None:
        self._outcome, self._jobs, self._config_dirs, self._cluster = outcome, jobs, config_dirs, cluster
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}  # key -> why
        self._waiting: dict[str, tuple[str, tuple[str, ...], frozenset[str], Path]] = {}
        self._running: dict[str, Child | Job] = {}
        self._folders: dict[str, Path] = {}
        self._total = 0
        self._held: set[str] = set()  # of which it was said
        self._patient_until = time.monotonic() + _PATIENCE

    def run(self) -> None:
        self._fill()
        with stopped_together(self._running):
            while self._waiting or self._running:
                self._begin()
                pass_on([one for one in self._running.values() if isinstance(one, Child)], 0.05)
                self._end()
                self._give_up()
        for point in self._outcome.points:
            keys = [*point.keys.values(), _scores_of(point)]
            point.error = point.error or next((self._failed[key] for key in keys if key in self._failed), None)

    def _fill(self) -> None:
        users: dict[str, str] = {}
        online = ("--online",) if is_online() else ()
        points = [point for point in self._outcome.points if point.error is None]
        for point in points:
            for key in point.keys.values():
                users.setdefault(key, point.point.name)
        for key, training in self._outcome.trainings.items():
            if key not in users:
                continue
            if is_done(training.folder):
                self._done.add(key)
                continue
            name = f"{users[key]}: {training.stage}" if training.stage else users[key]
            words = ("train", *online, *self._dirs(), *training.words)
            self._waiting[key] = (name, words, training.needs, training.folder)
        for point in points:
            scores, scoring = _scores_of(point), self._outcome.scoring
            if scoring.split is None or scores in self._waiting or scores in self._done:
                continue
            folder = scoring.folder(point)
            if (folder / f"{scoring.split}.json").exists():
                self._done.add(scores)
                continue
            options = ("--split", scoring.split, "--out", str(folder), *scoring.words)
            words = ("evaluate", *online, str(point.folder), *options)
            self._waiting[scores] = (f"{point.point.name}: scores", words, frozenset(point.keys.values()), folder)
        self._total = len(self._waiting)

    def _dirs(self) -> list[str]:
        return [word for folder in self._config_dirs for word in ("--config-dir", folder)]

    def _start(self, name: str, words: Sequence[str]) -> Child | Job:
        if self._cluster is not None:
            return self._cluster(name, words)
        environment = {**environment_of_stage(self._jobs), **child("stop"), "PYTHONUNBUFFERED": "1"}
        return Child(name, words, environment, shown=words[0] == "train")

    def _together(self) -> AbstractContextManager[None]:
        """What is started inside is one array of a cluster."""
        return nullcontext() if self._cluster is None else self._cluster.together()

    def _begin(self) -> None:
        ready = [key for key, (*_, needs, _) in self._waiting.items() if needs <= self._done and not self._is_held(key)]
        room = self._jobs if self._cluster is None else self._cluster.at_a_time
        if room is not None:
            ready = ready[: room - len(self._running)]
        if ready:
            with self._together():
                for key in ready:
                    name, words, _, self._folders[key] = self._waiting.pop(key)
                    self._running[key] = self._start(name, words)
                    say(f"[{name}] begins: {self._total - len(self._waiting)} of {self._total}")

    def _is_held(self, key: str) -> bool:
        """Whether what an ablation before this one began still saves: killed, it left its children to themselves."""
        name, *_, folder = self._waiting[key]
        if time.monotonic() > self._patient_until or not is_held(folder):
            return False
        if key not in self._held:
            say(f"[{name}] waits for a process that has not ended yet")
        self._held.add(key)
        return True

    def _give_up(self) -> None:
        """What needs something that failed has failed too."""
        for key, (*_, needs, _) in list(self._waiting.items()):
            failed = next((other for other in needs if other in self._failed), None)
            if failed is not None:
                self._failed[key] = self._failed[failed]
                del self._waiting[key]

    def _end(self) -> None:
        for key in [key for key, one in self._running.items() if one.ended]:
            one = self._running.pop(key)
            cost = one.cost if isinstance(one, Job) else cost_of_child(one)
            note_cost(self._folders[key], cost)
            took = "" if cost.seconds is None else f" after {cost.seconds:.0f} s"
            if one.code:
                self._failed[key] = one.why
                say(f"[{one.name}] failed{took}: {self._failed[key]}")
            else:
                self._done.add(key)
                if key in self._outcome.trainings:
                    self._outcome.trained.append(key)
                say(f"[{one.name}] done{took}")


def _scores_of(point: Prepared) -> str:
    return f"scores of {point.folder}"
