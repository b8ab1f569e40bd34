"""Points made ready: their configs checked, their stages found out, and folders in which those of one key are one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from ...components.errors import UserError
from ...components.whole import write_whole
from ...configs.compose import compose, to_yaml
from ...configs.stages import active_stages
from ..training.train import checked
from .keys import key_of, stage_keys
from .points import Point


@dataclass(frozen=True)
class Training:
    """A training of one point or of several.

    Attributes:
        key: of what decides its result.
        stage: its name; "" of a run without stages.
        folder: where its checkpoints lie.
        words: `voxzoo train` with these trains it.
        needs: keys of those that it builds on.
    """

    key: str
    stage: str
    folder: Path
    words: tuple[str, ...]
    needs: frozenset[str]


@dataclass
class Prepared:
    """A point with what it takes.

    Attributes:
        folder: of its run; None where its config is refused.
        words: `voxzoo train` with these goes on with it.
        keys: stage -> key of its training; the stage of a run without any is "".
        error: why there is nothing of it.
    """

    point: Point
    folder: Path | None = None
    words: tuple[str, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def prepare(
    points: Sequence[Point], root: Path, name: str, config_dirs: Sequence[str] = ()
) -> tuple[list[Prepared], dict[str, Training]]:
    """Check points and find out what they share.

    A faulty point is one with an `error`; the others are not held up by it. Nothing is written.

    Args:
        points: of the ablation.
        root, name: its folder is root/name.

    Returns:
        The points in their order, and key -> training, each behind those that it needs.
    """
    found: list[Prepared] = []
    trainings: dict[str, Training] = {}
    for point in points:
        try:
            found.append(_prepare(point, root, name, config_dirs, trainings))
        except UserError as error:
            found.append(Prepared(point, error=str(error)))
    return found, trainings


def _prepare(
    point: Point, root: Path, name: str, config_dirs: Sequence[str], trainings: dict[str, Training]
) -> Prepared:
    words = [*point.words, f"root={root}", f"name={name}/points/new"]
    stages, after = _composed(words, config_dirs)
    keys = stage_keys(stages, after)
    # What is served of a run follows from its last stage and what that holds; every stage may be asked for.
    key = key_of(*(f"{stage}={keys[stage]}" for stage in keys))
    words = (*point.words, f"root={root}", f"name={name}/points/{key}")
    for stage in keys:
        if keys[stage] in trainings:
            continue
        checked(words, stage=stage or None, config_dirs=config_dirs)
        folder = root / name / "stages" / f"{stage}-{keys[stage]}" if stage else root / name / "points" / key
        needs = frozenset(keys[other] for other in after[stage])
        of_stage = ("--stage", stage) if stage else ()
        trainings[keys[stage]] = Training(keys[stage], stage, folder, (*of_stage, *words), needs)
    # In the order of the config, whose last stage is what the run stands for.
    return Prepared(point, root / name / "points" / key, words, {stage: keys[stage] for stage in after})


def _composed(words: Sequence[str], config_dirs: Sequence[str]) -> tuple[dict[str, DictConfig], dict[str, list[str]]]:
    """Configs of the stages of a point, in an order in which they could run, and what each waits for."""
    config = compose(words, config_dirs=config_dirs)
    names = active_stages(config)
    if not names:
        return {"": config}, {"": []}
    after = {name: [n for n in config.stages[name].get("after") or () if n in names] for name in names}
    stages = {name: compose(words, stage=name, config_dirs=config_dirs) for name in _in_order(after)}
    return stages, after


def _in_order(after: Mapping[str, Sequence[str]]) -> Iterator[str]:
    waiting = list(after)
    while waiting:
        ready = [name for name in waiting if not set(after[name]) & set(waiting)]
        if not ready:
            raise UserError(f"stages {', '.join(waiting)} wait for each other: look at their `after`")
        yield from ready
        waiting = [name for name in waiting if name not in ready]


def lay_out(point: Prepared, trainings: Mapping[str, Training], config_dirs: Sequence[str] = ()) -> None:
    """Make the folder of a point: its config, and links to the folders of its stages.

    What decides its result is in its name: a config that differs in what no stage reads takes the place of the other.
    """
    assert point.folder is not None
    if "" in point.keys:
        return
    stages = point.folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    write_whole(point.folder / "config.yaml", to_yaml(compose(point.words, config_dirs=config_dirs)).encode())
    for stage, key in point.keys.items():
        folder = trainings[key].folder
        folder.mkdir(parents=True, exist_ok=True)
        link = stages / stage
        target = os.path.relpath(folder, stages)
        if link.is_symlink() and os.readlink(link) != target:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(target)
