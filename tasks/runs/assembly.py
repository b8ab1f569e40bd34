"""From a config to a task: the one place that training, loading, checking and planning have in common."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.layers.blocks import set_up_blocks
from ...components.roles import Tokenizer
from ...configs.build import build
from ...configs.pretrained import KEY
from ...configs.targets import locate
from ..checkpoints.mapped import parameters_on_meta
from ..task import FILES, Task
from .lora import apply_lora


def assemble(
    config: DictConfig,
    allowed: tuple[str, ...],
    *,
    weights: Literal["drawn", "empty", "fake"] = "drawn",
    tokenizer: Tokenizer | None = None,
    assets: Mapping[str, torch.Tensor] | None = None,
    parts: Mapping[str, torch.nn.Module] | None = None,
) -> Task:
    """The task of a config, with LoRA where it asks for that. `set_up` does the rest for a training.

    Args:
        config: composed, or out of a checkpoint.
        allowed: what its class paths may start with.
        weights: `drawn`: initialised at random. `empty`: parameters on the meta device, to be filled from a checkpoint
            (`mapped.fill`, `mapped.materialise`), and tables that no checkpoint has computed. `fake`: all on the meta
            device, to push shapes through.
        tokenizer: in place of the config's.
        assets: files that a checkpoint carries, the tokenizer's among them.
        parts: role -> part that is built already.

    Raises:
        UserError: parts that refuse their settings, LoRA that does not fit them.
    """
    given: dict[str, Any] = dict(parts or {})
    assets = assets or {}
    if tokenizer is None and "tokenizer" in assets:
        tokenizer = tokenizer_from_asset(config, assets["tokenizer"], allowed)
    if tokenizer is not None:
        given["tokenizer"] = tokenizer
    if weights == "empty":
        try:
            with parameters_on_meta():
                task = build(config.task, allowed=allowed, wanted=Task, **given)
        except Exception:  # a part that looks into its weights while it is built; a true fault comes again
            task = build(config.task, allowed=allowed, wanted=Task, **given)
    else:
        with torch.device("meta") if weights == "fake" else nullcontext():
            task = build(config.task, allowed=allowed, wanted=Task, **given)
    apply_lora(task, config)
    task.files = {name.removeprefix(FILES): value for name, value in assets.items() if name.startswith(FILES)}
    task.config = OmegaConf.to_container(config, resolve=True)
    return task


def set_up(task: Task, config: DictConfig, *, blocks: Mapping[str, Any] | None = None) -> Task:
    """What a config asks of an assembled task that is trained: parts that stand still (`freeze`), layers that are
    computed again or compiled.

    Args:
        blocks: in place of the config's `activation_checkpointing` and `compile`.

    Raises:
        UserError: a role or a stack of layers that the task does not have.
    """
    task.freeze_parts([str(role) for role, frozen in config.freeze.items() if frozen])
    set_up_blocks(task.parts(), config if blocks is None else blocks)
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
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer)):
        raise UserError(f"the config's tokenizer is {path}, which is not a Tokenizer")
    read = getattr(cls, "from_bytes", None)
    if read is None:
        raise UserError(
            f"{path}: has no classmethod from_bytes(data, **arguments), which reads what a checkpoint carries"
        )
    notes = ("model", KEY)  # the file is in the bytes
    named = {str(key): value for key, value in settings.items() if key not in notes and not str(key).startswith("_")}
    return read(content.numpy().tobytes(), **named)
