"""LoRA in a task: `lora.ROLE` of a config, and weights of other runs that have it or have not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ...components.errors import UserError, few
from ...components.layers.lora import (
    LoRA,
    adapt,
    adapted_layers,
    is_lora,
    merge,
    merge_weights,
    same_layers,
)
from ..task import Task

KEY = "lora"


def lora_settings(config: DictConfig | dict[str, Any]) -> dict[str, LoRA]:
    """Role -> how its part is adapted; a null role is left out.

    Raises:
        UserError: settings that LoRA does not have.
    """
    found = {}
    for role, node in (config.get(KEY) or {}).items():  # a checkpoint of an older version has no such key
        if node is None:
            continue
        try:
            settings: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
            found[str(role)] = LoRA(**settings)
        except (TypeError, ValueError) as error:
            raise UserError(f"{KEY}.{role}: {error}") from None
    return found


def apply_lora(task: Task, config: DictConfig) -> None:
    """Adapt the parts that the config names, in place, before weights are loaded and parts are frozen.

    Raises:
        UserError: a role that the task has no part for, or patterns that do not fit it (`adapt`).
    """
    parts = task.parts()
    for role, settings in lora_settings(config).items():
        if role not in parts:
            raise UserError(f"{KEY}.{role}: {type(task).__name__} has no such part; it has: {', '.join(parts)}")
        adapt(parts[role], settings, seed=int(config.seed), where=f"{KEY}.{role}")
        if settings.freeze_base:
            task.hold_statistics([role])


def lora_lines(task: Task) -> list[str]:
    """What is adapted, one line a part, for the log."""
    lines = []
    for role, part in task.parts().items():
        layers = adapted_layers(part)
        if layers:
            count = sum(p.numel() for key, p in part.named_parameters() if is_lora(key))
            lines.append(f"{role}: {len(layers)} layers, {count:,} parameters: {few(list(layers), 3)}")
    return lines


def merge_lora(task: Task) -> None:
    """Make plain layers of adapted ones, in place; the task's config then says so too."""
    if merge(task):
        task.config = {**task.config, KEY: {}}


def fit_weights(part: nn.Module, weights: Mapping[str, Tensor], settings: LoRA | None) -> tuple[dict[str, Tensor], str]:
    """Weights of another run's part for a part that may be adapted in another way.

    Where both have LoRA on the same layers with the same rank and scale, it is taken over. Otherwise theirs is merged
    into the weights, and ours begins at zero.

    Args:
        settings: of the run that the weights are of; None where it has no LoRA.

    Returns:
        The weights, and what was done ("" where there was nothing to do).
    """
    own = {key: value for key, value in part.state_dict().items() if is_lora(key)}
    theirs = {key for key in weights if is_lora(key)}
    if own.keys() == theirs and (settings is None or same_layers(part, settings)):
        return dict(weights), "with its LoRA" if theirs else ""
    note = "its LoRA begins at zero" if own else ""
    plain = dict(weights)
    if theirs and settings is not None:
        plain = merge_weights(weights, part, settings)
        note = "LoRA of there merged" + (f", {note}" if note else "")
    return {**plain, **own}, note
