"""Which classes a config may name. A config that can call anything is a way to run code, so the list is explicit."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

ALLOWED = ("voxzoo.", "torch.", "torchaudio.", "lightning.")


def locate(path: str, allowed: tuple[str, ...] = ALLOWED) -> Any:
    """Import the class or function at a dotted path.

    Raises:
        PermissionError: the path lies outside the allow list.
        ImportError: there is nothing at the path; the message names the nearest one.
    """
    if not path.startswith(allowed):
        raise PermissionError(
            f"{path!r} is outside {', '.join(prefix.rstrip('.') for prefix in ALLOWED)}; "
            f"allow it with `allow=[{path.split('.')[0]}]` if you trust it"
        )
    module_path, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        # A class path inside a class is not supported: parts are module-level classes.
        raise ImportError(f"cannot import {module_path!r} ({error})") from None
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [*dir(module), *getattr(module, "__all__", ())], n=1)
        raise ImportError(f"{module_path} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    found = getattr(module, name)
    if not callable(found):
        raise ImportError(f"{path!r} is a {type(found).__name__}, not a class or function")
    return found


def allow_list(config: Any) -> tuple[str, ...]:
    """ALLOWED and what the config's `allow` adds."""
    extra = config.get("allow") if hasattr(config, "get") else None
    return (*ALLOWED, *(f"{name.rstrip('.')}." for name in extra or ()))
