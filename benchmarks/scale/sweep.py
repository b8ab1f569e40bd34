"""Rows about sweeps: what a point of an ablation costs beside its training."""

from __future__ import annotations

import json
from pathlib import Path

from .data import TINY, tiny_run
from .process import command
from .row import Costs, Row

_SCORED = ("--split", "test_seen", "--limit", "6", "--recogniser", "none", "--quality", "none", "--beam", "1")


def points(count: int, folder: Path) -> Costs:
    """Points of one step each, alone and with their scores of six utterances."""
    tiny_run(folder)  # makes the corpus
    words = ["ablate", *TINY, "data=tiny", f"cache_dir={folder / 'cache'}", f"root={folder / 'runs'}", "logger=none"]
    words += ["trainer.max_steps=1", f"seed=range(1,{count + 1})", "name=sweep"]
    plain = command([*words, "--split", "none"], folder)["cpu"]
    costs = [json.loads(path.read_text()) for path in (folder / "runs" / "sweep").glob("points/*/cost.json")]
    trained = sum(cost["cpu_seconds"] for cost in costs)
    scored = command([*words, *_SCORED], folder)["cpu"]
    return {
        "beyond training, CPU s a point": (plain - trained) / count,
        "all of it, CPU s a point": plain / count,
        "scores of what is trained, CPU s a point": scored / count,
    }


ROWS = (
    Row("ablate", "G14 points of an ablation, a step each", points, "points", (2, 4, 8), (2, 10, 50), 50,
        {"beyond training, CPU s a point": 5}),
)  # fmt: skip
