"""What a training or a scoring took, over all the processes that went on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...components.lines import read_json
from ...components.whole import write_whole

_FILE = "cost.json"
_MEGABYTE = 1024  # of what getrusage counts, in KB


def note_cost(folder: Path, seconds: float, process: Any) -> None:
    """Add what a process took that worked in a folder.

    Args:
        folder: nothing is kept where it is not there.
        process: a `Forked` one says what its processors and memory did.
    """
    if not folder.is_dir():
        return
    cost = cost_of(folder)
    usage = getattr(process, "usage", None)
    cost["seconds"] = round(cost.get("seconds", 0.0) + seconds, 1)
    if usage is not None:
        cost["cpu_seconds"] = round(cost.get("cpu_seconds", 0.0) + usage.ru_utime + usage.ru_stime, 1)
        cost["peak_mb"] = max(cost.get("peak_mb", 0), usage.ru_maxrss // _MEGABYTE)
    write_whole(folder / _FILE, json.dumps(cost).encode())


def cost_of(folder: Path) -> dict[str, float]:
    """`seconds`, and where they are known `cpu_seconds` and `peak_mb`, of a folder; empty where nothing was kept."""
    path = folder / _FILE
    return read_json(path) if path.is_file() else {}
