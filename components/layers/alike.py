"""Loops over blocks of which many are alike: a simulation of memory and FLOPs runs few of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

Block = TypeVar("Block")


class Tally(Protocol):
    """What counts the operations of a simulation."""

    flops: int


_tally: Tally | None = None


@contextmanager
def counted_once(tally: Tally) -> Iterator[None]:
    """Inside, `each` leaves out blocks like those before them, and adds what they cost to the tally."""
    global _tally
    before, _tally = _tally, tally
    try:
        yield
    finally:
        _tally = before


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
