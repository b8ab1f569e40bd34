"""The layers of stacks as units: found in any task, computed again in the backward pass, compiled.

All of it is done in place. Modules, parameter names and checkpoints stay as they are, so a run goes on with or without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..components.errors import UserError

STACKS = ("layers", "attentions")
"""What parts call their stacks."""


def blocks(module: nn.Module, stacks: Sequence[str] = STACKS) -> Iterator[nn.Module]:
    """The layers of all stacks of these names in a module, each once, in the order of its modules."""
    for name, stack in module.named_modules():
        if isinstance(stack, nn.ModuleList) and name.rpartition(".")[2] in stacks:
            yield from stack


def recompute_blocks(module: nn.Module) -> int:
    """Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): of each block in a module only the inputs are kept
    for the backward pass, which computes the rest again. About a third more work, a fraction of the memory, and the
    same gradients to the bit: dropout draws the same numbers and running statistics count a batch once. Returns how
    many blocks there are; without gradients (validation, generation) they run as before."""
    number = 0
    for block in blocks(module):
        block.forward = _recomputed(block, block.forward)
        number += 1
    return number


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    norms = [inner for inner in block.modules() if getattr(inner, "running_mean", None) is not None]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_kept(norms) if norms else nullcontext()

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return call


@contextmanager
def _statistics_kept(norms: list[nn.Module]) -> Iterator[None]:
    """Put buffers of these modules back to what they were."""
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def compile_blocks(module: nn.Module, backend: str = "inductor") -> int:
    """torch.compile each block in a module, for training; validation and generation run as they are written. Sizes are
    dynamic: blocks that are alike share what was compiled, for all lengths. Returns how many blocks there are."""
    number = 0
    for block in blocks(module):
        block.forward = _compiled(block, block.forward, backend)
        number += 1
    return number


def _compiled(block: nn.Module, forward: Callable[..., Any], backend: str) -> Callable[..., Any]:
    fast = torch.compile(forward, dynamic=True, backend=backend)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        training = block.training and torch.is_grad_enabled()
        return (fast if training else forward)(*args, **kwargs)

    return call


def set_up_blocks(parts: Mapping[str, nn.Module], config: Mapping[str, Any]) -> None:
    """Do what the keys `compile` and `activation_checkpointing` of a config ask for.

    Args:
        parts: role -> part, as `Task.parts` gives them.
        config: `compile`: true, or the name of a backend of torch.compile. `activation_checkpointing`: true for all
            parts, or a map of roles to true.

    Raises:
        UserError: a role that is not there, or has no stack of layers; a backend that is none.
    """
    backend = config.get("compile") or False
    if backend:
        name = "inductor" if backend is True else str(backend)
        known = torch.compiler.list_backends(exclude_tags=())
        if name not in known:
            raise UserError(f"compile={name}: expected true, false or a backend of torch.compile: {', '.join(known)}")
        for part in parts.values():
            compile_blocks(part, name)
    again = config.get("activation_checkpointing") or False
    roles = {role: bool(on) for role, on in again.items()} if isinstance(again, Mapping) else dict.fromkeys(parts, True)
    for role, on in roles.items() if again else ():
        if role not in parts:
            raise UserError(f"activation_checkpointing.{role}: there is no such part; there are: {', '.join(parts)}")
        if on and not recompute_blocks(parts[role]) and isinstance(again, Mapping):
            raise UserError(
                f"activation_checkpointing.{role}: {type(parts[role]).__name__} has no stack of layers; leave it out"
            )
