"""By which law a cost grows: from its values at three sizes, each the same factor above the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_NOISE = 0.1  # of the largest value: what grows by less is called constant
_PLAUSIBLE = (0.3, 3.0)  # exponents; others come of noise


@dataclass(frozen=True)
class Law:
    """value = fixed + factor x size^exponent.

    Attributes:
        exponent: 0 for a constant; None where the values say none (they fall, or rise and fall).
    """

    fixed: float
    factor: float
    exponent: float | None

    def at(self, size: float) -> float | None:
        """The value expected at a size."""
        return None if self.exponent is None else self.fixed + self.factor * size**self.exponent

    def __str__(self) -> str:
        if self.exponent is None:
            return "unclear"
        if self.exponent == 0:
            return "constant"
        if 0.8 <= self.exponent <= 1.2:
            return "linear"
        return f"size^{self.exponent:.1f}"


def law(sizes: Sequence[float], values: Sequence[float]) -> Law:
    """Of three sizes and the values there.

    What does not depend on the size falls out of the differences: with sizes n, rn, r^2 n the second difference is
    r^exponent times the first.

    Raises:
        ValueError: not three sizes, each the same factor above the one before.
    """
    if len(sizes) != 3 or len(values) != 3:
        raise ValueError(f"three sizes and values are needed; got {len(sizes)} and {len(values)}")
    ratio = sizes[1] / sizes[0]
    if ratio <= 1 or not math.isclose(sizes[2] / sizes[1], ratio, rel_tol=0.01):
        raise ValueError(f"sizes must grow by one factor; got {', '.join(f'{size:g}' for size in sizes)}")
    first, second = values[1] - values[0], values[2] - values[1]
    if math.isfinite(max(values)) and abs(values[2] - values[0]) <= _NOISE * max(map(abs, values)):
        return Law(sum(values) / 3, 0.0, 0.0)
    if not (first > 0 and second > 0 and math.isfinite(first + second)):
        return Law(values[0], 0.0, None)
    exponent = math.log(second / first) / math.log(ratio)
    if not _PLAUSIBLE[0] <= exponent <= _PLAUSIBLE[1]:
        return Law(values[0], 0.0, None)
    if 0.8 <= exponent <= 1.2:  # of a straight line the slope over both steps is the steadier
        exponent = 1.0
    factor = (values[2] - values[0]) / (sizes[2] ** exponent - sizes[0] ** exponent)
    return Law(values[0] - factor * sizes[0] ** exponent, factor, exponent)
