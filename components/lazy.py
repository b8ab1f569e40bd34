"""Names of a package that are imported from its modules on first use, so that importing the package stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its `__name__`.
        where: name -> the module or subpackage of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"{package} has no {name!r}; there are: {', '.join(sorted(where))}")
        return getattr(importlib.import_module(f".{where[name]}", package), name)

    return get
