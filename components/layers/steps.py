"""A batch in which no row has a step: convolutions cannot read it. Letters: B batch, T steps."""

from __future__ import annotations

from torch import nn

from ..types import Padded


def refuse_no_steps(part: nn.Module, given: Padded, what: str) -> None:
    """Refuse (B, 0, ...) data. A row of length 0 in a batch that has steps is fine.

    Args:
        part: who reads it, for the message.
        given: what it is given.
        what: what an empty row comes from, for the message.

    Raises:
        ValueError: T is 0.
    """
    if given.data.shape[1] == 0:
        raise ValueError(f"{type(part).__name__} got 0 steps: {what}")
