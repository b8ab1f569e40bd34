"""Parts of published models that are never initialised, and whose weights stay in their file until they are cut up."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..components.converters.keymap import Loaded
from ..components.converters.published import read_part
from ..configs.build import build
from ..configs.pretrained import pretrained_sources


def mapped_parts(config: DictConfig, allowed: tuple[str, ...], *, in_file: bool) -> dict[str, tuple[nn.Module, Loaded]]:
    """The parts of a config that their published folder (`ROLE.pretrained`) fills completely, with their weights.

    They are built on the meta device: no random numbers are drawn for them, under any strategy, so what is new in a run
    begins with the same values on one process and on many. Parts with anything of their own are not among them: they
    are built and filled as a whole.

    Args:
        in_file: leave float32 tensors that are stored as they are needed in the mapped file. Processes on a machine
            then share them, and each makes a copy of its shard alone. Otherwise each gets memory of its own.
    """
    found: dict[str, tuple[nn.Module, Loaded]] = {}
    for role, source in pretrained_sources(config).items():
        if role in ("frontend", "tokenizer") or OmegaConf.select(config, f"task.{role}._target_") is None:
            continue
        with torch.device("meta"):
            part = build(config.task[role], allowed=allowed)
        state = part.state_dict()
        if {name for name, _ in part.named_buffers()} - state.keys():
            continue  # tables that no checkpoint has
        loaded = read_part(role, source, {key: value.shape for key, value in state.items()})
        if loaded.missing or loaded.unused:
            continue
        own: dict[str, torch.Tensor] = {}
        weights = {name for name, _ in part.named_parameters()}  # buffers are not cut up
        for key, wanted in state.items():
            value = loaded.state.pop(f"{role}.{key}")
            own[key] = value.to(wanted.dtype, copy=not in_file or key not in weights)
        part.load_state_dict(own, assign=True)
        loaded.state = {f"{role}.{key}": value for key, value in part.state_dict().items()}
        found[role] = part, loaded
    return found


def is_sharded(config: DictConfig) -> bool:
    """Whether the strategy of a config cuts weights up over processes."""
    target: Any = OmegaConf.select(config, "trainer.strategy._target_")
    return str(target).endswith((".FSDP", ".FSDP2"))
