"""Translated units against those of the recordings, after each validation: whether a speech LM translates by now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ...components.types import Batch
from ..scoring.unit_errors import Agreement, agreement
from ..task import Task

_TRANSLATE = {"trans", "chain"}
"""Templates of a speech LM."""


class UnitMatch(Callback):
    """Translates the first utterances of the validation set greedily and logs, with runs of equal units merged,
    `valid/unit_exact` (share of the utterances whose units are all right) and `valid/unit_error` (edits to a unit of
    the reference). A task that translates no units, such as the acoustic LM of a cascade, is left alone.

    Args:
        count: utterances, of all processes together at least one batch of each.
    """

    def __init__(self, *, count: int = 64) -> None:
        self.count = count
        self._found: list[Agreement] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        enough = len(self._found) * trainer.world_size >= self.count
        if enough or batch.units is None or not _translates(pl_module):
            return
        task: Any = pl_module
        # Without a prompt nothing is spoken; in one sequence with what is spoken it stands before the units.
        given = batch if "chain" in getattr(task, "templates", ()) else replace(batch, source_codes=None)
        found = task.predict(given, task="s2st", options=replace(task.search, method="greedy", beam_size=1))
        pairs = zip(found, batch.units.unpad(), strict=True)
        self._found += [agreement(ours.units or [], theirs.tolist()) for ours, theirs in pairs]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _translates(pl_module):
            return
        assert isinstance(pl_module, Task)
        found = self._found
        sums = (sum(one.errors == 0 for one in found), len(found))
        sizes = (sum(one.errors for one in found), sum(one.size for one in found))
        totals = torch.tensor([*sums, *sizes], dtype=torch.float32, device=pl_module.device)
        right, count, errors, size = pl_module.over_ranks(list(totals))
        if count:
            values = {"valid/unit_exact": right / count, "valid/unit_error": errors / max(size, 1)}
            pl_module.log_dict({**values, "step": float(trainer.global_step)}, rank_zero_only=False)


def _translates(module: LightningModule) -> bool:
    if not isinstance(module, Task) or "s2st" not in module.modes or "units" not in module.needs:
        return False
    templates = getattr(module, "templates", None)
    return templates is None or bool(_TRANSLATE & set(templates))
