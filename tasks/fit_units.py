"""Fitting discrete units and writing those of a corpus: the stage before a vocoder and a second pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..components.roles import UnitExtractor
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Prediction, Statistic
from ..datamodules.audio import AudioFiles
from .checkpoints.files import write_unstepped
from .distributed.devices import device_of_trainer
from .task import Task
from .units import Sides, both_sides, extract_units, fit_units, sides


class FitUnits(Task):
    """Fits a unit extractor on the training speech and writes `units.jsonl` for all splits, on a GPU where there is one
    and `trainer.accelerator` allows it. With `column=both` also `source_units.jsonl`, and it is fitted on both sides.

    Args:
        unit_extractor: what is fitted.
        column: which speech of the manifest: `tgt_audio` (units to predict), `audio`, or `both`.
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
        column: Literal["tgt_audio", "audio", "both"] = "tgt_audio",
        max_hours: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.unit_extractor = unit_extractor
        self.column: Sides = column
        self.max_hours = max_hours
        self.seed = seed

    def run_once(self, data: Any, folder: Path) -> dict[str, Any]:
        """Fit, extract, save; returns statistics. What is already written is not made again."""
        self.to(device_of_trainer(self.config.get("trainer") or {}))
        audio: AudioFiles = getattr(data, "audio", None) or AudioFiles()
        fitted = fit_units(
            self.unit_extractor,
            both_sides(data.rows("train")) if self.column == "both" else data.rows("train"),
            column="tgt_audio" if self.column == "both" else self.column,
            max_hours=self.max_hours,
            seed=self.seed,
            audio=audio,
        )
        rows = [row for split in data.splits() for row in data.rows(split)]
        written: dict[str, Any] = {}
        for name, column in sides("units", self.column).items():
            other = folder / "units.jsonl" if written else None
            written[name] = extract_units(
                self.unit_extractor, rows, column, folder / f"{name}.jsonl", audio=audio, other=other
            )
        self.to("cpu")
        write_unstepped(self, folder / "checkpoints" / "last.ckpt")
        paths = {name: str(folder / f"{name}.jsonl") for name in written}
        return {"task": "FitUnits", **paths, "fit": fitted, "extract": written["units"]}

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        raise RuntimeError("units are fitted by clustering, not by gradient steps")

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        raise RuntimeError("a unit extractor translates nothing; use `voxzoo units extract`")
