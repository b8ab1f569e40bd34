"""An optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class MineOptimizer(Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): steps by the sign of a mean of gradients.

    Args:
        params: groups of parameters; biases, norms and scalars come in a group with `weight_decay` 0.
        lr: the rate; three to ten times below Adam's.
        betas: of the mean that gives the step, and of the one that is kept.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in 0..1, below 1; got {tuple(betas)}")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Lightning gives a `closure` that makes the gradients; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(mean.lerp(parameter.grad, 1 - first).sign_(), alpha=-group["lr"])
                mean.lerp_(parameter.grad, 1 - second)
        return loss
