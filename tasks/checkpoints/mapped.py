"""Parts that are never initialised: those of published models, whose weights stay in their file until they are cut up,
and all parts of a run that goes on in shards."""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ...components.converters.keymap import Loaded
from ...components.converters.published import read_part
from ...configs.build import build
from ...configs.pretrained import pretrained_sources


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
        if _has_tables(part):
            continue
        state = part.state_dict()
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


def empty_parts(config: DictConfig, allowed: tuple[str, ...]) -> dict[str, nn.Module]:
    """The parts of a config on the meta device: for a run whose weights all come from its checkpoint, by shards. Parts
    with tables that no checkpoint has are not among them, nor any where LoRA is to be added."""
    found: dict[str, nn.Module] = {}
    for role, node in config.task.items():
        if (
            role in ("frontend", "tokenizer")
            or config.lora
            or not isinstance(node, DictConfig)
            or "_target_" not in node
        ):
            continue
        with torch.device("meta"):
            part = build(node, allowed=allowed)
        if isinstance(part, nn.Module) and not _has_tables(part):
            found[str(role)] = part
    return found


def _has_tables(part: nn.Module) -> bool:
    """Whether a part has buffers that no checkpoint has."""
    return bool({name for name, _ in part.named_buffers()} - part.state_dict().keys())


def materialise(module: nn.Module, device: torch.device) -> None:
    """Give what is on the meta device memory, which is not initialised; the rest stays."""
    for inner in module.modules():
        own = [*inner.parameters(recurse=False), *inner.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in own):
            inner.to_empty(device=device, recurse=False)
