"""Turns a checked config node into objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..components.errors import UserError
from ..components.limits import stacks
from .choices import belongs_to
from .pretrained import KEY
from .signatures import parameters_of, value_class
from .targets import ALLOWED, locate


def build(node: Any, *, allowed: tuple[str, ...] = ALLOWED, wanted: type = object, **given: Any) -> Any:
    """Build the object a node describes: `_target_` is called with the other keys.

    A node whose `_target_` is null is an absent part: None. `_partial_: true` gives a `functools.partial`.

    What may stand where follows from the signature that takes it, and is looked at from the outside in, before anything
    is built: an inner node names a class of the kind that the parameter's type says. A config cannot name a logger
    where a part is expected, and no class at all where a number is.

    Args:
        node: a DictConfig, mapping, list or plain value.
        allowed: module prefixes that `_target_` may start with.
        wanted: what the node has to be.
        **given: constructor arguments that come from code rather than from the config.

    Raises:
        UserError: a class of another kind, or the constructor refused its values; the message names the class.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    _require_kinds(node, allowed, (wanted,), "the config")
    return _build(node, allowed, given)


def _require_kinds(node: Any, allowed: tuple[str, ...], wanted: tuple[type, ...], place: str) -> None:
    """Refuse a node, or one inside it, that names a class of another kind than its place takes."""
    if isinstance(node, list):
        for value in node:
            _require_kinds(value, allowed, wanted, place)
    if not isinstance(node, Mapping):
        return
    path = node.get("_target_")
    if path is None:
        for key, value in node.items():
            _require_kinds(value, allowed, wanted, f"{place}.{key}" if "_target_" not in node else place)
        return
    if not wanted:
        raise UserError(f"{place} is {path}: no class can stand there")
    try:
        target = locate(str(path), allowed)
    except (ImportError, PermissionError) as error:
        raise UserError(f"{path}: {error}") from error
    if object not in wanted and isinstance(target, type) and not issubclass(target, wanted):
        kinds = " or ".join(kind.__name__ for kind in wanted)
        raise UserError(f"{place} is {path}, which is not a {kinds}{belongs_to(target)}")
    inner = {key: value for key, value in node.items() if not _is_note(key, path) and _names_class(value)}
    if inner:
        hints = parameters_of(target)[1]
        for key, value in inner.items():
            _require_kinds(value, allowed, _kinds(hints.get(key, object), path), f"{path}: {key}")


def _names_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("_target_") is not None or any(map(_names_class, value.values()))
    return isinstance(value, list) and any(map(_names_class, value))


def _kinds(hint: Any, path: str) -> tuple[type, ...]:
    """The classes that a type names: what may stand there. None of them for plain values; any for a class of one's own
    (it is trusted) that says no type."""
    if hint in (object, Any, inspect.Parameter.empty):
        return () if path.startswith(ALLOWED) else (object,)
    origin = get_origin(hint)
    if origin is Callable:  # what is called is no part
        return () if path.startswith(ALLOWED) else (object,)
    if origin is not None:
        return tuple(kind for one in get_args(hint) if one is not None for kind in _kinds(one, path))
    return (hint,) if isinstance(hint, type) and hint not in _PLAIN else ()


_PLAIN = (str, int, float, bool, bytes, type(None), dict, list, tuple, type)


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
            stacks(arguments)
            _make_values(target, arguments)
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


def _make_values(target: Any, arguments: dict[str, Any]) -> None:
    """Maps of settings become what their parameters are typed as."""
    maps = [key for key, value in arguments.items() if type(value) is dict]
    hints = parameters_of(target)[1] if maps else {}
    for key in maps:
        kind = value_class(hints.get(key))
        if kind is not None:
            arguments[key] = kind(**arguments[key])


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
