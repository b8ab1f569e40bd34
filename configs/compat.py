"""`compat: transformers` or `compat: fairseq2`: every switch as one of the published implementations has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..components import parts
from ..components.errors import UserError

KEY = "compat"
CHOICES = ("transformers", "fairseq2")


def fill_compat(config: DictConfig, overrides: Iterable[str]) -> None:
    """Set the switches of a composed config; those that an override names stay as it says.

    Raises:
        UserError: another implementation.
    """
    chosen = config.get(KEY)
    if chosen is None:
        return
    if chosen not in CHOICES:
        raise UserError(f"{KEY}={chosen}: expected {' or '.join(CHOICES)}, or null for voxzoo's own")
    from ..components.converters.compat import apply_compat

    said = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
    nodes: dict[str, dict[str, Any]] = {}
    for role in (*parts(), "task"):
        node = config.get(role)
        if isinstance(node, DictConfig) and node.get("_target_") is not None:
            plain = OmegaConf.to_container(node)
            assert isinstance(plain, dict)
            nodes[role] = {str(key): value for key, value in plain.items()}
    OmegaConf.set_struct(config, False)
    for role, changed in apply_compat(nodes, chosen).items():
        for path, value in _changes(nodes[role], changed):
            name = f"{role}.{path}"
            if name not in said and not any(name.startswith(f"{other}.") for other in said if other.count(".")):
                OmegaConf.update(config, name, value, force_add=True)


def _changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys that differ, and their new values."""
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict):
            yield from _changes(old if isinstance(old, dict) else {}, value, f"{path}{key}.")
        elif key not in before or old != value:
            yield f"{path}{key}", value
