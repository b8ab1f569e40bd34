"""A learning-rate schedule, as a factor on the optimizer's own rate."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from voxzoo.components.errors import UserError


def mine(
    optimizer: Optimizer, total_steps: int | None = None, *, warmup_steps: int = 100, decay: float = 0.2
) -> LambdaLR:
    """Linear warm-up, the full rate, and a linear fall to zero over the last part of the run.

    Args:
        optimizer: what it steers.
        total_steps: of the run; it is given where a schedule takes it, and None where nothing ends the run.
        warmup_steps: until the full rate.
        decay: share of the run that the fall takes.
    """
    if total_steps is None:
        raise UserError("schedule=mine needs the length of the run: set trainer.max_steps or trainer.max_epochs")
    if not 0 < decay <= 1:
        raise UserError(f"schedule.decay={decay}: expected more than 0 and at most 1")

    def factor(step: int) -> float:
        return max(min((step + 1) / max(warmup_steps, 1), 1.0, (total_steps - step) / (decay * total_steps)), 0.0)

    return LambdaLR(optimizer, factor)
