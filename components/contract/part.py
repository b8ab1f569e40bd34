"""The checks of each role, in one list."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..roles import ROLES, Part
from .codecs import checks_of_codec, ways_of_codec
from .frontends import checks_of_frontend
from .modules import Modules
from .outcome import Check, Outcome, collect, require
from .speech import checks_of_adaptor, checks_of_encoder, ways_of_adaptor, ways_of_encoder
from .speech_lm import checks_of_speech_lm, ways_of_speech_lm
from .stream_lm import checks_of_stream_lm, ways_of_stream_lm
from .text import checks_of_text, ways_of_text
from .tokenizers import checks_of_tokenizer
from .units import checks_of_extractor, checks_of_t2u, fitted, prepared_t2u, ways_of_extractor, ways_of_t2u
from .waveforms import checks_of_discriminator, checks_of_vocoder, ways_of_discriminator, ways_of_vocoder
from .ways import Way


@dataclass(frozen=True)
class _Contract:
    """Of one role.

    Attributes:
        ways: in which the part is called.
        checks: of the role, besides those of every module; they get the part, and what builds a fresh one or None.
        ready: makes a copy that can be called, such as a fitted one.
        told: whether what `ready` does is told to each part anew, and is not saved.
    """

    ways: Callable[[Any], list[Way]] = lambda part: []
    checks: Callable[[Any, Callable[[], Any] | None], Iterator[Check]] = lambda part, again: iter(())
    ready: Callable[[Any], Any] | None = None
    told: bool = False


_CONTRACTS = {
    "frontend": _Contract(checks=checks_of_frontend),
    "tokenizer": _Contract(checks=checks_of_tokenizer),
    "speech_encoder": _Contract(ways_of_encoder, lambda part, _: checks_of_encoder(part)),
    "adaptor": _Contract(ways_of_adaptor, lambda part, _: checks_of_adaptor(part)),
    "text_seq2seq": _Contract(ways_of_text, lambda part, _: checks_of_text(part)),
    "t2u": _Contract(ways_of_t2u, lambda part, _: checks_of_t2u(part), prepared_t2u, told=True),
    "unit_extractor": _Contract(ways_of_extractor, checks_of_extractor, fitted),
    "vocoder": _Contract(ways_of_vocoder, lambda part, _: checks_of_vocoder(part)),
    "codec": _Contract(ways_of_codec, lambda part, _: checks_of_codec(part)),
    "speech_lm": _Contract(ways_of_speech_lm, lambda part, _: checks_of_speech_lm(part)),
    "stream_lm": _Contract(ways_of_stream_lm, lambda part, _: checks_of_stream_lm(part)),
    "discriminator": _Contract(ways_of_discriminator, lambda part, _: checks_of_discriminator(part)),
}


def check_part(part: Any, role: str | None = None) -> list[Outcome]:
    """Check a part against the contract of its role, on small random inputs; on the CPU, in seconds for a small part.

    Args:
        part: a part, or what builds one without arguments (`lambda: MyAdaptor(8, 6)`), which lets more be asked: that
            it builds on the meta device, and that what it needs is saved. A part is not changed.
        role: key of `roles.ROLES`; None: by its base class.

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
        make: Callable[[], Any] = part
        again = make
        with torch.random.fork_rng(devices=[]):
            part = make()
    role = role or role_of(part)
    if role not in _CONTRACTS:  # those of data and tasks are elsewhere
        near = difflib.get_close_matches(role, _CONTRACTS, n=1)
        raise UserError(f"there is no role {role!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    if not isinstance(part, ROLES[role]):
        base = ROLES[role]
        fault = f"{type(part).__name__} is no {base.__name__}: derive it from voxzoo.components.roles.{base.__name__}"
        return [Outcome("role", fault)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exempt = dict(getattr(part, "exempt", None) or {})
        outcomes = collect(_checks(part, role, again), exempt)
    known = {outcome.name for outcome in outcomes}
    unknown = [name for name in exempt if name not in known and not name.startswith("learns ")]
    if unknown:
        fault = f"{unknown[0]!r} is no check; there are: {', '.join(sorted(known))}"
        outcomes.append(Outcome("exempt", fault))
    return outcomes


def role_of(part: Any) -> str:
    """The role whose base class a part has. Raises UserError where it has none."""
    for role in _CONTRACTS:
        if isinstance(part, ROLES[role]):
            return role
    bases = ", ".join(ROLES[role].__name__ for role in _CONTRACTS)
    raise UserError(f"{type(part).__name__} is no part: derive it from one of {bases} (voxzoo.components.roles)")


def _checks(part: Any, role: str, again: Callable[[], Any] | None) -> Iterator[Check]:
    contract = _CONTRACTS[role]
    if not isinstance(part, Part):
        yield from contract.checks(part, again)
        return
    modules = Modules(part, contract.ways, again, contract.ready, contract.ready if contract.told else None)
    yield "silent", modules.silent
    yield "runs", modules.runs
    try:
        subject = modules.part
    except Exception:  # `runs` has said so
        return
    yield from contract.checks(subject, again)
    yield from modules.checks()


def _name(part: Any) -> str:
    return type(part).__name__ if isinstance(part, tuple(ROLES.values())) else getattr(part, "__name__", "the part")
