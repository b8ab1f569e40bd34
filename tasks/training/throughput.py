"""How fast a run trained: what `done.json` keeps of it."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ...components.types import Batch


class Throughput(Callback):
    """Steps and seconds of audio for each second of training since this process began: waiting for data counts,
    validation does not.

    Attributes:
        figures: `steps_per_second` and `audio_seconds_per_second`, of all processes together; empty before the end of
            the training, and where nothing was left to train.
        heard: seconds of audio that the run has trained on, also before it was stopped and went on: then those of other
            processes are taken to be as many as the first one's.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.heard = 0.0
        self._before = 0.0
        self._steps = 0
        self._audio: torch.Tensor | float = 0.0  # a tensor of the device: reading it would wait for each step
        self._elapsed = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch) and batch.seconds is not None:
            self._audio = self._audio + batch.seconds.sum(dtype=torch.float64)

    def state_dict(self) -> dict[str, float]:
        return {"heard": self._before + float(self._audio)}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = self.heard = float(state_dict["heard"])  # it may be that nothing is left to train

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()
        device = trainer.strategy.root_device
        heard = (self._audio, self._before)
        audio = torch.stack([torch.as_tensor(seconds, dtype=torch.float64, device=device) for seconds in heard])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(audio)
        self.heard = float(audio.sum())
        steps = trainer.global_step - self._steps
        if steps and self._elapsed:
            rates = {"steps_per_second": steps, "audio_seconds_per_second": float(audio[0])}
            self.figures = {name: round(amount / self._elapsed, 3) for name, amount in rates.items()}

    def _pause(self) -> None:
        if self._since is not None:
            self._elapsed += time.perf_counter() - self._since
            self._since = None
