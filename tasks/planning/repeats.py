"""Stacks of layers that are alike: a few of them run, the others are counted.

Layer after layer a stack does the same: it makes as many bytes, keeps as many and takes as many FLOPs, forwards and
backwards. So four of N layers run, the first three and the last: ends differ, since what is in front of them and behind
them does. Those between the third and the last are counted as the third was; backwards they follow the second, for of
equal layers it does not matter which are left out. That the second and the third did the same is checked, byte for
byte; where they did not, `Unlike` is raised, and all layers are to run.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...components.layers.alike import Layers
from .ledger import Ledger, Repeat, Span

_RUN = 4
_PLAIN = (int, float, bool, str, type, type(None), torch.dtype, torch.device, types.BuiltinFunctionType)


class Unlike(Exception):
    """Layers that look alike did different things."""


class Repeats:
    """What `components.layers.alike.in_turn` asks while a step of a task is simulated."""

    def __init__(self, ledger: Ledger, task: nn.Module) -> None:
        self.ledger = ledger
        places = [id(p) for m in task.modules() for p in m._parameters.values() if p is not None]
        once = set(places)
        for place in once:
            places.remove(place)
        self.shared = set(places)
        """Ids of parameters that stand at several places: their gradients are added up."""

    def __call__(self, layers: Layers) -> Iterable[Any]:
        shares = any(id(p) in self.shared for layer in layers for p in layer.parameters())
        if len(layers) <= _RUN or shares or not alike(layers):
            return layers
        return _Stack(self.ledger, layers)


class _Stack:
    """One pass through the layers of a stack, and back."""

    def __init__(self, ledger: Ledger, layers: Layers) -> None:
        self.ledger, self.layers, self.times = ledger, layers, len(layers) - _RUN
        self.repeat = Repeat(copies=1 + self.times)
        self.given: Any = None  # to each layer besides x
        self.learns: list[bool] = []  # whether each x has a gradient
        self.starts: list[Any] = []  # of the second and third layer
        self.spans: list[Span] = []  # of these, forwards, then backwards

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        yield self._first
        yield self._second
        yield self._third
        yield self._others
        yield self._last

    # Forwards

    def _first(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        self.given = (*given, *named.items())
        return self.layers[0](x, *given, **named)

    def _second(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        self._enter(x, given, named, self._passed_second)
        self.starts.append(self.ledger.begin())
        return self.layers[1](x, *given, **named)

    def _third(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        self.spans.append(self.ledger.end(self.starts[0]))
        self._enter(x, given, named, self._passed_third)
        self.starts.append(self.ledger.begin())
        return self.layers[2](x, *given, **named)

    def _others(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        """`x` itself, and the costs of the layers that are left out."""
        self.spans.append(self.ledger.end(self.starts[1]))
        self._enter(x, given, named, self._passed_others)
        second, third = self.spans
        kept = self.ledger.kept(*self.starts)
        sizes = sum(entry.size for entry in kept), sum(entry.size for entry in kept if entry.cast)
        nested = any(entry.repeat is not None for entry in kept)
        if second != third or sizes != (third.live, third.casts) or nested or len(set(self.learns)) > 1:
            raise Unlike
        for entry in kept:
            entry.repeat = self.repeat
        self.ledger.repeat(third, self.times)
        return x

    def _last(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        self._require_same(given, named)
        self.given = None  # nothing lives longer than it would
        return self.layers[-1](x, *given, **named)

    def _enter(self, x: Tensor, given: Any, named: Any, passed: Callable[[Tensor], None]) -> None:
        """What was given is the same, and `passed` is called when the backward pass has the whole gradient of `x`."""
        self._require_same(given, named)
        self.learns.append(x.requires_grad)
        if x.requires_grad:
            x.register_hook(passed)

    def _require_same(self, given: Any, named: Any) -> None:
        found = (*given, *named.items())
        if len(found) != len(self.given) or not all(map(_is_same, found, self.given)):
            raise Unlike

    # Backwards

    def _passed_others(self, _: Tensor) -> None:
        """The last layer is done, the third comes."""
        if len(self.spans) != 2:  # a second time
            raise Unlike
        self.repeat.passed = True
        self.starts.append(self.ledger.begin())

    def _passed_third(self, _: Tensor) -> None:
        self._end_back(3)
        self.starts.append(self.ledger.begin())

    def _passed_second(self, _: Tensor) -> None:
        self._end_back(4)
        third, second = self.spans[2:]
        if second != third or second.live != -self.repeat.died:
            raise Unlike
        self.repeat.passed = False
        self.ledger.repeat(second, self.times)

    def _end_back(self, number: int) -> None:
        if len(self.starts) != number:
            raise Unlike
        self.spans.append(self.ledger.end(self.starts[-1]))


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) or type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, _PLAIN) and one == other


# Which are alike


def alike(layers: Layers) -> bool:
    """Whether layers have the same modules, settings, sizes and dtypes, and the same of them learn. What cannot be
    compared must be the same object."""
    first = _signature(layers[0])
    return len(set(map(id, layers))) == len(layers) and all(_signature(layer) == first for layer in layers)


def _signature(layer: nn.Module) -> Any:
    names = {id(module): name for name, module in layer.named_modules()}
    return [
        (name, type(module), [(key, _value(value, names)) for key, value in sorted(vars(module).items())])
        for name, module in layer.named_modules()
    ]


def _value(value: Any, names: dict[int, str]) -> Any:
    """What a value is compared by; a module of the layer by its name there."""
    inner = partial(_value, names=names)
    if id(value) in names:
        return "module", names[id(value)]
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return type(value), value.shape, value.dtype, value.requires_grad, bool(value._backward_hooks)
    if isinstance(value, list | tuple):
        return type(value), [inner(one) for one in value]
    if isinstance(value, set | frozenset):
        return type(value), {repr(inner(one)) for one in value}
    if isinstance(value, dict):
        return type(value), [(inner(key), inner(one)) for key, one in value.items()]
    if isinstance(value, partial):
        return inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, types.MethodType):
        return value.__func__, inner(value.__self__)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__code__, inner(cells), inner(value.__defaults__), inner(value.__kwdefaults__)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), [inner(getattr(value, one.name)) for one in fields(value)]
    return "object", id(value)
