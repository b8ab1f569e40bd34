"""The mean of the weights of a run's best checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ...components.errors import UserError, few
from ..checkpoints.files import Checkpointer, read_checkpoint, write_atomically
from ..checkpoints.references import leave_out
from ..processes.console import say
from ..task import Task

NAME = "average.ckpt"


class AverageBest(Callback):
    """When the training ends, writes the mean of the weights of its best checkpoints to `checkpoints/average.ckpt`.

    A checkpoint like others, for `voxzoo evaluate RUN/checkpoints/average.ckpt`; no training goes on from it. How many
    are kept, and by what they are the best, says `checkpoint` (`keep_best`, `monitor`, `mode`).

    Args:
        count: how many of them; None: all that are kept.
    """

    def __init__(self, *, count: int | None = None) -> None:
        if count is not None and count < 2:
            raise UserError(f"count={count}: a mean needs at least 2 checkpoints")
        self.count = count

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keeper = _keeper(trainer)
        wanted = self.count or 2
        if keeper.keep_best < wanted:
            raise UserError(
                f"checkpoint.keep_best={keeper.keep_best}: a mean of {wanted} checkpoints needs as many; set it higher"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        keeper = _keeper(trainer)
        ranked = sorted(keeper.best, key=keeper.best.__getitem__, reverse=keeper.mode == "max")
        names = ranked[: self.count or len(ranked)]
        if len(names) < 2:
            say(f"no mean of weights: {len(names)} checkpoint was kept ({few(names)}); more validations make more")
            return
        references = pl_module.references if isinstance(pl_module, Task) else {}
        average_checkpoints([keeper.folder / name for name in names], keeper.folder / NAME, references)
        say(f"the mean of {few(names)}: {keeper.folder / NAME}")


def average_checkpoints(paths: list[Path], out: Path, references: dict[str, Any] | None = None) -> None:
    """Write the mean of the weights of checkpoints, with all else of the first but what a training goes on from.

    Numbers that are no fractions (counters) are those of the first. Sums are in float64.

    Args:
        paths: of one run.
        out: the file.
        references: frozen weights that are left to published folders (`checkpoints.references`).

    Raises:
        UserError: a checkpoint cannot be read, or has other weights than the first.
    """
    contents = [read_checkpoint(path, states=False) for path in paths]
    states: list[dict[str, Tensor]] = [content["state_dict"] for content in contents]
    for path, state in zip(paths, states, strict=True):
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in states[0].items()}:
            raise UserError(f"{path}: has other weights than {paths[0]}; a mean is of checkpoints of one run")
    content = {**contents[0], "state_dict": {key: _mean([state[key] for state in states]) for key in states[0]}}
    for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks"):
        content.pop(key, None)
    leave_out(content, references or {})
    write_atomically(out, lambda file: torch.save(content, file))


def _mean(tensors: list[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)


def _keeper(trainer: Trainer) -> Checkpointer:
    found = next((each for each in trainer.checkpoint_callbacks if isinstance(each, Checkpointer)), None)
    if found is None:
        raise UserError("a mean of checkpoints needs those of `voxzoo train`; this trainer keeps none")
    return found
