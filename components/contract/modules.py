"""What every part that is a module must satisfy, whatever its role."""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..roles import Part
from ..types import Loss, Padded
from .outcome import Check, NotAsked
from .ways import Value, Way, batch, difference, differences, lively, pieces, tensors


class Modules:
    """The checks of one part.

    Args:
        part: in any state; it is not changed.
        ways: gives those in which it is called.
        again: builds another one like it; None: what needs one is not asked.
        ready: makes a copy that can be called.
        renew: the same for one whose state was loaded, where that does not hold what `ready` did.
    """

    def __init__(
        self,
        part: Part,
        ways: Callable[[Any], list[Way]],
        again: Callable[[], Any] | None,
        ready: Callable[[Any], Any] | None = None,
        renew: Callable[[Any], Any] | None = None,
    ) -> None:
        self.given, self.again = part, again
        self._ways, self._ready, self._renew = ways, ready or copy.deepcopy, renew or (lambda other: other)

    @functools.cached_property
    def part(self) -> Any:
        """As it is, ready to be called."""
        return self._ready(self.given)

    @functools.cached_property
    def ways(self) -> list[Way]:
        return self._ways(self.part)

    @functools.cached_property
    def subject(self) -> Any:
        """A copy that shows what a fresh part may hide."""
        return lively(self.part)

    def checks(self) -> Iterator[Check]:
        """All but the first two, `silent` and `runs`."""
        yield "inputs", self.inputs
        yield "deterministic", self.deterministic
        yield "padding", self.padding
        yield "rows", self.rows
        yield "alone", self.alone
        yield "gradients", self.gradients
        yield "learns", self.learns
        yield "saves", self.saves
        yield "copies", self.copies
        yield "bfloat16", self.bfloat16
        yield "autocast", self.autocast
        yield "meta", self.meta
        yield "fake", self.fake

    def runs(self) -> str | None:
        for way in self.ways:
            for name, value in self._quietly(self.subject, way).items():
                if not bool(tensors(value).isfinite().all()) and isinstance(value, Loss):
                    return f"{way.name}: {name or 'its output'} is not finite"
        return None

    def silent(self) -> str | None:
        part = copy.deepcopy(self.part)
        heard: list[str] = []

        def hear(name: str) -> Callable[..., Any]:
            return lambda *_, **__: heard.append(f"calls self.{name}")

        def look(name: str) -> property:
            def get(_: Any) -> Any:
                heard.append(f"reads self.{name}")
                raise AttributeError(f"a part has no {name}")

            return property(get)

        watched = {name: hear(name) for name in ("log", "log_dict")}
        watched |= {name: look(name) for name in ("trainer", "global_step", "current_epoch", "logger", "fabric")}
        part.__class__ = type(type(part).__name__, (type(part),), watched)
        try:
            ways = self.ways
        except Exception:  # `runs` says so
            return None
        for way in ways:
            part.train(way.learns)
            try:
                way(part, batch(way.rows))
            except Exception:
                if not heard:
                    return None  # `runs` says so
            if heard:
                return f"{way.name} {heard[0]}: return losses and let the task log, and pass in what it needs to know"
        return None

    def inputs(self) -> str | None:
        for way in self.ways:
            given = batch(way.rows)
            kept = copy.deepcopy(given)
            self._quietly(self.subject, way, given)
            for number, (before, after) in enumerate(zip(kept, given, strict=True)):
                for one, other in zip(_leaves(before), _leaves(after), strict=True):
                    if not torch.equal(one, other):
                        return (
                            f"{way.name} changes its input {number + 1} in place: work on a copy (masked_fill, clone)"
                        )
        return None

    def deterministic(self) -> str | None:
        for way in self.ways:
            first = self._quietly(self.subject, way)
            with torch.no_grad():  # the state of random numbers is not the same
                second = first if way.draws else dict(way.call(self.subject, *batch(way.rows)))
            words = differences(second, first, way, 0.0)
            if words:
                return f"{words} when it is called again in evaluation mode: draw random numbers in training only"
        return None

    def padding(self) -> str | None:
        advice = "zero or mask what is padding before steps meet (Padded.zeroed(), key_mask), in each layer"
        for way in self.ways:
            expected = self._quietly(self.subject, way)
            for soil in (1, 2):
                found = self._quietly(self.subject, way, batch(way.rows, soil))
                words = differences(found, expected, way, way.tolerance)
                if words:
                    return f"{words} when other values stand in the padding: {advice}"
        return None

    def rows(self) -> str | None:
        advice = "nothing may be computed over the first dimension (batch norm, means, a view that mixes it)"
        for way in self.ways:
            if any(isinstance(value, Loss) for value in self._quietly(self.subject, way).values()):
                continue
            expected = self._quietly(self.subject, way)
            # The same lengths, another content in all rows but the first two.
            changed = [row if number < 2 else tuple(_other(x) for x in row) for number, row in enumerate(way.rows)]
            found = self._quietly(self.subject, way, batch(changed))
            for name, value in expected.items():
                for row in (0, 1):
                    words = difference(pieces(found[name], row), pieces(value, row), way.tolerance)
                    if words:
                        return f"{way.name}, row {row}: {words} when another row of the batch changes: {advice}"
        return None

    def alone(self) -> str | None:
        for way in self.ways:
            # With a graph here and without one there: parts may take another path for each.
            with torch.set_grad_enabled(way.learns):
                together = way(self.subject, batch(way.rows))
            each = [self._quietly(self.subject, way, batch([row])) for row in way.rows]
            for name, value in together.items():
                if isinstance(value, Loss):
                    totals: Any = [one[name] for one in each]
                    total, count = (
                        torch.stack(list(each)).sum() for each in zip(*((t.total, t.count) for t in totals))
                    )
                    words = difference(value.total, total, way.tolerance)
                    words = words or difference(value.count.float(), count.float(), 1e-6)
                    if words:
                        return f"{way.name}, {name}: the sum over rows one at a time {words}: sum over real steps only"
                    continue
                for row in range(len(way.rows)):
                    words = difference(pieces(value, row), pieces(each[row][name], 0), way.tolerance)
                    if words:
                        return (
                            f"{way.name}, row {row} of {len(way.rows)}: {words} from the row alone, without padding: "
                            "nothing may depend on how long the other rows are"
                        )
        return None

    def gradients(self) -> str | None:
        for way in self.ways:
            if not way.learns:
                continue
            goals = _goals(self._quietly(self.subject, way))
            together = self._gradients(way, batch(way.rows, 1), goals, range(len(way.rows)))
            names = list(together[0])
            sums: dict[str, Tensor] = {}
            for row in range(len(way.rows)):
                found, flows = self._gradients(way, batch([way.rows[row]]), goals, [row])
                for name in names:
                    sums[name] = sums.get(name, torch.zeros(())) + found[name]
                for number, (mine, other) in enumerate(zip(flows, together[1], strict=True)):
                    if mine is None or other is None:
                        continue
                    length = mine.shape[1]
                    words = difference(other[row, :length], mine[0], 20 * way.tolerance)
                    cause = _cause(other[row], mine)
                    if words:
                        where = f"{way.name}, row {row}: the gradient of input {number + 1}"
                        return f"{where} {words} in a padded batch{cause}"
                    if other[row, length:].any():
                        return f"{way.name}, row {row}: a gradient flows into the padding of input {number + 1}{cause}"
            for name in names:
                words = difference(together[0][name], sums[name], 50 * way.tolerance)
                if words:
                    cause = _cause(together[0][name], sums[name])
                    return (
                        f"{way.name}: the gradient of {name} {words} in a padded batch, against its rows alone{cause}"
                    )
        return None

    def learns(self) -> str | None:
        part = lively(self.part).train()
        waiting = [(name, parameter) for name, parameter in part.named_parameters() if parameter.requires_grad]
        for seed in range(4):  # what dropping layers, masks or a ReLU leave out of one step
            for way in self.ways:
                if way.learns:
                    total = sum(_objective(value) for value in way(part, batch(way.rows), seed).values())
                    if isinstance(total, Tensor) and total.requires_grad:
                        total.backward()
            waiting = [(name, p) for name, p in waiting if p.grad is None or not bool(p.grad.any())]
            if not waiting:
                break
        for name, parameter in waiting:
            exempt = any(f"learns {above}" in self.part.exempt for above in _above(name))
            if not exempt:
                kind = "no gradient" if parameter.grad is None else "a gradient that is zero"
                return (
                    f"{name} gets {kind}: look for detach(), no_grad, .data or a result that is not used on its way "
                    f"(or say why in `exempt`, under 'learns {name}')"
                )
            if parameter.grad is None:
                return f"{name} gets no gradient in training, not even zero: DDP and FSDP wait for it (add 0 * it)"
        for name, parameter in part.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"{name} gets a gradient that is not finite{_cause(parameter.grad)}"
        return None

    def saves(self) -> str | None:
        """A part that has trained a little, saved, and read into another one."""
        part = lively(self.part).train()
        with torch.no_grad():
            for way in self.ways:
                if way.learns:
                    way(part, batch(way.rows))
        part.eval()
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        torch.manual_seed(2)
        other = self._renew(self.again()) if self.again is not None else _scrambled(self.part)
        other.load_state_dict(torch.load(file, weights_only=True))
        other.eval()
        for way in self.ways:
            words = differences(self._quietly(other, way), self._quietly(part, way), way, 1e-6)
            if words:
                return f"{words} behind saving and loading: {_lost(part, other)}"
        return None

    def copies(self) -> str | None:
        twin = copy.deepcopy(self.subject)
        for way in self.ways:
            words = differences(self._quietly(twin, way), self._quietly(self.subject, way), way, 0.0)
            if words:
                return f"{words} in a deep copy of it"
        shared = {p.data_ptr() for p in self.subject.parameters()} & {p.data_ptr() for p in twin.parameters()}
        return "a deep copy shares parameters with it" if shared - {0} else None

    def bfloat16(self) -> str | None:
        part = copy.deepcopy(self.subject).to(torch.bfloat16)
        for way in self.ways:
            given = tuple(_cast(x) for x in batch(way.rows))
            found = self._quietly(part, way, given)
            words = self._close(way, found, "bfloat16")
            if words:
                return words
            for name, value in found.items() if way.same_dtype else ():
                if isinstance(value, Padded) and value.data.dtype != torch.bfloat16:
                    return f"{way.name}{', ' + name if name else ''} is {value.data.dtype} in a model of bfloat16"
        return None

    def autocast(self) -> str | None:
        for way in self.ways:
            self.subject.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(way.learns):
                found = way(self.subject, batch(way.rows))
            words = self._close(way, found, "autocast to bfloat16")
            if words:
                return words
            total = sum(_objective(value) for value in found.values())
            if not isinstance(total, Tensor) or not total.requires_grad:
                continue
            total.backward()
            for name, parameter in self.subject.named_parameters():
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    return f"the gradient of {name} is not finite in autocast to bfloat16"
        return None

    def meta(self) -> str | None:
        if self.again is None:
            raise NotAsked("it needs to build another one: give what builds the part")
        with torch.device("meta"):
            part = self.again()
        for name, value in [*part.named_parameters(), *part.named_buffers()]:
            if not value.is_meta:
                return f"{name} is on {value.device} where the part is built on the meta device: name no device"
        real = dict(self.given.named_parameters())
        for name, value in part.named_parameters():
            if name not in real or value.shape != real[name].shape:
                return f"{name} has another shape where the part is built on the meta device"
        return None

    def fake(self) -> str | None:
        """As `voxzoo check` runs a task: data without values, lengths with values."""
        part = copy.deepcopy(self.part).to("meta")
        for way, train in itertools.product((way for way in self.ways if way.learns), (True, False)):
            part.train(train)
            expected = way(copy.deepcopy(self.part).train(train), batch(way.rows))
            given = tuple(_on_meta(x) for x in batch(way.rows))
            try:
                found = way(part, given)
            except Exception as error:
                first = str(error).splitlines()[0] if str(error) else ""
                if "device" in first and "meta" in first:
                    return (
                        f"{way.name} mixes devices ({type(error).__name__}: {first[:160]}): lengths may lie on another "
                        "device than data: use states.mask or lengths.to(data.device)"
                    )
                return (
                    f"{way.name} needs values ({type(error).__name__}: {first[:160]}): no item(), tolist(), bool() or "
                    "boolean index of data; lengths of a `Padded` have values"
                )
            if found.keys() != expected.keys():
                return f"{way.name} gives {', '.join(found)} without values, {', '.join(expected)} with them"
            for name, value in expected.items():
                shape, wanted = tuple(tensors(found[name]).shape), tuple(tensors(value).shape)
                if shape != wanted and not way.bound:
                    return (
                        f"{way.name}: {name or 'its output'} has the shape {shape} without values, {wanted} with them"
                    )
        return None

    def _quietly(self, part: Any, way: Way, given: Sequence[Any] | None = None) -> dict[str, Value]:
        with torch.no_grad():
            return way(part, batch(way.rows) if given is None else given)

    def _gradients(
        self, way: Way, given: Sequence[Any], goals: dict[str, list[Tensor]], rows: Sequence[int]
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """Of all parameters, and of the floating inputs, under one goal for each row."""
        part = self.subject
        part.zero_grad(set_to_none=True)
        leaves: list[Tensor | None] = []
        moved = []
        for x in given:
            if isinstance(x, Padded) and x.data.is_floating_point():
                x = x.with_data(x.data.clone().requires_grad_())
                leaves.append(x.data)
            else:
                leaves.append(None)
            moved.append(x)
        total: Any = 0
        for name, value in way(part, moved).items():
            if isinstance(value, Loss):
                total = total + value.total
            elif tensors(value).is_floating_point():
                for place, row in enumerate(rows):
                    total = total + (pieces(value, place) * goals[name][row]).sum()
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
        found = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in part.named_parameters()
            if p.requires_grad
        }
        return found, [None if leaf is None or leaf.grad is None else leaf.grad for leaf in leaves]

    def _close(self, way: Way, found: dict[str, Value], kind: str) -> str | None:
        expected = self._quietly(self.subject, way)
        for name, value in expected.items():
            low, high = tensors(found[name]).detach(), tensors(value)
            if not high.is_floating_point() or way.bound or way.chooses:
                continue
            what = f"{way.name}{', ' + name if name else ''} in {kind}"
            for row in range(len(way.rows)) if not isinstance(value, Loss) else (None,):
                one, two = (low, high) if row is None else (pieces(found[name], row).detach(), pieces(value, row))
                if one.shape != two.shape:
                    return f"{what}: row {row} has the shape {tuple(one.shape)} instead of {tuple(two.shape)}"
                if not bool(one.isfinite().all()):
                    return f"{what} is not finite"
                off = float((one.double() - two.double()).norm() / two.double().norm().clamp(min=1e-3))
                if off > 0.25:
                    where = "" if row is None else f", row {row},"
                    return f"{what}{where} is off by {off:.0%}: compute what needs digits in float32"
        return None


def _cause(*gradients: Tensor) -> str:
    """What makes gradients that are not finite, where one of them is not."""
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        return ""
    return " (not finite: such as a softmax whose inputs are all masked)"


def _above(name: str) -> list[str]:
    """A parameter and the modules that hold it: `a.b.c`, `a.b`, `a`."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]


def _objective(value: Value) -> Any:
    """A number that depends on all that came out."""
    tensor = tensors(value)
    if isinstance(value, Loss):
        return value.total
    if not tensor.is_floating_point():
        return 0
    real = value.zeroed().data if isinstance(value, Padded) else tensor
    goal = torch.randn(real.shape, generator=torch.Generator().manual_seed(3))
    return (real.float() * goal).sum()


def _goals(values: dict[str, Value]) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    goals = {}
    for name, value in values.items():
        if not isinstance(value, Loss):
            rows = [pieces(value, row) for row in range(len(tensors(value)))]
            goals[name] = [torch.randn(row.shape, generator=generator) for row in rows]
    return goals


def _leaves(value: Any) -> list[Tensor]:
    return [value.data, value.lengths] if isinstance(value, Padded) else [value]


def _other(x: Tensor) -> Tensor:
    """Another content of the same kind: the steps in reverse."""
    return x.flip(0) * (-1 if x.is_floating_point() else 1) if x.dim() else x


def _cast(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Padded) else value


def _on_meta(value: Any) -> Any:
    if isinstance(value, Padded):
        return Padded(value.data.to("meta"), value.lengths)
    return value.to("meta")


def _scrambled(part: Any) -> Any:
    """A copy whose saved state is another."""
    part = copy.deepcopy(part)
    with torch.no_grad():
        for value in part.state_dict().values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.normal_()
    return part


def _lost(part: Any, other: Any) -> str:
    saved = part.state_dict()
    theirs = dict(other.named_buffers())
    lost = [
        name
        for name, value in part.named_buffers()
        if name not in saved and (name not in theirs or not torch.equal(theirs[name], value))
    ]
    if lost:
        return f"the buffer {lost[0]} is not saved (persistent=False); save it, or make it from the arguments alone"
    return "what it depends on is neither a parameter nor a saved buffer"
