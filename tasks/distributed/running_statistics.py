"""Running statistics of batch norm over several processes: those of one process that saw every batch in turn.

Letters: W processes, N values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The running statistics of a module's batch norms, as they were before a step's forward pass.

    Each process updates its own by its own batch, and a checkpoint holds those of the first. `merge` makes of them what
    one process would have that took the batches of all of them one after the other, in the order of the ranks.

    Args:
        module: batch norms in it that are training are watched; torch's SyncBatchNorm is left alone, it agrees itself.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [norm for norm in module.modules() if _is_watched(norm)]
        self.before = [_values(norm) for norm in self.norms]

    @torch.no_grad()
    def merge(self, all_gather: Callable[[Tensor], Tensor]) -> None:
        """Give each norm the statistics of all batches.

        Args:
            all_gather: (N,) of this process -> (W, N) of all, called once, and not where there is no norm.
        """
        if not self.norms:
            return
        gathered = all_gather(torch.cat([_values(norm) for norm in self.norms]))
        for norm, before, after in zip(
            self.norms, self.before, gathered.split([len(b) for b in self.before], dim=1), strict=True
        ):
            merged = before.clone()
            for one in after:
                batches = one[-1] - before[-1]  # 0 where the layer was left out
                kept = (1.0 - float(norm.momentum)) ** batches  # pyright: ignore[reportArgumentType]
                merged[:-1] = kept * merged[:-1] + (one[:-1] - kept * before[:-1])
                merged[-1] += batches
            size = (len(merged) - 1) // 2
            # Past autograd: torch's own norms keep these for the backward pass, in which they do not count.
            norm.running_mean.data.copy_(merged[:size])  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            norm.running_var.data.copy_(merged[size:-1])  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            norm.num_batches_tracked.copy_(merged[-1])  # pyright: ignore[reportCallIssue]


def _is_watched(module: nn.Module) -> bool:
    if not module.training or isinstance(module, nn.SyncBatchNorm):
        return False
    return isinstance(getattr(module, "running_mean", None), Tensor) and isinstance(
        getattr(module, "momentum", None), float
    )


def _values(norm: nn.Module) -> Tensor:
    """(N,) float64: means, variances and the number of batches, which float32 could not count."""
    mean, variance, count = (
        getattr(norm, name).detach() for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    return torch.cat([mean.double(), variance.double(), count.double()[None]])
