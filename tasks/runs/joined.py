"""Runs behind each other, `asr+mt`, and tasks whose checkpoint says where their runs are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...components.errors import UserError
from ..of_runs import JOINT, OfRuns
from ..task import Task
from ..teacher import StoredTeacher, Teacher


def joined_names(path: Path) -> list[str]:
    """The runs that `RUN+RUN` names; none where it is one run, also one with such a mark in its name."""
    names = str(path).split(JOINT)
    return [] if len(names) == 1 or os.path.lexists(path) or not all(names) else names


def attach_teacher(task: Task, folder: Path, load: Callable[[Path], Task]) -> None:
    """Give a task that learns from another run that one, or what is stored of it; others are left alone.

    Args:
        folder, load: as of `attach_runs`.

    Raises:
        UserError: it is not there, or does not fit.
    """
    teacher = getattr(task, "teacher", None)
    if not isinstance(teacher, Teacher) or task.tokenizer is None:
        return
    if teacher.stored is not None:
        found = StoredTeacher(_place_of(teacher.stored, folder, "task.teacher.stored"))
    else:
        found = load(_place_of(str(teacher.run), folder, "task.teacher.run"))
    teacher.attach(found, task.tokenizer, task.frontend)


def attach_runs(task: Task, folder: Path, load: Callable[[Path], Task]) -> None:
    """Give a task that is made of runs the tasks of these; others are left alone.

    Args:
        folder: of its run.
        load: reads the task of a run.

    Raises:
        UserError: a run is not there, or cannot do what its place asks for.
    """
    if not isinstance(task, OfRuns):
        return
    places = [_place_of(name, folder) for name in task.runs]
    task.attach([load(place) for place in places], places)


def _place_of(name: str, folder: Path, key: str = "task.runs") -> Path:
    """A run by its name: an earlier stage beside the folder, a path from there, or a path; several that are joined."""
    if JOINT in name and not any(path.exists() for path in _candidates(name, folder)):
        return Path(JOINT.join(str(_place_of(one, folder, key)) for one in name.split(JOINT)))
    candidates = _candidates(name, folder)
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise UserError(f"{key}: {name}, of {folder}, is not there; looked for {', '.join(map(str, candidates))}")
    return found


def _candidates(name: str, folder: Path) -> list[Path]:
    return [folder.parent / name, Path(os.path.realpath(folder)) / name, Path(name)]
