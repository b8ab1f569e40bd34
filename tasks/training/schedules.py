"""Learning-rate schedules, as factors on the optimizer's own rate. Called with `(optimizer, total_steps=...)`."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ...components.errors import UserError

OF_ANY_LENGTH = frozenset({"constant", "inverse_sqrt", "exponential"})
"""Schedules whose rate at a step does not depend on how long the run is."""


def inverse_sqrt(
    optimizer: Optimizer,
    total_steps: int | None = None,
    *,
    warmup_steps: int = 1000,
    warmup_share: float | None = None,
) -> LambdaLR:
    """Linear warm-up to the full rate, then rate x sqrt(warmup / step) (Vaswani et al. 2017, section 5.3). With
    `warmup_share` that share of the run's steps counts, not `warmup_steps`: 0.1 is one of ten epochs."""
    _refuse(warmup_steps)
    if warmup_share is not None:
        _refuse(0, warmup_share=warmup_share)
        warmup_steps = round(warmup_share * _required(total_steps, "inverse_sqrt with schedule.warmup_share"))
    warmup = max(warmup_steps, 1)
    return LambdaLR(optimizer, lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1))))


def cosine(
    optimizer: Optimizer, total_steps: int | None = None, *, warmup_steps: int = 100, final: float = 0.01
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final` x the full rate at the last step of the run."""
    _refuse(warmup_steps, final=final)
    total = _required(total_steps, "cosine")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / max(total - warmup_steps, 1), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def linear(
    optimizer: Optimizer, total_steps: int | None = None, *, warmup_steps: int = 100, final: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then linear decay to `final` x the full rate at the last step of the run."""
    _refuse(warmup_steps, final=final)
    total = _required(total_steps, "linear")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(final, 1 - (1 - final) * (step - warmup_steps) / max(total - warmup_steps, 1))

    return LambdaLR(optimizer, factor)


def exponential(
    optimizer: Optimizer,
    total_steps: int | None = None,
    *,
    decay: float = 0.999,
    every_steps: int = 810,
    warmup_steps: int = 0,
) -> LambdaLR:
    """Linear warm-up times a decay: the rate falls, smoothly, by a factor of `decay` every `every_steps` steps."""
    _refuse(warmup_steps, decay=decay)
    if every_steps < 1:
        raise UserError(f"schedule.every_steps={every_steps}: expected at least 1")
    return LambdaLR(
        optimizer, lambda step: min((step + 1) / max(warmup_steps, 1), 1.0) * decay ** (step / max(every_steps, 1))
    )


def constant(optimizer: Optimizer, total_steps: int | None = None, *, warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up, then the full rate."""
    _refuse(warmup_steps)
    return LambdaLR(optimizer, lambda step: min((step + 1) / max(warmup_steps, 1), 1.0))


def _required(total_steps: int | None, name: str) -> int:
    if total_steps is None or total_steps <= 0:
        raise UserError(f"schedule={name} needs the length of the run: set trainer.max_steps or trainer.max_epochs")
    return total_steps


def _refuse(warmup_steps: int, **shares: float) -> None:
    if warmup_steps < 0:
        raise UserError(f"schedule.warmup_steps={warmup_steps}: expected at least 0")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"schedule.{name}={share}: expected a share of the full rate, from 0 to 1")
