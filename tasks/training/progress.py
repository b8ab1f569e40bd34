"""What a person sees while a run trains: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress(ProgressBar):
    """Steps done, loss, accuracy, throughput (seconds of audio per second) and the last validation.

    Args:
        every_seconds: time between lines where standard error is not a terminal.
    """

    def __init__(self, *, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._bar_id: Any = None
        self._said = 0.0
        self._said_step = 0
        self._valid = ""

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        self._said, self._said_step = time.monotonic(), trainer.global_step
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
            steps = int(total) if math.isfinite(total) else None
            self._bar_id = self._bar.add_task("training", total=steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._bar is not None:
            self._bar.update(self._bar_id, completed=trainer.global_step, description=self._text(pl_module))
        elif self._enabled and trainer.is_global_zero and time.monotonic() - self._said >= self.every_seconds:
            self._say(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar_id, completed=trainer.global_step, description=self._text(pl_module))
        elif self._enabled and trainer.is_global_zero and trainer.global_step > self._said_step:
            self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, module: LightningModule) -> None:
        self._said, self._said_step = time.monotonic(), trainer.global_step
        total = trainer.max_steps if trainer.max_steps > 0 else "?"
        print(f"step {trainer.global_step}/{total}  {self._text(module)}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {
            k.removeprefix("valid/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("valid/")
        }
        self._valid = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        if self._enabled and trainer.is_global_zero:
            print(f"step {trainer.global_step}  valid: {self._valid}", file=sys.stderr, flush=True)

    def _text(self, module: LightningModule) -> str:
        latest: dict[str, float] = getattr(module, "latest", {})
        short = {"train/loss": "loss", "train/accuracy": "acc", "train/audio_seconds_per_second": "audio s/s"}
        texts = [f"{name} {latest[key]:.3g}" for key, name in short.items() if key in latest]
        return "  ".join([*texts, getattr(module, "progress_line", "")]).strip() or "training"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
