"""Fitting discrete units and writing those of a corpus: the stage before a vocoder and a second pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from ..components.roles import UnitExtractor
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Prediction, Statistic
from ..datamodules.audio import AudioFiles
from .checkpoints.files import write_atomically
from .distributed.devices import pick_device
from .task import Task
from .units import Column, extract_units, fit_units


class FitUnits(Task):
    """Fits a unit extractor on the training speech and writes `units.jsonl` for all splits, on a GPU where there is one
    and `trainer.accelerator` allows it.

    Args:
        unit_extractor: what is fitted.
        column: which speech of the manifest: `tgt_audio` (units to predict) or `audio`.
        max_hours: how much training speech the clusters are fitted on.
        seed: of the sample and the clustering.
    """

    needs = frozenset({"target_speech"})
    modes = frozenset()
    roles = ("unit_extractor",)

    def __init__(
        self,
        *,
        unit_extractor: UnitExtractor,
        column: Literal["tgt_audio", "audio"] = "tgt_audio",
        max_hours: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.unit_extractor = unit_extractor
        self.column: Column = column
        self.max_hours = max_hours
        self.seed = seed

    def run_once(self, data: Any, folder: Path) -> dict[str, Any]:
        """Fit, extract, save; returns statistics. What is already written is not made again."""
        self.to(_device(self.config.get("trainer") or {}))
        audio: AudioFiles = getattr(data, "audio", None) or AudioFiles()
        said: dict[str, Any] = {"column": self.column, "audio": audio}
        fitted = fit_units(self.unit_extractor, data.rows("train"), max_hours=self.max_hours, seed=self.seed, **said)
        rows = [row for split in data.splits() for row in data.rows(split)]
        extracted = extract_units(self.unit_extractor, rows, path=folder / "units.jsonl", **said)
        self.to("cpu")
        content: dict[str, Any] = {"state_dict": self.state_dict()}
        self.on_save_checkpoint(content)
        write_atomically(folder / "checkpoints" / "last.ckpt", lambda file: torch.save(content, file))
        return {"task": "FitUnits", "units": str(folder / "units.jsonl"), "fit": fitted, "extract": extracted}

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        raise RuntimeError("units are fitted by clustering, not by gradient steps")

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        raise RuntimeError("a unit extractor translates nothing; use `voxzoo units extract`")


def _device(trainer: dict[str, Any]) -> torch.device:
    """Where the trainer's settings put a task of one process; GPUs are listed in `devices` by their numbers."""
    if trainer.get("accelerator", "auto") == "cpu":
        return torch.device("cpu")
    device, listed = pick_device("auto"), trainer.get("devices")
    return torch.device(device.type, int(listed[0])) if device.type != "cpu" and isinstance(listed, list) else device
