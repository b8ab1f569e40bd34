"""The base of tasks that are made of runs: nothing is trained, and their checkpoint says where the runs are."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..components.errors import UserError
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Statistic
from .checkpoints.files import write_unstepped
from .task import Task

JOINT = "+"
"""Between runs that are one behind the other."""


class OfRuns(Task):
    """Serves with the tasks of other runs, which `attach` gives it (`load_run` does).

    Args:
        runs: run folders, checkpoints or earlier stages of the same run.

    Attributes:
        steps: their tasks, in this order.
        places: where they are.
    """

    needs = frozenset({"speech"})
    modes = frozenset({"s2tt", "s2st", "asr", "t2tt", "t2st"})
    roles = ()

    def __init__(self, *, runs: Sequence[str]) -> None:
        super().__init__()
        self.runs = [str(run) for run in runs]
        self.steps: tuple[Task, ...] = ()  # a tuple: their weights are no part of this task's
        self.places: list[Path] = []

    @abstractmethod
    def accept(self, steps: Sequence[Task]) -> frozenset[str]:
        """What it can do with these tasks. Raises UserError: one cannot do what its place asks for."""

    def attach(self, steps: Sequence[Task], places: Sequence[Path]) -> None:
        """Give it the tasks of its runs, and where these are. Raises UserError as `accept`."""
        self.modes = self.accept(steps)  # pyright: ignore[reportAttributeAccessIssue]
        self.steps, self.places = tuple(steps), list(places)
        self.frontend = steps[0].frontend

    def attached(self) -> tuple[Task, ...]:
        """The tasks."""
        if not self.steps:
            raise RuntimeError(f"{type(self).__name__} serves behind `attach`, as `load_run` calls it")
        return self.steps

    def run_once(self, data: Any, folder: Path) -> dict[str, Any]:
        """Write the run: where its parts are, seen from its folder."""
        here = os.path.realpath(folder)
        self.config["task"]["runs"] = [
            JOINT.join(os.path.relpath(os.path.realpath(one), here) for one in str(place).split(JOINT))
            for place in self.places
        ]
        write_unstepped(self, folder / "checkpoints" / "last.ckpt")
        places = [str(place) for place in self.places]
        count = sum(parameter.numel() for step in self.steps for parameter in step.parameters())
        return {"task": type(self).__name__, "runs": places, "steps": 0, "trainable": 0, "parameters": count}

    def assets(self) -> dict[str, Tensor]:
        return {}  # each run has its own

    @property
    def longest_seconds(self) -> float | None:
        limits = [step.longest_seconds for step in self.attached() if step.reads_speech]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(lang for step in self.steps for lang in step.languages))

    def knows(self, lang: str) -> bool:
        return any(step.knows(lang) for step in self.steps)

    @property
    def search(self) -> SearchOptions:
        """That of the last run."""
        return getattr(self.attached()[-1], "search", None) or SearchOptions()

    def options_of(self, step: Task, asked: SearchOptions | None) -> SearchOptions:
        """A run's own search; where other options than those of the last run are asked for, with their method and beam
        size."""
        own = getattr(step, "search", None) or SearchOptions()
        if asked is None or (asked.method, asked.beam_size) == (self.search.method, self.search.beam_size):
            return own
        return replace(own, method=asked.method, beam_size=asked.beam_size)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        raise RuntimeError(f"{type(self).__name__} has nothing to train; train its runs")


def require_hypotheses(options: SearchOptions, wanted: int, key: str) -> None:
    """Raises UserError: a search gives fewer for an input than are wanted of it by a key."""
    most = 1 if options.method == "greedy" else options.beam_size
    if most < wanted:
        raise UserError(f"{key}={wanted}: the search of a run gives {most}; take --beam {wanted}")
