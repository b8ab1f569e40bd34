"""A learning rate found by trying them before the first step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from ...components.errors import UserError
from ...datamodules.utterances import UtteranceData
from ..checkpoints.files import write_atomically
from ..distributed.gradients import gradient_norm, scale_gradients
from ..processes.console import say
from ..task import Task

_SMOOTHING = 0.9
_DIVERGED = 4.0
"""A smoothed loss of this many times the lowest one ends the test."""


class LearningRateFinder(Callback):
    """Tries rising learning rates before the first step, and trains with the one at which the loss fell fastest.

    The range test of Smith 2017 ("Cyclical learning rates for training neural networks"): the rate rises by the same
    factor at each step, and the one is taken at which the smoothed loss falls most for a step. Weights, optimizer and
    data are as before when the training begins; `optim.lr`, and with it the rate of each group and of the schedule, is
    multiplied so that its highest becomes the found one. `learning_rate.json` in the run folder has the rates and
    losses. A run that goes on has its rate in its checkpoint. On one process, in 32-true, bf16-mixed or bf16-true.

    Args:
        lowest, highest: rates of the first and the last step of the test.
        steps: of the test.
    """

    def __init__(self, *, lowest: float = 1e-7, highest: float = 1.0, steps: int = 100) -> None:
        if not 0 < lowest < highest:
            raise UserError(f"lowest={lowest}, highest={highest}: expected rates above 0, the second the higher one")
        if steps < 10:
            raise UserError(f"steps={steps}: expected at least 10")
        self.lowest, self.highest, self.steps = lowest, highest, steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            return
        task = _require_one(trainer, pl_module)
        rates, losses = self._try(trainer, task)
        found = steepest(rates, losses)
        base = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizers[0].param_groups)
        scale_rates(trainer, found / base)
        content = {"rate": found, "rates": rates, "losses": losses}
        path = Path(trainer.default_root_dir) / "learning_rate.json"
        write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
        say(f"learning rate {found:.3g} found in {len(rates)} steps, in the place of {base:.3g}; {path}")

    def _try(self, trainer: Trainer, task: Task) -> tuple[list[float], list[float]]:
        """Rates and losses of the steps, after which all is as it was."""
        optimizer = trainer.optimizers[0]
        weights = {key: value.detach().clone() for key, value in task.state_dict().items()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        highest = max(group["lr"] for group in groups) or 1.0
        shares = [group["lr"] / highest for group in groups] if any(group["lr"] for group in groups) else None
        random, rates, losses = torch.get_rng_state(), [], []
        try:
            batches = _batches(trainer)
            for step in range(self.steps):
                rate = self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1))
                for place, group in enumerate(optimizer.param_groups):
                    group["lr"] = rate * (shares[place] if shares else 1.0)
                torch.manual_seed(int(task.config.get("seed", 1)) + step)
                batch = trainer.strategy.batch_to_device(next(batches))
                losses.append(_step(trainer, task, batch, optimizer))
                rates.append(rate)
                if not math.isfinite(losses[-1]) or _smoothed(losses)[-1] > _DIVERGED * min(_smoothed(losses)):
                    break
        finally:
            with torch.no_grad():
                for key, value in task.state_dict().items():
                    value.copy_(weights[key])
            optimizer.state.clear()
            optimizer.zero_grad(set_to_none=True)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.update(before)
            torch.set_rng_state(random)
        return rates, losses


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls most for a step; all rise by the same factor.

    Raises:
        UserError: the loss was never lower than before.
    """
    smooth = _smoothed([loss for loss in losses if math.isfinite(loss)])
    # The first values are means of few, and the last ones rise.
    first = max(1, len(smooth) // 10)
    falls = [smooth[place - 1] - smooth[place + 1] for place in range(first, len(smooth) - 1)]
    if not falls or max(falls) <= 0:
        raise UserError(
            "no learning rate was found: the loss falls at none of those tried; try others, or set optim.lr"
        )
    return rates[first + falls.index(max(falls))]


def scale_rates(trainer: Trainer, factor: float) -> None:
    """Multiply the rates of all groups and schedules, those to come too."""
    for group in trainer.optimizers[0].param_groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] *= factor
    for entry in trainer.lr_scheduler_configs:
        schedule: Any = entry.scheduler
        for one in (schedule, *getattr(schedule, "_schedulers", ())):
            for key in ("base_lrs", "_last_lr"):
                if hasattr(one, key):
                    setattr(one, key, [rate * factor for rate in getattr(one, key)])


def _smoothed(losses: Sequence[float]) -> list[float]:
    """A moving average without the bias of its beginning."""
    out, mean = [], 0.0
    for step, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        out.append(mean / (1 - _SMOOTHING**step))
    return out


def _step(trainer: Trainer, task: Task, batch: Any, optimizer: torch.optim.Optimizer) -> float:
    """One step as the training makes it: by the mean over what the first loss counts, and clipped. Returns its loss."""
    optimizer.zero_grad(set_to_none=True)
    with trainer.precision_plugin.train_step_context():
        losses, _ = task.measured(batch)
        total, tokens = task.weighted(losses), next(iter(losses.values())).count.detach().float().clamp(min=1)
    total.backward()
    parameters: list[nn.Parameter] = [p for p in task.parameters() if p.grad is not None]
    scale_gradients(parameters, 1 / tokens)
    norm = gradient_norm(parameters)
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value":
        scale_gradients(parameters, (trainer.gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))
    if bool(torch.isfinite(norm)):
        optimizer.step()
    return float(total.detach() / tokens)


def _batches(trainer: Trainer) -> Iterator[Any]:
    """Of the training data, from its beginning, again and again; the loader of the training is another one."""
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    for epoch in count():
        some = False
        for batch in data.epoch_loader(epoch) if isinstance(data, UtteranceData) else data.train_dataloader():
            some = True
            yield batch
        if not some:
            raise UserError("no learning rate was found: the training data has no batch")


def _require_one(trainer: Trainer, task: LightningModule) -> Task:
    advice = "leave out this callback and set optim.lr"
    if not isinstance(task, Task) or not task.automatic_optimization or len(trainer.optimizers) != 1:
        raise UserError(f"a learning rate is found for a task with one optimizer, not {type(task).__name__}: {advice}")
    if trainer.world_size > 1:
        raise UserError(f"a learning rate is found on one process; find it with trainer.devices=1, then {advice}")
    if str(trainer.precision).startswith("16"):
        raise UserError(f"trainer.precision={trainer.precision}: a learning rate is found in 32-true or bf16: {advice}")
    return task
