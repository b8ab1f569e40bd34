"""What a training or a scoring took, over all the processes that went on with it."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.lines import read_json
from ...components.whole import write_whole
from ..processes.child import Child

_FILE = "cost.json"
_MEGABYTE = 1024  # of what getrusage counts, in KB


@dataclass(frozen=True)
class Cost:
    """Of one process. What is not known is None."""

    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: int | None = None


def cost_of_child(one: Child, *, alone: bool = False) -> Cost:
    """Of a child that has just ended.

    Args:
        alone: this process had no other.
    """
    usage = getattr(one.process, "usage", None)  # a `Forked` one says what its processors and memory did
    if usage is None and alone:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.monotonic() - one.started
    if usage is None:
        return Cost(seconds)
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // _MEGABYTE)


def note_cost(folder: Path, cost: Cost) -> None:
    """Add what a process took that worked in a folder; nothing is kept where that is not there."""
    if not folder.is_dir():
        return
    kept = cost_of(folder)
    for name in ("seconds", "cpu_seconds"):
        if (value := getattr(cost, name)) is not None:
            kept[name] = round(kept.get(name, 0.0) + value, 1)
    if cost.peak_mb is not None:
        kept["peak_mb"] = max(kept.get("peak_mb", 0), cost.peak_mb)
    if kept:
        write_whole(folder / _FILE, json.dumps(kept).encode())


def cost_of(folder: Path) -> dict[str, Any]:
    """`seconds`, and where they are known `cpu_seconds` and `peak_mb`, of a folder; empty where nothing was kept."""
    path = folder / _FILE
    return read_json(path) if path.is_file() else {}
