"""Early stopping that a kill does not undo."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch.callbacks
from lightning import LightningModule, Trainer

from ...components.errors import UserError


class EarlyStopping(lightning.pytorch.callbacks.EarlyStopping):
    """Ends the training where a metric of validation has not become better for a while.

    Lightning's counts on where a run that was killed left off, but forgets that it had decided to stop: killed between
    that and its end, a run would train on to the next validation. This one stops again at once, so that the run ends
    with the weights of one that was never killed.

    Args:
        monitor: the metric, as validation logs it.
        mode: whether less or more of it is better.
        patience: validations in a row without improvement that end the training.
        min_delta: what counts as one.
    """

    def __init__(
        self,
        *,
        monitor: str = "valid/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise UserError(f"patience={patience}: expected at least 1")
        # At the end of each validation: behind the epoch, the checkpoint is written already.
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_no(trainer):
            known = ", ".join(name for name in sorted(trainer.callback_metrics) if name.startswith("valid/"))
            raise UserError(f"early stopping by {self.monitor}: validation measures {known}")
        super().on_validation_end(trainer, pl_module)

    def _has_no(self, trainer: Trainer) -> bool:
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fits and self.monitor not in trainer.callback_metrics

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # a new patience counts from now on
