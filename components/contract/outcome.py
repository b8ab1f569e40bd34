"""What checks found, and the runner that collects it: shared by the contracts of parts, tasks and data."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

Check = tuple[str, Callable[[], str | None]]
"""A name, and what returns None, or one line: what is broken, where, and what to do. An error that it raises counts as
broken."""


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: of the check, such as `padding`.
        fault: what is broken, where, and what to do, in one line; None: nothing.
        note: why it was not asked; None: it was.
    """

    name: str
    fault: str | None = None
    note: str | None = None


class ContractError(UserError):
    """A line for each broken check.

    Attributes:
        outcomes: of all checks.
    """

    def __init__(self, subject: str, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = tuple(outcomes)
        lines = [f"{outcome.name}: {outcome.fault}" for outcome in outcomes if outcome.fault]
        asked = sum(outcome.note is None for outcome in outcomes)
        super().__init__("\n  ".join([f"{subject} breaks {len(lines)} of {asked} checks:", *lines]))


class NotAsked(Exception):
    """Raised by a check that does not apply; says why."""


class Broken(Exception):
    """Raised by a check from within; its words are the fault."""


_IDLE = "it does not run"


def collect(checks: Iterable[Check], exempt: Mapping[str, str] | None = None) -> list[Outcome]:
    """Run all checks, whatever the others found.

    Args:
        checks: in order. One named `runs` comes first where there is one: the rest is not asked if that is broken.
        exempt: check -> why its subject need not pass.
    """
    exempt = exempt or {}
    outcomes: list[Outcome] = []
    for name, check in checks:
        if name in exempt:
            outcomes.append(Outcome(name, note=exempt[name]))
        elif any(outcome.name == "runs" and outcome.fault for outcome in outcomes):
            outcomes.append(Outcome(name, note=_IDLE))
        else:
            outcomes.append(_outcome(name, check))
    return outcomes


def report(subject: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines for a terminal: how many checks there were, then those that are broken or were not asked.

    What was not asked because the subject does not run is one line.
    """
    asked = sum(outcome.note is None for outcome in outcomes)
    broken = sum(outcome.fault is not None for outcome in outcomes)
    yield f"{subject}: {asked} checks, {broken or 'none'} broken"
    for outcome in outcomes:
        if outcome.fault or outcome.note not in (None, _IDLE):
            yield f"  {outcome.name}: {outcome.fault or f'not asked: {outcome.note}'}"
    idle = sum(outcome.note == _IDLE for outcome in outcomes)
    if idle:
        yield f"  {idle} not asked: {_IDLE}"


def require(subject: str, outcomes: Sequence[Outcome]) -> None:
    """Raise ContractError where a check is broken."""
    if any(outcome.fault for outcome in outcomes):
        raise ContractError(subject, outcomes)


def _outcome(name: str, check: Callable[[], str | None]) -> Outcome:
    try:
        return Outcome(name, check())
    except NotAsked as why:
        return Outcome(name, note=str(why))
    except Broken as fault:
        return Outcome(name, str(fault))
    except Exception as error:
        return Outcome(name, f"{type(error).__name__}: {' '.join(str(error).split())}{_place(error)}")


def _place(error: Exception) -> str:
    """The last line of code outside of libraries that an error went through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not Path(frame.filename).is_relative_to(Path(__file__).parent)
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
