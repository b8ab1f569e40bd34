"""Loops over blocks and layers of which many are alike: a simulation of memory and FLOPs runs few of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from torch import nn

Block = TypeVar("Block")


class Tally(Protocol):
    """What counts the operations of a simulation."""

    flops: int


Layers = Sequence[nn.Module] | nn.ModuleList
Stacks = Callable[[Layers], Iterable[Any]]
"""Gives what is called instead of the layers of a stack."""

_tally: Tally | None = None
_stacks: Stacks | None = None


@contextmanager
def counted_once(tally: Tally, stacks: Stacks | None = None) -> Iterator[None]:
    """Inside, `each` leaves out blocks like those before them, and adds what they cost to the tally; `in_turn` gives
    what `stacks` gives."""
    global _tally, _stacks
    before, _tally, _stacks = (_tally, _stacks), tally, stacks
    try:
        yield
    finally:
        _tally, _stacks = before


def in_turn(layers: Layers) -> Iterable[Any]:
    """The layers of a stack. Each is called once, with what the one before gave and with the same further arguments;
    nothing else reads what is between them. One that is left out of a simulation gives back what it got."""
    return layers if _stacks is None else _stacks(layers)


def each(blocks: Sequence[Block], kind: Callable[[Block], Hashable]) -> Iterator[Block]:
    """The blocks in their order; within `counted_once` only what may take other memory than what has run.

    Args:
        kind: blocks of one kind have tensors of the same shapes. What one leaves is still there when the next begins,
            so a kind runs once behind each other kind, and one is left out only where the last to run was like it.
    """
    tally = _tally
    if tally is None:
        yield from blocks
        return
    costs: dict[Hashable, int] = {}
    seen: set[tuple[Hashable, Hashable]] = set()
    before: Hashable = None
    ran: Hashable = None
    for block in blocks:
        this = kind(block)
        if this == ran and (before, this) in seen:
            tally.flops += costs[this]
        else:
            start = tally.flops
            yield block
            costs[this], ran = tally.flops - start, this
        seen.add((before, this))
        before = this
