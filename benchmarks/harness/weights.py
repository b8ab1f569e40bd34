"""Random weights for a peer, and the same weights in voxzoo's parts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Random weights of the size that keeps activations near 1, norms and biases included.

    Freshly built models have norms of exactly 1 and biases of exactly 0, behind which a wrong place would hide. The
    last norm of a decoder gets weights of either sign: where embedding and output layer are one matrix, each token
    would predict itself otherwise, and all searches would find the same.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                fan_in = math.prod(parameter.shape[1:]) if "embed" not in name else parameter.shape[-1]
                parameter.copy_(_normal(parameter.shape, generator).mul_(gain * fan_in**-0.5))
            elif name.endswith("decoder.layer_norm.weight"):
                parameter.copy_(_normal(parameter.shape, generator))
            elif name.endswith("weight"):
                parameter.copy_(_normal(parameter.shape, generator).mul_(0.1).add_(1))
            else:
                parameter.copy_(_normal(parameter.shape, generator).mul_(0.1))
    return module


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def adopt(peer: Any, *roles: str) -> list[Any]:
    """The peer's weights in voxzoo's parts `roles`, see `adopt_all`."""
    parts, _ = adopt_all(peer, roles)
    return [parts[role] for role in roles]


def adopt_all(peer: Any, roles: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The peer's weights in voxzoo's parts, as a user gets them: written by transformers, read by `from_transformers`.

    Returns:
        Role -> part, in evaluation mode, on the CPU in float32; and the settings of the task.
    """
    from voxzoo.components.converters import from_transformers

    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = from_transformers(folder, roles=roles)
    return dict(model.parts()), dict(model.nodes.get("task", {}))
