"""Losses that share a gradient by weights alone, whatever their scale. Letters: B batch, N samples, L losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Balancer(nn.Module):
    """The balancer of EnCodec (Defossez et al. 2022, arXiv 2210.13438, section 3.4): the gradient of each loss with
    respect to the samples is divided by the moving average of its norm, and they are added by their weights.

    The norm is that of a row, the average that over the rows of a step, of all batches and processes: the task adds the
    norms up and calls `advance` once a step.

    Args:
        weights: name -> weight; their sum does not count.
        decay: of the average norms, a step.
    """

    totals: Tensor
    steps: Tensor

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999) -> None:
        super().__init__()
        if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise ValueError(f"balanced losses need weights of at least 0, and one above; got {dict(weights)}")
        self.weights, self.decay = dict(weights), decay
        self.register_buffer("totals", torch.zeros(len(weights)))
        self.register_buffer("steps", torch.zeros(()))

    def norms(self, gradients: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        """(L,) norms of (B, N) gradients of losses that a row has `frames` (B,) of, summed over the rows."""
        weight = frames.to(next(iter(gradients.values()))).clamp(min=1)
        return torch.stack([(gradients[name].flatten(1).norm(dim=1) / weight).sum() for name in self.weights])

    @torch.no_grad()
    def advance(self, sums: Tensor, rows: Tensor) -> None:
        """Follow the (L,) norms of a step, summed over () rows."""
        if bool(sums.isfinite().all()):
            self.totals.mul_(self.decay).add_(sums / rows.clamp(min=1))
            self.steps.mul_(self.decay).add_(1)

    def combined(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """(B, N) the gradient for the samples, of norm 1 a frame where the losses agree."""
        average = self.totals / self.steps.clamp(min=1e-12)
        share = sum(self.weights.values())
        parts = [
            gradients[name] * (weight / share / average[number].clamp(min=1e-12))
            for number, (name, weight) in enumerate(self.weights.items())
        ]
        return torch.stack(parts).sum(0)
