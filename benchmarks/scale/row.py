"""One row: what is done at which sizes, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Costs = Mapping[str, float]
"""Name of a quantity, with its unit at the end -> value."""


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        name: for the command line.
        what: in a few words.
        measure: size and an empty folder -> costs.
        unit: of a size.
        sizes: three, each the same factor above the one before; or one, where nothing grows.
        full: the same, up to the size that `target` is about.
        target: the size that the aims are for.
        aims: quantity -> the most that it should be at `target`, or at the only size.
    """

    name: str
    what: str
    measure: Callable[[int, Path], Costs]
    unit: str = ""
    sizes: Sequence[int] = (1,)
    full: Sequence[int] = (1,)
    target: int = 1
    aims: Costs | None = None
