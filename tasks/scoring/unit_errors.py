"""Discrete units against reference units. Letters: U units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Agreement:
    """Two sequences of units, runs of equal units merged.

    Attributes:
        errors: insertions, deletions and substitutions that make one of the other; 0: they are equal.
        size: units of the reference.
    """

    errors: int
    size: int


def agreement(units: Sequence[int], reference: Sequence[int]) -> Agreement:
    """Compare units with those of a reference; how long each lasts does not count.

    >>> agreement([3, 3, 5, 7], [3, 5, 5, 8, 8])
    Agreement(errors=1, size=3)
    """
    ours, theirs = merged(units), merged(reference)
    row = list(range(len(theirs) + 1))
    for place, unit in enumerate(ours, 1):
        above, row[0] = row[0], place
        for column, other in enumerate(theirs, 1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (unit != other))
    return Agreement(row[-1], len(theirs))


def merged(units: Sequence[int]) -> list[int]:
    """Units without repetitions: how long each lasts is no part of what is said."""
    return [unit for unit, _ in groupby(units)]
