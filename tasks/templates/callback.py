"""A callback of the trainer."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class MineCallback(Callback):
    """Logs how many steps a minute a run makes, counted over all its restarts.

    Args:
        every_steps: how often.
    """

    def __init__(self, every_steps: int = 100) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1; got {every_steps}")
        self.every_steps = every_steps
        self.steps, self.seconds = 0, 0.0
        self._since = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All processes come here; the first one writes."""
        self.steps, self.seconds = trainer.global_step, self.seconds + time.monotonic() - self._since
        if self.steps % self.every_steps == 0 and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({"mine/steps_per_minute": 60 * self.steps / self.seconds}, step=self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values and tensors alone."""
        return {"steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.seconds = state_dict["steps"], state_dict["seconds"]
