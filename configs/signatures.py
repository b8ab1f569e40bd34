"""What a class that a config names takes: its constructor's signature is the schema of its settings."""

from __future__ import annotations

import inspect
import types
import typing
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin

FACTORIES = ("optim", "schedule")
"""Keys whose class is called later, with the parameters or the optimizer first: `_partial_` goes without saying."""


def parameters_of(found: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Name -> parameter of a class or function, and name -> type.

    A data module may hand what it takes as `**options` to its base; then the base's parameters are its own too.
    """
    parameters = dict(inspect.signature(found).parameters)
    if not isinstance(found, type):
        return parameters, _hints(found)
    hints = _hints(found.__init__)
    if not _hands_on(found):
        return parameters, hints
    for owner in [base for base in found.__mro__ if "__init__" in vars(base) and _hands_on(base)][1:]:
        rest = next((name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD), None)
        if rest is None:
            break
        del parameters[rest]
        of_base = inspect.signature(owner).parameters
        parameters |= {name: one for name, one in of_base.items() if name not in parameters}
        hints = {**_hints(owner.__init__), **hints}
    return parameters, hints


def value_class(hint: Any) -> type | None:
    """The dataclass that a type names, alone or beside null: a map of settings can stand for one. None of any other."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [one for one in options if one is not type(None)]
    return found[0] if len(found) == 1 and isinstance(found[0], type) and is_dataclass(found[0]) else None


def _hands_on(found: type) -> bool:
    from ..components.roles import DataModule  # with torch, for which composing and `--help` do not wait

    return issubclass(found, DataModule) and found is not DataModule


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a library's annotations may not resolve at run time; then only names are checked
        return {}
