"""What follows a metric of validation: the best checkpoints, early stopping, a schedule that waits for plateaus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .targets import class_of
from .values import value_of

_BETTER = {"loss": "min", "accuracy": "max", "bleu": "max", "chrf": "max", "wer": "min"}
"""Metrics that mean the same wherever they are logged."""


@dataclass(frozen=True)
class Follower:
    """One of them.

    Attributes:
        key, monitor: where the metric is named, and which it is.
        mode_key, mode: where it is said whether less or more of it is better, and which.
    """

    key: str
    monitor: str
    mode_key: str
    mode: str


def followers(config: DictConfig) -> list[Follower]:
    """Those of a composed config."""
    found = []
    kept, schedule = ("checkpoint.monitor", "checkpoint.mode"), class_of(config.get("schedule"), config)
    if value_of(config, "checkpoint.keep_best"):
        found.append(kept)
    callbacks = config.get("callbacks")
    for name, node in callbacks.items() if isinstance(callbacks, DictConfig) else ():
        if str(node.get("_target_") if isinstance(node, DictConfig) else "").endswith(".EarlyStopping"):
            found.append((f"callbacks.{name}.monitor", f"callbacks.{name}.mode"))
    if schedule is not None and issubclass(schedule, ReduceLROnPlateau):
        found.append((kept[0], "schedule.mode"))
    return [
        Follower(key, str(value_of(config, key)), mode_key, str(value_of(config, mode_key, "min")))
        for key, mode_key in found
    ]


def faults_of_modes(config: DictConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each that takes the worst for the best, or for the best what another takes for the
    worst."""
    said: dict[str, str] = {}
    for one in followers(config):
        if one.mode in ("min", "max"):
            better = _BETTER.get(one.monitor.removeprefix("valid/")) or said.setdefault(one.monitor, one.mode)
            if one.mode != better:
                more = "more" if better == "max" else "less"
                yield one.mode_key, f"{one.mode!r}: of {one.key}={one.monitor} {more} is better: expected {better!r}"
