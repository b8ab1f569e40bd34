"""LayerDrop (Fan et al. 2020, arXiv 1909.11556): layers left out of a training step at random.

Both ways keep the processes of DDP and FSDP in step, which wait for every parameter and every call.

Letters: B batch, T steps, D model dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .alike import Layers, in_turn


def run_layers(layers: Layers, x: Tensor, *given: Any, drop: float) -> Tensor:
    """(B, T, D) through layers that each take it and `given`, left out with probability `drop` (0 outside training).

    A layer has run by then: every rank issues the same collectives and every parameter gets a gradient (zero when
    dropped), and reading the coin costs no device synchronisation.
    """
    for layer in in_turn(layers):
        y = layer(x, *given)
        if drop > 0 and y is not x:
            y = torch.where(torch.rand((), device=y.device) < drop, x, y)
        x = y
    return x


def left_out(probability: float, training: bool) -> bool:
    """Whether a block that can pass on what it gets is left out this time. The coin is drawn on the CPU."""
    return training and probability > 0 and bool(torch.rand((), device="cpu") < probability)


def pass_on(block: nn.Module, x: Tensor) -> Tensor:
    """`x` as a block that is left out gives it: unchanged, with a zero gradient for each of its parameters."""
    if torch.is_grad_enabled():
        x = x + 0 * sum(p.flatten()[0] for p in block.parameters() if p.requires_grad)
    return x
