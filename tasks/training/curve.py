"""What validations measured, one after the other: what `done.json` keeps of how a run learned."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer


class Curve(Callback):
    """The metrics of each validation of a run. They are in its checkpoints, so a run that was stopped and went on has
    the same ones.

    Attributes:
        points: a map for each validation, in order: `step`, and `valid/...`.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("valid/")}
        step = trainer.global_step
        self.points = [point for point in self.points if point["step"] < step] + [{"step": step, **found}]

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = list(state_dict["points"])
