"""Which stages a staged run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def active_stages(config: DictConfig) -> list[str]:
    """Names of the stages to run, in order; a stage is left out whose `requires` names a part that is absent, or whose
    `unless` names one that is there."""
    names = []
    for name, stage in (config.get("stages") or {}).items():
        if stage is None:
            continue
        there = [_is_there(config, role) for role in stage.get("requires") or ()]
        if all(there) and not any(_is_there(config, role) for role in stage.get("unless") or ()):
            names.append(str(name))
    return names


def _is_there(config: DictConfig, role: str) -> bool:
    part = config.get(role)
    return part is not None and part.get("_target_") is not None


def last_stage(folder: Path, config: Any) -> Path:
    """The folder whose checkpoints a run folder stands for: its last stage, or itself."""
    stages = active_stages(config)
    return folder / "stages" / stages[-1] if stages else folder
