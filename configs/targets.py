"""Which classes a config may name. A config that can call anything is a way to run code, so the list is explicit."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .places import is_listed

ALLOWED = ("voxzoo.", "torch.nn.", "torch.optim.", "torchaudio.transforms.", "lightning.")
"""Under these only classes may be named, and only those that the package itself defines: most functions of a library
(`torch.hub.load`) and whatever its modules import (`subprocess.Popen`) are ways to run code. Of the libraries only
those of `places.OF_LIBRARIES`: others write, fetch or delete what their arguments say."""
FOREIGN = ("voxzoo.", "torch.nn.", "torchaudio.transforms.")
"""The same for a config that came with weights, which describes a model and no training."""
_FUNCTIONS = ("voxzoo.tasks.training.schedules.",)
_MOVED = {
    "voxzoo.tasks.schedules.": "voxzoo.tasks.training.schedules.",
    "voxzoo.tasks.strategies.": "voxzoo.tasks.distributed.strategies.",
}
"""Where configs of version 0.1.0, and the checkpoints that carry them, looked for what has moved."""
# The first builds whatever class its own arguments name, the others start processes and commands.
_REFUSED = ("lightning.pytorch.cli.", "voxzoo.tasks.ablation.", "voxzoo.tasks.commands.", "voxzoo.tasks.processes.")
_ENVIRONMENT = "VOXZOO_ALLOW"


def locate(path: str, allowed: tuple[str, ...] = ALLOWED) -> Any:
    """Import the class or function at a dotted path.

    Raises:
        PermissionError: the path lies outside the allow list, or leads to what the list does not cover.
        ImportError: there is nothing at the path; the message names the nearest one.
    """
    path = present_path(path)
    package = path.split(".")[0]
    advice = f"if you trust it, allow it by {_ENVIRONMENT}={package} in the environment"
    if not f"{path}.".startswith(allowed):
        kinds = ALLOWED if set(ALLOWED) <= set(allowed) else FOREIGN
        raise PermissionError(f"{path!r} is outside {', '.join(prefix.rstrip('.') for prefix in kinds)}; {advice}")
    trusted = f"{path}.".startswith(vouched(allowed))
    module_path, _, name = path.rpartition(".")
    here = Path.cwd()
    if trusted and str(here) not in sys.path and ((here / package).is_dir() or (here / f"{package}.py").is_file()):
        sys.path.append(str(here))  # a package that is trusted by name may lie in the folder of the run
    if not trusted and (path.startswith(_REFUSED) or any(part.startswith("_") for part in path.split("."))):
        raise PermissionError(f"{path!r} is not meant for configs; {advice}")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        # A class path inside a class is not supported: parts are module-level classes.
        raise ImportError(
            f"cannot import {module_path!r} ({error}); install the package, or name its folder in PYTHONPATH"
        ) from None
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, [*dir(module), *getattr(module, "__all__", ())], n=1)
        raise ImportError(f"{module_path} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    found = getattr(module, name)
    if not callable(found):
        raise ImportError(f"{path!r} is a {type(found).__name__}, not a class or function")
    if not trusted and not _is_own_class(found) and not path.startswith(_FUNCTIONS):
        raise PermissionError(f"{path!r} is not a class that {package} defines; {advice}")
    if not trusted and package != "voxzoo" and not is_listed(found):
        advice = advice.replace(f"={package} ", f"={path} ")
        raise PermissionError(f"{path!r} is not among the classes of {package} that a config may name; {advice}")
    return found


def present_path(text: str) -> str:
    """A class path, or YAML with class paths, by the names of today."""
    for old, new in _MOVED.items():
        text = text.replace(old, new)
    return text


def class_of(node: Any, config: Any) -> type | None:
    """The class that a node of a config names by `_target_`; None where there is none, or none that may be used."""
    if not hasattr(node, "get") or node.get("_target_") is None:
        return None
    try:
        found = locate(str(node.get("_target_")), allow_list(config))
    except (ImportError, PermissionError):
        return None  # reported where it stands
    return found if isinstance(found, type) else None


def _is_own_class(found: Any) -> bool:
    home = f"{getattr(found, '__module__', '')}."
    return isinstance(found, type) and home.startswith(ALLOWED) and not home.startswith(_REFUSED)


def allow_list(config: Any) -> tuple[str, ...]:
    """What the person who runs a config trusts: `trusted()` and what the config's `allow` adds."""
    extra = config.get("allow") if hasattr(config, "get") else None
    return trusted(extra if isinstance(extra, str | Iterable) else ())  # a number is a fault of its own


def vouched(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Of a list, what somebody trusts beside what is shipped with it."""
    for shipped in (ALLOWED, FOREIGN):
        if allowed[: len(shipped)] == shipped:
            return allowed[len(shipped) :]
    return allowed


def trusted(packages: Iterable[str] = (), shipped: tuple[str, ...] = ALLOWED) -> tuple[str, ...]:
    """`shipped`, the packages that VOXZOO_ALLOW names (with commas), and those given.

    With FOREIGN the list for a config that came in a checkpoint: its own `allow` was written by whoever made the file.
    """
    packages = [packages] if isinstance(packages, str) else packages
    named = [name.strip() for name in os.environ.get(_ENVIRONMENT, "").split(",")]
    return (*shipped, *(f"{name.rstrip('.')}." for name in (*named, *packages) if name))
