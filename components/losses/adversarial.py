"""Adversarial losses and feature matching: by least squares (HiFi-GAN, arXiv 2010.05646, section 2.4), and by hinges
(EnCodec, arXiv 2210.13438, section 3.4).

The paper's losses are means over the rows of a batch and over what a discriminator says of a row. Here each row has the
mean of its own, and weighs as many mel frames as its crop has: the unit of the mel loss. Totals and counts of ranks and
accumulated batches then add up, and crops of one length give the paper's means.

Letters: B batch, T steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..types import Judgement, Loss, Padded, Statistic

Form = Literal["square", "hinge"]


def discriminator_loss(real: Judgement, made: Judgement, frames: Tensor, form: Form = "square") -> Loss:
    """Equation 1, summed over the discriminators: the mean of (1 - D(real))^2 and of D(made)^2, per frame.

    Args:
        real, made: about speech, and about samples of a vocoder.
        frames: (B,) mel frames of each row.
        form: hinge: max(0, 1 - D(real)) and max(0, 1 + D(made)), the mean over the discriminators.
    """
    if form == "hinge":
        rows = [_mean(one, (1 - one.data.float()).relu()) for one in real.scores]
        rows += [_mean(one, (1 + one.data.float()).relu()) for one in made.scores]
        return _weigh([row / len(real.scores) for row in rows], frames)
    rows = [_mean(one, (1 - one.data.float()).square()) for one in real.scores]
    rows += [_mean(one, one.data.float().square()) for one in made.scores]
    return _weigh(rows, frames)


def generator_loss(made: Judgement, frames: Tensor, form: Form = "square") -> Loss:
    """Equation 2, summed over the discriminators: the mean of (1 - D(made))^2, per frame. With hinges: of max(0, 1 -
    D(made)), the mean over the discriminators."""
    if form == "hinge":
        rows = [_mean(one, (1 - one.data.float()).relu()) / len(made.scores) for one in made.scores]
        return _weigh(rows, frames)
    return _weigh([_mean(one, (1 - one.data.float()).square()) for one in made.scores], frames)


def feature_matching_loss(real: Judgement, made: Judgement, frames: Tensor, relative: bool = False) -> Loss:
    """Equation 4, summed over layers and discriminators: the mean distance of what a layer makes of both, per frame.
    `relative`: as a part of the mean of what it makes of speech, and the mean over layers (EnCodec, equation 2).

    Features are zero beyond their lengths, so only real ones differ.
    """
    rows = []
    for theirs, ours in zip(real.features, made.features, strict=True):
        distance = (theirs.data - ours.data).abs()
        if relative:
            size = theirs.data.abs().flatten(1).sum(1, dtype=torch.float32)
            summed = distance.flatten(1).sum(1, dtype=torch.float32)
            rows.append(summed / size.clamp(min=1e-5) / len(made.features))
            continue
        each = distance[0, 0].numel()
        summed = distance.sum(tuple(range(1, distance.dim())), dtype=torch.float32)
        rows.append(summed / (ours.lengths.to(summed.device) * each).clamp(min=1))
    return _weigh(rows, frames)


def mean_score(judged: Judgement, frames: Tensor) -> Statistic:
    """The mean of all scores, per frame: 1 where all is taken for real, 0 where nothing is."""
    total = _weigh([_mean(one, one.data.float()) for one in judged.scores], frames)
    return Statistic(total.total / len(judged.scores), total.count)


def _mean(scores: Padded, values: Tensor) -> Tensor:
    """(B, T, ...) values -> (B,) mean over the real steps of each row."""
    summed = scores.with_data(values).zeroed().data.flatten(1).sum(1)
    return summed / (scores.lengths.to(values.device) * values[0, 0].numel()).clamp(min=1)


def _weigh(rows: list[Tensor], frames: Tensor) -> Loss:
    """Sum (B,) row means over discriminators, and over rows by frames."""
    weight = frames.to(rows[0])
    return Loss((torch.stack(rows).sum(0) * weight).sum(), weight.sum())
