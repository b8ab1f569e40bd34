"""The layers of stacks as units: found in any task, computed again in the backward pass, compiled.

All of it is done in place. Modules, parameter names and checkpoints stay as they are, so a run goes on with or without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError

STACKS = ("layers", "attentions")
"""What the zoo's parts call their stacks."""
RECOMPUTE = "activation_checkpointing"


def blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The layers of the stacks of a part, each once, in the order of its modules.

    Stacks are the lists that the part names by its attribute `stacks`; else those called as in `STACKS`; else every
    `ModuleList` or `Sequential` of blocks of one class, whatever its name.
    """
    names = getattr(part, "stacks", None)
    found = list(named_blocks(part, STACKS if names is None else names))
    if not found and names is None:
        found = [block for stack in _alike(part) for block in stack]
    yield from dict.fromkeys(found)


def named_blocks(module: nn.Module, names: Sequence[str]) -> Iterator[nn.Module]:
    """The layers of all lists of these names in a module."""
    for name, stack in module.named_modules():
        if isinstance(stack, nn.ModuleList | nn.Sequential) and name.rpartition(".")[2] in names:
            yield from stack


def _alike(module: nn.Module) -> Iterator[Iterable[nn.Module]]:
    """The outermost lists of blocks of one class."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        entries = list(module)
        if entries and len({type(entry) for entry in entries}) == 1 and all(map(_is_block, entries)):
            yield entries
            return
    for child in module.children():
        yield from _alike(child)


def _is_block(module: nn.Module) -> bool:
    """A single convolution or projection of torch is none: its output is as large as what would not be kept."""
    plain = next(module.children(), None) is None and type(module).__module__.startswith("torch.")
    return not plain and next(module.parameters(), None) is not None


def unfound_blocks(parts: Mapping[str, nn.Module], config: Mapping[str, Any], cut: bool = False) -> Iterator[str]:
    """A line for each part that learns and of which nothing can be computed again, compiled or cut by itself, though
    that is asked for and the part does not say that it has no stack (`stacks = ()`).

    Args:
        parts, config: as for `set_up_blocks`.
        cut: whether the strategy cuts layers into shards one by one.
    """
    again = _recomputed_roles(config, parts)
    for role, part in parts.items():
        asked = [RECOMPUTE] * (role in again) + ["compile"] * bool(config.get("compile")) + ["shards"] * cut
        learns = any(parameter.requires_grad for parameter in part.parameters())
        if asked and learns and getattr(part, "stacks", None) is None and next(blocks(part), None) is None:
            yield (
                f"{', '.join(asked)}: {role} ({type(part).__name__}) has no stack of layers, a ModuleList or "
                "Sequential of blocks of one class: it is taken as a whole. Name its lists by `stacks`"
            )


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
        UserError: what `faults_of_blocks` finds.
    """
    for path, message in faults_of_blocks(config, list(parts), parts.get):
        raise UserError(f"{path}: {message}")
    backend = config.get("compile") or False
    for part in parts.values() if backend else ():
        compile_blocks(part, _backend(backend))
    for role in _recomputed_roles(config, parts):
        recompute_blocks(parts[role])


def faults_of_blocks(
    config: Mapping[str, Any], roles: Sequence[str], part_of: Callable[[str], nn.Module | None]
) -> Iterator[tuple[str, str]]:
    """(key, message) of what `set_up_blocks` cannot do: a backend that is none; a role that is not there, or that has
    no stack of layers.

    Args:
        config: see `set_up_blocks`.
        roles: that the task has a part for.
        part_of: gives the part of a role, maybe on the meta device; None: it cannot be told.
    """
    backend = config.get("compile") or False
    if backend and _backend(backend) not in torch.compiler.list_backends(exclude_tags=()):
        # Those that torch tags are for debugging, or raise errors on purpose.
        known = ", ".join(torch.compiler.list_backends())
        yield "compile", f"{backend!r} is not true, false or a backend of torch.compile: {known}"
    if not isinstance(config.get(RECOMPUTE), Mapping):
        return
    for role in _recomputed_roles(config, roles):
        path = f"{RECOMPUTE}.{role}"
        if role not in roles:
            yield path, f"there is no such part; there are: {', '.join(roles)}"
        elif (part := part_of(role)) is not None and next(blocks(part), None) is None:
            yield path, f"{type(part).__name__} has no stack of layers; leave it out"


def _backend(compiled: Any) -> str:
    return "inductor" if compiled is True else str(compiled)


def _recomputed_roles(config: Mapping[str, Any], roles: Iterable[str]) -> list[str]:
    """The roles that `activation_checkpointing` is on for."""
    again = config.get(RECOMPUTE) or False
    if isinstance(again, Mapping):
        return [str(role) for role, on in again.items() if on]
    return list(roles) if again else []
