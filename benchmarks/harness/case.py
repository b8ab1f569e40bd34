"""One comparison: what is run, what it has to equal, and how far two results are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PEER, OURS = "transformers", "voxzoo"


class Unequal(RuntimeError):
    """The two sides did not compute the same: their times say nothing."""


@dataclass(frozen=True)
class Other:
    """Another peer beside transformers, in the same turns.

    Attributes:
        run: as `Case.peer`; None: it cannot be run here, and `note` says why.
        exact: its result has to be equal, as that of transformers; False: it computes with fewer bits, and the row says
            how many of its results are equal.
        tolerance: of what may differ in an exact one, as `Case.tolerance`.
        note: a word for the row.
    """

    run: Callable[[], Any] | None
    exact: bool = True
    tolerance: float = 1e-4
    note: str = ""


@dataclass
class Case:
    """One comparison.

    Attributes:
        name: the workload in a few words.
        peer, ours: run it once and return what is compared: tensors, numbers, or lists of them. Integers (ids) must be
            equal, everything else may differ by `tolerance`.
        amount, unit: what one run processes, for the rate in the table.
        least, aim: ratio of the peer's time to ours that is expected, and hoped for.
        memory_aim: most of the peer's extra memory that ours should take.
        check: what peer and ours compute for the comparison, where the peer is timed on the same work in another order.
        memory: measure memory (two more runs).
        rounds: most rounds of a long case; None: as many as asked for.
        steps: how many times a run goes over its weights (of decoding: the tokens), see `limits.limit_of`.
        others: name -> another peer.
        others_aim: ratio to the exact ones of them that is hoped for.
    """

    name: str
    peer: Callable[[], Any]
    ours: Callable[[], Any]
    amount: float
    unit: str = "audio s"
    tolerance: float = 1e-4
    least: float = 1.0
    aim: float | None = None
    memory_aim: float | None = None
    check: tuple[Callable[[], Any], Callable[[], Any]] | None = None
    memory: bool = True
    rounds: int | None = None
    steps: int = 1
    others: Mapping[str, Other] = field(default_factory=dict)
    others_aim: float | None = None

    def sides(self) -> dict[str, Callable[[], Any]]:
        """Name -> what is timed; the peers first."""
        others = {name: other.run for name, other in self.others.items() if other.run is not None}
        return {PEER: self.peer, **others, OURS: self.ours}


def difference(one: Any, other: Any, exact: bool = True) -> float:
    """Largest absolute difference of two results; infinite where shapes, integers or structures differ.

    Args:
        exact: integers must be equal; False in low precision, where near-ties fall either way: they are not compared.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return math.inf
        if not one.is_floating_point():
            return 0.0 if not exact or torch.equal(one, other) else math.inf
        gap = (one.float() - other.float()).abs().max().item() if one.numel() else 0.0
        return math.inf if math.isnan(gap) else gap
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return math.inf
        return max((difference(a, b, exact) for a, b in zip(one, other)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) if math.isfinite(one - other) else math.inf
    return 0.0 if type(one) is type(other) and one == other else math.inf


def equal_share(one: Any, other: Any) -> float:
    """Of two lists of the same length, the share of places whose integers (ids) are equal; of rows of states 1 less
    their relative difference."""
    if len(one) != len(other):
        return 0.0
    shares = [_alike(a, b) for a, b in zip(one, other)]
    return sum(shares) / max(len(shares), 1)


def _alike(one: Any, other: Any) -> float:
    if isinstance(one, Tensor) and one.is_floating_point() and one.shape == other.shape:
        return max(0.0, 1 - ((one - other).norm() / one.norm().clamp(min=1e-12)).item())
    return float(difference(one, other) == 0)
