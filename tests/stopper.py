"""A callback for runs in processes of their own: the first one sends itself a signal at a step, however fast it is.

Chosen by `WORDS`, with what `environment` gives; STOP is "STEP SIGNAL".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

WORDS = ["allow=[stopper]", "+callbacks.stop._target_=stopper.Stop"]


def environment(step: int | None = None, number: int = 0) -> dict[str, str]:
    """Of a run that is sent the signal `number` when `step` steps are done; of one that is not where it is None."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    stop = {} if step is None else {"STOP": f"{step} {int(number)}"}
    return {"PYTHONPATH": paths, **stop}


class Stop(Callback):
    """The first process alone; the others hear of it from the run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step, number = (int(word) for word in os.environ.get("STOP", "-1 0").split())
        if trainer.global_step == step and trainer.is_global_zero:
            os.kill(os.getpid(), number)
