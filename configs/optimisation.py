"""Optimizers and schedules as a config names them: the zoo's, torch's or one's own."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..components.errors import UserError
from .build import build
from .targets import ALLOWED


def factory(node: Any, allowed: tuple[str, ...] = ALLOWED, wanted: type = object) -> Any:
    """What makes an optimizer of parameter groups, or (`make_schedule`) a schedule of an optimizer.

    Args:
        node: a DictConfig or mapping with `_target_`.
        allowed, wanted: as for `build`.

    Returns:
        None where the node names no class.
    """
    settings = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return build(_later(settings), allowed=allowed, wanted=wanted)


def _later(node: Any) -> Any:
    """A node, and those within (the schedules of a SequentialLR), as partials."""
    if isinstance(node, Mapping):
        inner = {key: _later(value) for key, value in node.items()}
        return {**inner, "_partial_": True} if node.get("_target_") is not None else inner
    return [_later(one) for one in node] if isinstance(node, list) else node


def make_schedule(make: Callable[..., Any], optimizer: Optimizer, total_steps: int | None) -> Any:
    """The schedule of an optimizer.

    Args:
        make: what `factory` gave, or a function of (optimizer, total_steps=...).
        optimizer: what it steers.
        total_steps: of the run, None where nothing ends it; given to schedules that take it and are told no other.
    """
    inner, given = (make.func, dict(make.keywords)) if isinstance(make, functools.partial) else (make, {})
    if takes_length(make) and not {"total_steps", "epochs"} & given.keys():
        given["total_steps"] = total_steps
    return inner(optimizer, **{key: _with(value, optimizer, total_steps) for key, value in given.items()})


def _with(value: Any, optimizer: Optimizer, total_steps: int | None) -> Any:
    if isinstance(value, list):
        return [_with(one, optimizer, total_steps) for one in value]
    return make_schedule(value, optimizer, total_steps) if isinstance(value, functools.partial) else value


def takes_length(make: Callable[..., Any]) -> bool:
    """Whether a schedule asks for the length of the run."""
    parameters = inspect.signature(make.func if isinstance(make, functools.partial) else make).parameters
    return "total_steps" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def try_optimizer(node: Any, allowed: tuple[str, ...]) -> Optimizer:
    """Make the optimizer of a node for a matrix and a bias, as models have them, and step once.

    Raises:
        UserError, ValueError: what it has against its values.
    """
    matrix, bias = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,)))
    groups = [{"params": [matrix]}, {"params": [bias], "weight_decay": 0.0}]
    with told_as_users(node):
        made = factory(node, allowed, Optimizer)(groups)
        if not isinstance(made, Optimizer):
            raise UserError(f"{type(made).__name__} is not a torch.optim.Optimizer")
        _step(made)
        return made


def try_schedule(node: Any, optimizer: Optimizer, total_steps: int | None, allowed: tuple[str, ...]) -> None:
    """Make the schedule of a node for an optimizer, and step once.

    Raises:
        UserError, ValueError: what it has against its values, or against the length of the run.
    """
    with told_as_users(node):
        made = make_schedule(factory(node, allowed, LRScheduler), optimizer, total_steps)
        if not isinstance(made, LRScheduler):
            raise UserError(f"{type(made).__name__} is not a torch.optim.lr_scheduler.LRScheduler")
        _step(optimizer)
        made.step(*([1.0] if isinstance(made, ReduceLROnPlateau) else []))  # pyright: ignore[reportArgumentType]


@contextmanager
def told_as_users(node: Any) -> Iterator[None]:
    """Errors of a constructor as the user's; none where it was only made for another device than the CPU."""
    try:
        yield
    except (UserError, ValueError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError | AssertionError) and re.search("device|cuda", text, re.IGNORECASE):
            raise RuntimeError(text) from error
        name = str(node["_target_"]).rpartition(".")[2]
        raise UserError(f"{name}: {type(error).__name__}: {text}") from error


def _step(optimizer: Optimizer) -> None:
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.ones_like(parameter)
    step: Callable[..., Any] = optimizer.step
    step(lambda: torch.ones(()))
