"""What an ablation would train, and what that takes: `voxzoo ablate --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from ...components.errors import UserError
from ...configs.compose import compose
from ..planning.plan import plan_run
from ..processes.forked import one_thread
from ..runs.folder import is_done
from .prepared import Prepared, Training

_SIZE, _TIMES = 1024, 5


def plan_of(
    points: Sequence[Prepared], trainings: Mapping[str, Training], folder: Path, config_dirs: Sequence[str] = ()
) -> dict[str, Any]:
    """What `voxzoo ablate --dry-run --json` prints: each training with the points that need it, its state (`done` or
    `new`), and of a new one what `voxzoo check --plan` says: `peak_bytes` of a device, `flops` of a step, `steps`, and
    `least_seconds`, which a CPU here would take if it did nothing but matrix products."""
    plan: list[dict[str, Any]] = []
    rate = matrix_rate()
    for key, training in trainings.items():
        users = [point.point.name for point in points if key in point.keys.values()]
        if users:
            done = is_done(training.folder)
            one = {"key": key, "stage": training.stage, "points": users, "state": "done" if done else "new"}
            plan.append({**one, "words": [*training.words], **({} if done else _needs(training, config_dirs, rate))})
    return {
        "status": "ok",
        "ablation": str(folder),
        "points": [
            {"name": one.point.name, "folder": str(one.folder), "words": [*one.point.words], "error": one.error}
            for one in points
        ],
        "plan": plan,
        "trainings_without_sharing": sum(len(point.keys) for point in points),
    }


def _needs(training: Training, config_dirs: Sequence[str], rate: float) -> dict[str, Any]:
    words = [word for word in training.words if word not in ("--stage", training.stage)]
    config = compose(words, stage=training.stage or None, config_dirs=config_dirs)
    try:
        plan = plan_run(config)
    except UserError as error:
        return {"unplanned": str(error)}
    if plan is None:  # no gradient steps
        return {}
    needs = {"peak_bytes": plan.peak, "flops": plan.flops, "devices": plan.devices, "steps": _steps(config, plan.data)}
    if needs["steps"] is not None and plan.device == "cpu":
        needs["least_seconds"] = round(plan.flops * needs["steps"] / rate, 1)
    return needs


def _steps(config: DictConfig, data: Any) -> int | None:
    steps, epochs = (config.trainer.get(name) for name in ("max_steps", "max_epochs"))
    of_epochs = data.steps * epochs if data.steps is not None and epochs not in (None, -1) else None
    known = [number for number in (steps if steps not in (None, -1) else None, of_epochs) if number is not None]
    return min(known) if known else None


def matrix_rate() -> float:
    """FLOPs a second of a matrix product on one CPU thread here."""
    with one_thread():
        x = torch.ones(_SIZE, _SIZE)
        best = min(_seconds(x) for _ in range(_TIMES))
    return 2 * _SIZE**3 / best


def _seconds(x: torch.Tensor) -> float:
    start = time.perf_counter()
    _ = x @ x
    return time.perf_counter() - start


def show_plan(answer: Mapping[str, Any], console: Console) -> None:
    """Print what `plan_of` says."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("training", "state", "GB", "steps", "at least", "for"):
        table.add_column(name, overflow="fold", justify="right" if name in ("GB", "steps", "at least") else "left")
    for one in answer["plan"]:
        least = one.get("least_seconds")
        table.add_row(
            f"{one['stage'] or 'run'}-{one['key']}",
            one["state"],
            f"{one['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in one else "",
            f"{one['steps']:,}" if one.get("steps") else "",
            "" if least is None else f"{least / 60:.1f} min" if least >= 60 else f"{least:.1f} s",
            "; ".join(one["points"]),
        )
    console.print(table, markup=False)
    for one in answer["plan"]:
        if "unplanned" in one:
            console.print(f"{one['stage'] or 'run'}-{one['key']}: {one['unplanned']}", markup=False, highlight=False)
    for point in answer["points"]:
        if point["error"]:
            console.print(f"cannot be trained: {point['name']}: {point['error']}", markup=False, highlight=False)
    new = sum(one["state"] == "new" for one in answer["plan"])
    console.print(
        f"{len(answer['points'])} points: {len(answer['plan'])} trainings, {new} of them new; "
        f"{answer['trainings_without_sharing']} without what they share. At least: matrix products alone, on one core.",
        highlight=False,
    )
