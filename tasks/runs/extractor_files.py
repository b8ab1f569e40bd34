"""A unit extractor as a folder: its config and card as JSON, its tensors as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ...components.errors import UserError
from ...components.lines import read_json
from ...components.sums import require_sum, stored_sums, sum_of_tensor
from ...configs.foreign import require_plain
from ..checkpoints.files import write_atomically

CONFIG = "unit_extractor.json"
WEIGHTS = "unit_extractor.safetensors"


def is_extractor(folder: Path) -> bool:
    """Whether a folder is one of `write_extractor`."""
    return (folder / CONFIG).exists()


def write_extractor(folder: Path, config: dict[str, Any], card: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write an extractor: its config with `_target_`, the card of its units, its state. The folder is made."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(tensors)))
    sums = {name: sum_of_tensor(value) for name, value in tensors.items()}
    content = {"config": config, "card": card, "crc32": sums}
    write_atomically(folder / CONFIG, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config of an extractor, and the card of its units where the folder says it. Class paths are not looked at.

    Raises:
        UserError: no config of an extractor, or one whose values would be looked up.
    """
    content = read_json(folder / CONFIG)
    settings, card = content.get("config"), content.get("card")
    if not isinstance(settings, dict) or settings.get("_target_") is None:
        raise UserError(f"{folder / CONFIG}: expected a `config` with the _target_ and settings of a unit extractor")
    require_plain(settings, folder / CONFIG)
    return settings, card if isinstance(card, dict) else None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state of an extractor.

    Raises:
        UserError: it cannot be read, or is not what was written.
    """
    sums = stored_sums(read_json(folder / CONFIG).get("crc32"), folder / CONFIG)
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({' '.join(str(error).split())}); is it whole?") from None
    for key, value in weights.items():
        if key in sums:
            require_sum(value, sums[key], key, folder / WEIGHTS)
    return weights
