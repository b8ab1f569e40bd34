"""The ways in which a part is called, on small random rows; and how what comes out is compared.

Letters: B batch, T steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Loss, Padded
from .outcome import Broken

Row = tuple[Tensor, ...]
"""The inputs of one row, unpadded: (T, ...), or () for what a row has one of, such as a language."""
SOIL = 3
"""Steps that a batch with something in its padding is longer than its longest row."""
Value = Padded | Loss | Tensor
"""What comes out: a padded batch, the sum of a loss, or (B, ...) of each row."""


@dataclass(frozen=True)
class Way:
    """One way to call a part.

    Attributes:
        name: of the method.
        rows: of unequal lengths, at least three.
        call: (part, input of all rows, ...) -> name -> what came out.
        learns: whether gradients flow through it.
        bound: lengths that come out depend on content; on meta tensors they are an upper bound.
        same_dtype: what comes out has the dtype of what goes in.
        draws: random numbers are drawn also in evaluation mode, such as crops.
        chooses: numbers hang on choices, such as of codes, that coarser weights turn over: not asked in half precision.
        tolerance: how far numbers may be off, as a part of the largest one.
    """

    name: str
    rows: Sequence[Row]
    call: Callable[..., Mapping[str, Value]]
    learns: bool = True
    bound: bool = False
    draws: bool = False
    same_dtype: bool = False
    chooses: bool = False
    tolerance: float = 2e-5

    def __call__(self, part: Any, inputs: Sequence[Any], seed: int = 0) -> dict[str, Value]:
        torch.manual_seed(seed)  # of crops and dropout
        return dict(self.call(part, *inputs))


def returned(found: Any, kind: type, form: str, method: str = "forward") -> Any:
    """What a method gave, where it is of its type.

    Args:
        form: who returns what, such as `an Adaptor returns Adapted(states, losses)`.

    Raises:
        Broken: it is of another type.
    """
    if not isinstance(found, kind):
        raise Broken(f"{method} returned {type(found).__name__}; {form}")
    return found


def losses_of(found: Any, role: str, method: str) -> dict[str, Any]:
    """A map of losses, or Broken."""
    form = f"{role} returns a dict of Loss(total, count)"
    for name, value in returned(found, dict, form, method).items():
        returned(value, Loss, form, f"{method}, {name!r},")
    return found


def batch(rows: Sequence[Row], soil: int | None = None) -> tuple[Any, ...]:
    """Rows -> a `Padded` for each input (or (B,) where a row has one).

    Args:
        soil: seed of what stands in the padding, which is `SOIL` steps longer then; None: zeros.
    """
    return tuple(_column(list(column), soil) for column in zip(*rows, strict=True))


def _column(values: list[Tensor], soil: int | None) -> Any:
    if values[0].dim() == 0:
        return torch.stack(values)
    padded = Padded.from_list(values)
    if soil is None:
        return padded
    generator = torch.Generator().manual_seed(soil)
    shape = (len(padded), padded.data.shape[1] + SOIL, *padded.data.shape[2:])
    if padded.data.is_floating_point():
        dirt = 30 * torch.randn(shape, generator=generator)
    else:  # ids that there are
        known = torch.cat([value.flatten() for value in values])
        dirt = known[torch.randint(len(known), shape, generator=generator)]
    longer = Padded(dirt.to(padded.data.dtype), padded.lengths)
    data = longer.data.clone()
    data[:, : padded.data.shape[1]] = padded.data
    mask = longer.mask.view(*longer.mask.shape, *[1] * (data.dim() - 2))
    return longer.with_data(torch.where(mask, data, longer.data))


def normal(lengths: Sequence[int], *width: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Normal numbers, (T, *width) for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(length, *width, generator=generator) for length in lengths]


def numbers(lengths: Sequence[int], low: int, high: int, seed: int = 0) -> list[Tensor]:
    """Ids in low..high - 1, (T,) int64 for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(low, high, (length,), generator=generator) for length in lengths]


def lively(part: Any) -> Any:
    """A copy in evaluation mode with noise on all parameters: what is zero or one at the start hides mistakes."""
    part = copy.deepcopy(part).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in part.parameters():
            size = 0.2 * parameter.float().square().mean().sqrt() + 0.02
            parameter += (size * torch.randn(parameter.shape, generator=generator)).to(parameter)
    return part


def tensors(value: Value) -> Tensor:
    """Of a value, what holds its numbers."""
    return value.data if isinstance(value, Padded) else value.total if isinstance(value, Loss) else value


def pieces(value: Value, row: int) -> Tensor:
    """The real steps of one row."""
    if isinstance(value, Padded):
        return value.data[row, : int(value.lengths[row])]
    assert isinstance(value, Tensor)
    return value[row]


def difference(found: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """None where two tensors are equal to `tolerance` times the largest number; else in words."""
    if found.shape != expected.shape:
        return f"has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if not found.numel():
        return None
    if not found.is_floating_point():
        wrong = int((found != expected).sum())
        return f"differs at {wrong} of {found.numel()} places" if wrong else None
    found, expected = found.detach().double(), expected.detach().double()
    if not bool(found.isfinite().all()):
        return "is not finite" if bool(expected.isfinite().all()) else None
    off = (found - expected).abs()
    if float(off.max()) <= tolerance * max(float(expected.abs().max()), 0.1):
        return None
    step = f" at step {int(off.flatten(1).amax(1).argmax())}" if off.dim() > 1 else ""
    step = f" at step {int(off.argmax())}" if off.dim() == 1 and len(off) > 1 else step
    return f"is off by up to {float(off.max()):.2g}{step} (numbers of up to {float(expected.abs().max()):.2g})"


def differences(found: Mapping[str, Value], expected: Mapping[str, Value], way: Way, tolerance: float) -> str | None:
    """What differs first between two answers of the same rows."""
    if found.keys() != expected.keys():
        return f"{way.name} gives {', '.join(found)} instead of {', '.join(expected)}"
    for name, value in expected.items():
        other = found[name]
        for row in range(len(way.rows)) if not isinstance(value, Loss) else ():
            words = difference(pieces(other, row), pieces(value, row), tolerance)
            if words:
                return f"{_of(way, name)}, row {row}: {words}"
        if isinstance(value, Loss):
            assert isinstance(other, Loss)
            words = difference(other.total, value.total, tolerance) or difference(other.count, value.count, 1e-6)
            if words:
                return f"{_of(way, name)}: {words}"
    return None


def _of(way: Way, name: str) -> str:
    return way.name if name in ("", way.name) else f"{way.name}, {name}"
