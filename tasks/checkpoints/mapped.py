"""Modules that are never initialised: parts of published models, whose weights stay in their file until they are cut
up, and whatever a checkpoint fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...components.converters.keymap import Loaded
from ...components.converters.published import read_part
from ...components.roles import ROLES
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
            part = build(config.task[role], allowed=allowed, wanted=ROLES[role])
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


def _has_tables(part: nn.Module) -> bool:
    """Whether a part has buffers that no checkpoint has."""
    return bool({name for name, _ in part.named_buffers()} - part.state_dict().keys())


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built inside get their parameters on the meta device: nothing is drawn, and no memory taken.
    Buffers and tables are what they are elsewhere, for a checkpoint may not have them."""
    register = nn.Module.register_parameter
    twins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of parameters that several modules share

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if type(param) is nn.Parameter and not param.is_meta:  # other classes know what they do
            if param not in twins:
                twins[param] = nn.Parameter(param.detach().to("meta"), param.requires_grad)
            param = twins[param]
        register(self, name, param)

    with patch.object(nn.Module, "register_parameter", register_empty):
        yield


def fill(module: nn.Module, state: Mapping[str, Any], *, cast: bool) -> bool:
    """Give a module the tensors of a state dict that fits it, not copies of them: those of a mapped file stay there
    until they are written to.

    Args:
        cast: to the dtypes that the module was built with; otherwise it takes those of the tensors.

    Returns:
        Whether nothing of the module is on the meta device now.
    """
    own = module.state_dict()
    places = _places(module)
    module.load_state_dict(
        {
            key: value.to(own[key].dtype) if cast and isinstance(value, Tensor) else value
            for key, value in state.items()
        },
        assign=True,
    )
    _share_again(places)
    return not any(
        isinstance(value, Tensor) and value.is_meta
        for inner in module.modules()
        for table in (inner._parameters, inner._buffers, vars(inner))
        for value in table.values()
    )


def materialise(module: nn.Module, device: torch.device) -> None:
    """Give what is on the meta device memory, which is not initialised; the rest stays."""
    places = _places(module)
    for inner in module.modules():
        own = [*inner.parameters(recurse=False), *inner.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in own):
            kept = {name: value for name, value in inner._buffers.items() if value is not None and not value.is_meta}
            inner.to_empty(device=device, recurse=False)
            inner._buffers.update({name: value.to(device) for name, value in kept.items()})
    _share_again(places)


_Places = list[list[tuple[dict[str, Any], str]]]


def _places(module: nn.Module) -> _Places:
    """Where each parameter and buffer is, of those that are in several places."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for inner in module.modules():
        for table in (inner._parameters, inner._buffers):
            for name, value in table.items():
                if value is not None:
                    found.setdefault(id(value), []).append((table, name))
    return [places for places in found.values() if len(places) > 1]


def _share_again(places: _Places) -> None:
    """Put one tensor where one was, after each place got its own."""
    for (first, key), *others in places:
        for table, name in others:
            table[name] = first[key]
