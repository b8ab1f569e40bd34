"""Turns a checked config node into objects."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..components.errors import UserError
from .pretrained import KEY
from .targets import ALLOWED, locate


def build(node: Any, *, allowed: tuple[str, ...] = ALLOWED, **given: Any) -> Any:
    """Build the object a node describes: `_target_` is called with the other keys, inner nodes first.

    A node whose `_target_` is null is an absent part: None. `_partial_: true` gives a `functools.partial`.

    Args:
        node: a DictConfig, mapping, list or plain value.
        allowed: module prefixes that `_target_` may start with.
        **given: constructor arguments that come from code rather than from the config.

    Raises:
        UserError: the constructor refused its values; the message names the class.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    return _build(node, allowed, given)


def _is_note(key: str, path: str) -> bool:
    """Keys that say how to build or, of our parts, what to load, and are no arguments."""
    return key.startswith("_") or (key == KEY and path.startswith("voxzoo."))


def _build(node: Any, allowed: tuple[str, ...], given: dict[str, Any]) -> Any:
    if isinstance(node, Mapping):
        if "_target_" not in node:
            return {key: _build(value, allowed, {}) for key, value in node.items()}
        path = node["_target_"]
        if path is None:
            return None
        arguments = {k: _build(v, allowed, {}) for k, v in node.items() if not _is_note(k, path) and k not in given}
        try:
            target = locate(path, allowed)
            if node.get("_partial_"):
                return functools.partial(target, **arguments, **given)
            return _whole(target(**arguments, **given), path)
        except UserError:
            raise
        except (TypeError, ValueError, ArithmeticError, ImportError, PermissionError) as error:
            raise UserError(f"{path}: {error}") from error
    if isinstance(node, list):
        return [_build(value, allowed, {}) for value in node]
    return node


def _whole(made: Any, path: str) -> Any:
    """A part has all attributes that its role states without a value: others read them."""
    from ..components.roles import ROLES  # with torch, which is there once something is built

    for role in type(made).__mro__:
        if role in ROLES.values():
            for name, hint in vars(role).get("__annotations__", {}).items():
                if name not in vars(role) and not hasattr(made, name):
                    raise UserError(
                        f"{path}: has no {name} ({hint}), which each {role.__name__} states: set self.{name}"
                    )
    return made
