"""The checks of each role, in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import UserError
from ..roles import ROLES, Part
from .modules import Modules
from .outcome import Check, Outcome, collect, require
from .speech import checks_of_adaptor, checks_of_encoder, ways_of_adaptor, ways_of_encoder

_WAYS: dict[str, Callable[[Any], list]] = {"speech_encoder": ways_of_encoder, "adaptor": ways_of_adaptor}
_CHECKS: dict[str, Callable[[Any], Iterator[Check]]] = {
    "speech_encoder": checks_of_encoder,
    "adaptor": checks_of_adaptor,
}


def check_part(part: Any, role: str | None = None) -> list[Outcome]:
    """Check a part against the contract of its role, on small random inputs; on the CPU, in seconds for a small part.

    Args:
        part: a part, or what builds one without arguments (`lambda: MyAdaptor(8, 6)`), which lets more be asked: that
            it builds on the meta device, and that what it needs is saved. A part is not changed.
        role: key of `ROLES`; None: by its base class.

    Raises:
        ContractError: a line for each broken check.
    """
    outcomes = examine(part, role)
    require(_name(part), outcomes)
    return outcomes


def examine(part: Any, role: str | None = None) -> list[Outcome]:
    """As `check_part`; what is broken is said in the outcomes and not raised."""
    again: Callable[[], Any] | None = None
    if not isinstance(part, tuple(ROLES.values())):
        again = part
        with torch.random.fork_rng(devices=[]):
            part = again()
    role = role or role_of(part)
    if not isinstance(part, ROLES[role]):
        base = ROLES[role]
        fault = f"{type(part).__name__} is no {base.__name__}: derive it from voxzoo.components.roles.{base.__name__}"
        return [Outcome("role", fault)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return collect(_checks(part, role, again), getattr(part, "exempt", None))


def role_of(part: Any) -> str:
    """The role whose base class a part has. Raises UserError where it has none."""
    for role, base in ROLES.items():
        if isinstance(part, base):
            return role
    bases = ", ".join(base.__name__ for base in ROLES.values())
    raise UserError(f"{type(part).__name__} is no part: derive it from one of {bases} (voxzoo.components.roles)")


def _checks(part: Any, role: str, again: Callable[[], Any] | None) -> Iterator[Check]:
    ways = _WAYS[role](part) if role in _WAYS else []
    modules = list(Modules(part, ways, again).checks()) if isinstance(part, Part) else []
    yield from modules[:1]
    if role in _CHECKS:
        yield from _CHECKS[role](part)
    yield from modules[1:]


def _name(part: Any) -> str:
    return type(part).__name__ if isinstance(part, tuple(ROLES.values())) else getattr(part, "__name__", "the part")
