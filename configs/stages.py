"""Which stages a staged run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def active_stages(config: DictConfig) -> list[str]:
    """Names of the stages to run, in order; a stage whose `requires` names an absent part is left out."""
    names = []
    for name, stage in (config.get("stages") or {}).items():
        if stage is None:
            continue
        parts = [config.get(role) for role in stage.get("requires") or ()]
        if all(part is not None and part.get("_target_") is not None for part in parts):
            names.append(str(name))
    return names


def last_stage(folder: Path, config: Any) -> Path:
    """The folder whose checkpoints a run folder stands for: its last stage, or itself."""
    stages = active_stages(config)
    return folder / "stages" / stages[-1] if stages else folder
