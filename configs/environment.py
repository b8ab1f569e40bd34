"""What the YAML of a folder may look up in the environment: what whoever runs it names, and no more.

A folder of choices may come from anywhere. What it looks up would stand in the run's name, its config and checkpoints,
and in the name of a model that is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ..components.errors import UserError
from .cycles import interpolated

_OF_LAUNCHERS = frozenset({"SLURM_NNODES", "SLURM_NTASKS", "GROUP_WORLD_SIZE", "WORLD_SIZE", "LOCAL_WORLD_SIZE"})
"""Numbers that Slurm and torchrun set; shipped choices ask for some."""

_asked: ContextVar[set[str] | None] = ContextVar("asked", default=None)


def _env(key: str, *default: Any) -> str | None:
    """`oc.env` as OmegaConf has it; notes what is asked for while someone listens."""
    names = _asked.get()
    if names is not None:
        names.add(str(key))
    return oc.env(key, *default)


OmegaConf.register_new_resolver("oc.env", _env, replace=True)


@contextmanager
def _listening() -> Iterator[set[str]]:
    names: set[str] = set()
    token = _asked.set(names)
    try:
        yield names
    finally:
        _asked.reset(token)


def require_named(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse values that look up variables of the environment which nobody named.

    Args:
        config: composed, nothing of it resolved yet.
        overrides: of the command line; `KEY=${oc.env:NAME}` among them names NAME, wherever it stands.

    Raises:
        UserError: such a value, by its key.
    """
    said = set(re.findall(r"oc\.env\s*:\s*(\w+)", " ".join(overrides)))
    for path, child in interpolated(config):
        with _listening() as names:
            _resolve(child, 0)
        for name in sorted(names - _OF_LAUNCHERS - said):
            raise UserError(
                f"{path}: looks up {name} in your environment, which a file does not do unasked; if it may, say "
                f"{path}='${{oc.env:{name}}}' yourself, or write the value there"
            )


_DEEPEST = 20


def _resolve(child: Any, depth: int) -> None:
    """Look up what a value is made of, also what that is made of."""
    try:
        found = child._dereference_node()
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError, KeyError):
        return  # a fault of its own; what it asked for is noted
    if isinstance(found, DictConfig | ListConfig) and depth < _DEEPEST and not found._is_none():
        for _, inner in interpolated(found):
            _resolve(inner, depth + 1)
