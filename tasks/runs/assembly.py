"""From a config to a task."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.roles import Tokenizer
from ...configs.build import build
from ...configs.pretrained import KEY
from ...configs.targets import locate
from ..task import FILES, Task
from .lora import apply_lora


def build_task(
    config: DictConfig,
    assets: dict[str, torch.Tensor],
    allowed: tuple[str, ...],
    *,
    empty: bool = False,
    parts: Mapping[str, torch.nn.Module] | None = None,
) -> Task:
    """Build the task of a config; files it needs come from the assets of its checkpoint.

    Args:
        empty: parameters on the meta device, to be filled by `load_state_dict(..., assign=True)`.
        parts: role -> part that is built already.
    """
    given: dict[str, Any] = dict(parts or {})
    if config.task.get("frontend") is not None:
        given["frontend"] = build(config.frontend, allowed=allowed)  # it may hold tables that no checkpoint has
    if "tokenizer" in assets:
        given["tokenizer"] = tokenizer_from_asset(config, assets["tokenizer"], allowed)
    with torch.device("meta") if empty else nullcontext():
        task = build(config.task, allowed=allowed, **given)
    apply_lora(task, config)
    task.files = {name.removeprefix(FILES): value for name, value in assets.items() if name.startswith(FILES)}
    task.config = OmegaConf.to_container(config, resolve=True)
    return task


def tokenizer_from_asset(config: DictConfig, content: torch.Tensor, allowed: tuple[str, ...]) -> Tokenizer:
    """Rebuild the tokenizer of a config from the bytes that a checkpoint carries."""
    settings = OmegaConf.to_container(config.tokenizer, resolve=True)
    assert isinstance(settings, dict)
    path = str(settings.pop("_target_"))
    try:
        cls = locate(path, allowed)
    except (ImportError, PermissionError) as error:
        raise UserError(f"{path}: {error}") from None
    notes = ("model", KEY)  # the file is in the bytes
    named = {str(key): value for key, value in settings.items() if key not in notes and not str(key).startswith("_")}
    return cls.from_bytes(content.numpy().tobytes(), **named)
