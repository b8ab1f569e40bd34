"""Contract of front ends. Letters: N samples, T steps, F features."""

from __future__ import annotations

import functools
import inspect
import pickle
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..roles import Frontend
from .outcome import Check, NotAsked
from .ways import difference, returned

_COUNTS = (
    *range(3),
    *range(157, 163),
    *range(237, 243),
    *range(397, 404),
    *range(557, 563),
    *range(717, 722),
    1201,
    4000,
    9999,
)


def checks_of_frontend(part: Frontend, again: Callable[[], Any] | None) -> Iterator[Check]:
    yield "runs", lambda: _runs(part)
    yield "shapes", lambda: _shapes(part)
    yield "silence", lambda: _silence(part)
    yield "lengths", lambda: _lengths(part)
    yield "inputs", lambda: _inputs(part)
    yield "deterministic", lambda: _deterministic(part)
    yield "pickle", lambda: _pickle(part)
    yield "fingerprint", lambda: _fingerprint(part, again)


def _speech(count: int) -> Tensor:
    """Noise that grows and beats, so that every setting shows."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(count))
    steps = torch.arange(count)
    return 0.2 * noise * (0.3 + (steps / 700).sin().square()) + 0.02 * (steps / 9).sin() + 0.01


def _long(part: Frontend) -> Tensor:
    seconds = min(0.6, part.longest_seconds or 0.6)
    return _speech(int(part.sample_rate * seconds))


def _runs(part: Frontend) -> str | None:
    for name in ("sample_rate", "output_dim"):
        value = getattr(part, name, None)
        if not isinstance(value, int) or value < 1:
            return f"{name} must be an int of at least 1; got {value!r}"
    returned(part(_long(part)), Tensor, "a Frontend returns a Tensor of (T, output_dim) or (N,)")
    return None


def _shapes(part: Frontend) -> str | None:
    found = part(_long(part))
    wanted = "(N,)" if part.output_dim == 1 else f"(T, output_dim={part.output_dim})"
    if found.dtype != torch.float32:
        return f"it gives {found.dtype} instead of float32"
    if found.dim() != (1 if part.output_dim == 1 else 2) or (part.output_dim > 1 and found.shape[1] != part.output_dim):
        return f"it gives {tuple(found.shape)} instead of {wanted}"
    if not bool(found.isfinite().all()):
        return "it gives numbers that are not finite"
    return None


def _silence(part: Frontend) -> str | None:
    if bool(part(torch.zeros_like(_long(part))).isfinite().all()):
        return None
    return "silence gives numbers that are not finite: put a floor under logarithms and divisions"


def _lengths(part: Frontend) -> str | None:
    for count in _COUNTS:
        if part.longest_seconds is not None and count > part.longest_seconds * part.sample_rate:
            continue
        said = part.output_length(count)
        if not isinstance(said, int):
            return f"output_length gives {type(said).__name__} instead of int"
        steps = len(part(_speech(count)))
        if steps != said:
            return (
                f"output_length says {said} steps for {count} samples, {steps} come out: use the same integers in both"
            )
    if part.longest_seconds is None:
        return None
    try:
        part.output_length(int(part.longest_seconds * part.sample_rate) + 1)
    except UserError:
        return None
    return "output_length must raise UserError for more than longest_seconds"


def _inputs(part: Frontend) -> str | None:
    speech = _long(part)
    kept = speech.clone()
    part(speech)
    return None if torch.equal(speech, kept) else "it changes the samples in place: work on a copy"


def _deterministic(part: Frontend) -> str | None:
    speech, before = _long(part), part(_long(part))
    part(_speech(3000))
    words = difference(part(speech), before, 0.0)
    return (
        f"the same samples again: it {words}. The cache of features needs the same numbers each time" if words else None
    )


def _pickle(part: Frontend) -> str | None:
    try:
        twin = pickle.loads(pickle.dumps(part))
    except Exception as error:
        text = " ".join(str(error).split())
        return f"it cannot be pickled, so data workers cannot have it ({text}): no lambdas, open files or local classes"
    words = difference(twin(_long(part)), part(_long(part)), 0.0)
    if words or twin.fingerprint != part.fingerprint:
        return f"behind pickling it {words or 'has another fingerprint'}"
    return None


def _fingerprint(part: Frontend, again: Callable[[], Any] | None) -> str | None:
    """Every argument of the constructor that changes the output changes the fingerprint."""
    if not isinstance(part.fingerprint, str) or not part.fingerprint:
        return f"the fingerprint must be a string that is not empty; got {part.fingerprint!r}"
    build, arguments = _arguments(part, again)
    speech = _long(part)
    for name, hint in arguments.hints.items():
        for value in _others(arguments.values.get(name), hint):
            try:
                other = build(**{**arguments.values, name: value})
                found = other(speech)
            except Exception:
                continue
            same = found.shape == part(speech).shape and torch.equal(found, part(speech))
            if other.fingerprint == part.fingerprint and not same:
                return (
                    f"{name}={value!r} gives other features than {name}={arguments.values.get(name)!r} under one "
                    f"fingerprint ({part.fingerprint}): put {name} into it, the feature cache goes by it"
                )
    return None


class _Arguments(typing.NamedTuple):
    values: dict[str, Any]
    hints: dict[str, Any]


def _arguments(part: Frontend, again: Callable[[], Any] | None) -> tuple[Callable[..., Any], _Arguments]:
    """The fewest arguments that build this one: of its attributes or of a `functools.partial`, without those whose
    default does the same."""
    build = type(part)
    signature = inspect.signature(build)
    known = dict(again.keywords) if isinstance(again, functools.partial) else {}
    values = {
        name: known.get(name, getattr(part, name, parameter.default))
        for name, parameter in signature.parameters.items()
    }
    missing = [name for name, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise NotAsked(f"give the part attributes of the names of its arguments ({', '.join(missing)})")
    for name, parameter in signature.parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            fewer = {key: value for key, value in values.items() if key != name}
            if _equals(build, fewer, part):
                values = fewer
    if not _equals(build, values, part):
        raise NotAsked("its attributes do not build it again: call them as the arguments")
    defaults = {name: parameter.default for name, parameter in signature.parameters.items() if name not in values}
    hints = typing.get_type_hints(build.__init__)
    values = {**{name: value for name, value in defaults.items() if value is not None}, **values}
    return build, _Arguments(values, {name: hints.get(name, Any) for name in signature.parameters})


def _equals(build: Callable[..., Any], values: dict[str, Any], part: Frontend) -> bool:
    try:
        other = build(**values)
        return other.fingerprint == part.fingerprint and torch.equal(other(_long(part)), part(_long(part)))
    except Exception:
        return False


def _others(value: Any, hint: Any) -> list[Any]:
    """Values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, value // 2]
    if isinstance(value, float):
        return [0.5 * value, 2 * value, value + 1.0, 0.0]
    kinds = [hint, *(typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ())]
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            return [other for other in typing.get_args(kind) if other != value]
    if value is None:
        return [*([0.7, 900.0] if float in kinds else []), *([1, 2, 8] if int in kinds else [])]
    return []
