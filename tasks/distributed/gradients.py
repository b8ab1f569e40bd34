"""Gradients of one process or many: groups of parameters, norm, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...components.errors import UserError
from .strategies import WHOLE_DIM


def unscaled(make: Callable[..., torch.optim.Optimizer], *args: Any, **options: Any) -> torch.optim.Optimizer:
    """An optimizer before which a gradient scaler divides the gradients: fused ones would do so themselves, behind the
    norm and the clipping."""
    optimizer = make(*args, **options)
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by () a number, in few kernels; of sharded ones each process has its shard."""
    found = (parameter.grad for parameter in parameters)
    gradients = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in found if grad is not None]
    if gradients:
        with torch.no_grad():
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


_BLOCK = 2**18  # elements that are in the cache as float64


def gradient_norm(parameters: Iterable[nn.Parameter], flat: torch.device | None = None) -> Tensor:
    """() the 2-norm of all gradients together, the same on every process, whether they are sharded or not.

    Squares add up in float64: float32 sums depend on how the gradients are cut, and torch's own norm of 65 million
    numbers is 0.5 % short on a CPU.

    Args:
        parameters: with their gradients.
        flat: the device of a process that holds pieces of them as plain tensors (FSDP1), maybe none.
    """
    whole: list[Tensor] = []
    shards: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            shards.setdefault(gradient.device_mesh, []).append(gradient.to_local())
        elif gradient is not None:
            whole.append(gradient)
    squares = [_square(whole)] if whole else []
    if flat is not None:
        squares = squares or [torch.zeros((), dtype=torch.float64, device=flat)]
        torch.distributed.all_reduce(squares[0])
    for mesh, pieces in shards.items():
        total = _square(pieces)
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(total, group=mesh.get_group(dimension))
        squares.append(total)
    return torch.stack(squares).sum().sqrt().float() if squares else torch.zeros(())


def _square(tensors: Iterable[Tensor]) -> Tensor:
    """() the float64 sum of the squares of all elements."""
    sums: list[Tensor] = []
    for tensor in tensors:
        if tensor.device.type == "cpu":
            blocks = (block.double() for block in tensor.reshape(-1).split(_BLOCK))
            sums += [torch.dot(block, block) for block in blocks]
        else:
            blocks = tensor.reshape(-1).split(64 * _BLOCK)
            wide = torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            sums += [torch.linalg.vector_norm(block, dtype=wide).square() for block in blocks]
    return torch.stack(sums).sum()


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters: matrices with weight decay; biases, norms and scalars without."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError("nothing to train: every part is frozen")
    groups = [
        {"params": [p for p in trainable if getattr(p, WHOLE_DIM, p.dim()) > 1]},
        {"params": [p for p in trainable if getattr(p, WHOLE_DIM, p.dim()) <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
