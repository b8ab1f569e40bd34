"""A callback for runs in processes of their own: they send themselves a signal at a step, however fast they are.

Chosen by `WORDS`, with what `environment` gives; STOP is "STEP SIGNAL", SLOW a file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

WORDS = ["allow=[stopper]", "+callbacks.stop._target_=stopper.Stop"]


def environment(
    step: int | None = None, number: int = 0, *, each: bool = False, slow: Path | None = None
) -> dict[str, str]:
    """Of a run that is sent the signal `number` when `step` steps are done; of one that is not where it is None.

    Args:
        each: to each process, as a cluster does; else to the first alone, and the others hear of it from the run.
        slow: a file that grows by a byte a step, each of which takes its time: for a signal from outside.
    """
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    stop = {} if step is None else {"STOP": f"{step} {int(number)} {int(each)}"}
    return {"PYTHONPATH": paths, **stop, **({} if slow is None else {"SLOW": str(slow)})}


class Stop(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step, number, each = (int(word) for word in os.environ.get("STOP", "-1 0 0").split())
        if trainer.global_step == step and (each or trainer.is_global_zero):
            os.kill(os.getpid(), number)
        if path := os.environ.get("SLOW"):
            with open(path, "a") as file:
                file.write(".")
            time.sleep(0.3)
