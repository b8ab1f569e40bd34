"""A unit extractor as a folder, or as part of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from ...components.errors import UserError
from ...components.roles import UnitExtractor
from ...configs.build import build
from ...configs.targets import ALLOWED
from ..checkpoints.files import write_atomically
from ..units import card_of

CONFIG = "unit_extractor.json"

WEIGHTS = "unit_extractor.safetensors"


def save_extractor(extractor: UnitExtractor, config: dict[str, Any], folder: Path | str) -> None:
    """Write an extractor: its config (with `_target_`) and card as JSON, its tensors as safetensors."""
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in extractor.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(tensors)))
    content = {"config": config, "card": card_of(extractor)}
    write_atomically(folder / CONFIG, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def load_extractor(path: Path | str, allowed: tuple[str, ...] = ALLOWED) -> UnitExtractor:
    """Load an extractor from a folder of `save_extractor`, or from a run that holds one, in evaluation mode.

    Raises:
        UserError: neither, or a run whose task has no unit extractor.
    """
    path = Path(path)
    if (path / CONFIG).exists():
        content = json.loads((path / CONFIG).read_text("utf-8"))
        extractor = build(content["config"], allowed=allowed)
        extractor.load_state_dict(load_file(path / WEIGHTS))
        return extractor.eval()
    from .run import load_run

    extractor = getattr(load_run(path).task, "unit_extractor", None)
    if extractor is None:
        raise UserError(f"{path}: this run has no unit extractor; fit one with `voxzoo units fit`")
    return extractor.eval()
