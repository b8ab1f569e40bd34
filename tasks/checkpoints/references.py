"""Frozen weights of published models: checkpoints name the folder they are in, and a hash, in place of a copy.

What a part took from `ROLE.pretrained=FOLDER` and training leaves as it is (`freeze.ROLE=true`, the base of LoRA, the
encoder of a unit extractor) is left out of the checkpoints of the run; everything else is in them, also frozen weights
that came from another run by `init`. Whatever reads a checkpoint gets it whole: the folder is read again and its hash
compared. `checkpoint.copy_frozen=true` copies the weights into every checkpoint instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...components.cards import weights_hash
from ...components.converters.files import published_folder
from ...components.converters.published import read_part
from ...components.errors import UserError
from ...components.layers.lora import is_lora

ENTRY = "published"
"""Entry of a checkpoint: part -> {"role", "source", "sha256", "tensors": name within the part -> [dtype, shape]}."""

SEARCHED = "VOXZOO_PUBLISHED"
"""Environment variable: folders that hold published models which are no longer where a checkpoint says."""

_MISSING = object()


def find_references(parts: Mapping[str, tuple[nn.Module, str, str]]) -> dict[str, Any]:
    """What checkpoints may leave out of parts: tensors that equal the published ones and are not trained.

    Args:
        parts: name (`speech_encoder`, `unit_extractor.encoder`) -> part, role in the published model, source. On the
            CPU, as they were loaded, and with their frozen weights frozen.

    Returns:
        The `ENTRY` of the run's checkpoints.
    """
    found: dict[str, Any] = {}
    for name, (part, role, source) in parts.items():
        own = part.state_dict(keep_vars=True)
        # Statistics of a part in training mode are trained too.
        still = not part.training and not any(p.requires_grad for p in part.parameters())
        names = [
            key
            for key, value in own.items()
            if not is_lora(key) and (not value.requires_grad if isinstance(value, nn.Parameter) else still)
        ]
        if not names:
            continue
        there = _published(role, source, {key: own[key].shape for key in names})
        equal = {key: value for key, value in there.items() if torch.equal(own[key].detach(), value.to(own[key].dtype))}
        if equal:
            found[name] = {
                "role": role,
                "source": source,
                "sha256": weights_hash(equal),
                "tensors": {key: [_name(own[key].dtype), list(own[key].shape)] for key in equal},
            }
    return found


def leave_out(checkpoint: dict[str, Any], references: Mapping[str, Any]) -> None:
    """Take the tensors that references stand for out of a checkpoint, in place."""
    if not references:
        return
    state = dict(checkpoint["state_dict"])
    entry: dict[str, Any] = {}
    for name, reference in references.items():
        tensors = {}
        for key, (_, shape) in reference["tensors"].items():
            value = state.pop(f"{name}.{key}", _MISSING)
            if value is not _MISSING:
                tensors[key] = [_name(value.dtype), shape]
        entry[name] = {**reference, "tensors": tensors}
    checkpoint["state_dict"] = state
    checkpoint[ENTRY] = entry


def fill_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put the tensors back that `leave_out` took, in place; returns the checkpoint.

    Args:
        checkpoint: read from `path`. One that holds the tensors after all is left as it is.
        path: for messages.

    Raises:
        UserError: the published folder is gone, or holds other weights than it did; says where it looked.
    """
    state = checkpoint["state_dict"]
    for name, reference in (checkpoint.get(ENTRY) or {}).items():
        wanted = reference["tensors"]
        if all(f"{name}.{key}" in state for key in wanted):
            continue
        source = _where(reference["source"], f"{path}: the frozen weights of {name}")
        now = "others"
        try:
            there = _published(reference["role"], source, {k: torch.Size(shape) for k, (_, shape) in wanted.items()})
            if there.keys() == wanted.keys():
                now = weights_hash(there)
        except UserError as error:
            raise UserError(f"{path}: the frozen weights of {name} are not in it, and {error}") from None
        if now != reference["sha256"]:
            raise UserError(
                f"{path}: the frozen weights of {name} are not in it but in {source}, and those are not the ones it"
                f" was trained with (sha256 {now[:12]}, expected {reference['sha256'][:12]}); put the folder of then in"
                f" its place, or its parent folder into {SEARCHED}"
            )
        for key, (kind, _) in wanted.items():
            state[f"{name}.{key}"] = there[key].to(_dtype(kind, path))
    return checkpoint


def _where(source: str, what: str) -> str:
    """A source, or the folder of its name in one of those that `SEARCHED` lists."""
    local = Path(source).expanduser()
    others = [Path(folder) / local.name for folder in os.environ.get(SEARCHED, "").split(os.pathsep) if folder]
    for folder in (*others, local):
        if folder.is_dir():
            return str(folder)
    if not local.is_absolute() and not source.startswith((".", "~")):
        return str(published_folder(source))  # a name on the hub
    looked = ", ".join(str(folder) for folder in (local, *others))
    raise UserError(
        f"{what} are not in it but in a published folder, which is not there; looked for {looked}. Put it back, or its "
        f"new parent folder into {SEARCHED} (checkpoint.copy_frozen=true copies such weights into the checkpoints)"
    )


def _published(role: str, source: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    loaded = read_part(role, source, shapes)
    return {key.removeprefix(f"{role}."): value for key, value in loaded.state.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: Any, path: Path) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"{path}: says that a tensor is of type {name!r}, which torch does not have")
    return found
