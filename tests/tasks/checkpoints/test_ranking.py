"""The best checkpoints of a run that was killed while a validation entered one among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader
from voxzoo.tasks.checkpoints import files
from voxzoo.tasks.checkpoints.files import AtomicCheckpointIO, Checkpointer


class Killed(BaseException):
    pass


class Model(LightningModule):
    """Validations at steps 2, 4, 6, 8 give 3, 1, 2, 4."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid/loss", {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}[self.global_step])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, before: Path | None = None, *, keep_best: int = 1) -> dict[str, Any]:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=8,
        num_sanity_val_steps=0, val_check_interval=2, check_val_every_n_epoch=None, max_epochs=-1,
        callbacks=[Checkpointer(folder=str(folder), every_steps=1, keep_best=keep_best)],
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    data = DataLoader(torch.zeros(20, 1))
    trainer.fit(Model().train(), data, DataLoader(torch.zeros(1, 1)), ckpt_path=before, weights_only=True)
    names = sorted(path.name for path in folder.iterdir())
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"]
        for path in folder.iterdir()
        if path.suffix == ".ckpt"
    }
    return {"names": names, "steps": steps, "best": json.loads((folder / "best.json").read_text())}


@pytest.fixture(autouse=True)
def _entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of voxzoo's has an entry of its own, which the task writes."""
    monkeypatch.setattr(Model, "on_save_checkpoint", lambda self, content: content.update(voxzoo={}), raising=False)


@pytest.mark.parametrize("keep_best", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("moment", ["before the link", "before the list", "before the removal"])
def test_what_a_kill_left_undone_is_done(
    moment: str, count: int, keep_best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = fit(tmp_path / "whole", keep_best=keep_best)
    assert expected["steps"]["step00000004.ckpt"] == 4

    def killed(call: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        turns = iter(range(1, 100))

        def wrapped(*args: Any, **options: Any) -> Any:
            dies = next(turns) == count
            if dies and not after:
                raise Killed
            call(*args, **options)
            if dies:
                raise Killed

        return wrapped

    with monkeypatch.context() as patch:
        if moment == "before the link":
            patch.setattr(files, "link_whole", killed(files.link_whole))
        else:
            write = killed(Checkpointer._write_ranking, after=moment == "before the removal")
            patch.setattr(Checkpointer, "_write_ranking", write)
        with pytest.raises(Killed):
            fit(tmp_path / "killed", keep_best=keep_best)
    kept = {path.name for path in (tmp_path / "killed").iterdir()}
    assert "last.ckpt" in kept
    assert fit(tmp_path / "killed", tmp_path / "killed" / "last.ckpt", keep_best=keep_best) == expected


def test_at_the_start_names_and_list_are_those_of_the_last_checkpoint(tmp_path: Path):
    expected = fit(tmp_path)
    (tmp_path / "step00000004.ckpt").rename(tmp_path / "step00000002.ckpt")  # as if 4 had not come to be linked
    (tmp_path / "best.json").write_text('{"step00000002.ckpt": 3.0}')
    keeper = Checkpointer(folder=str(tmp_path), every_steps=1)
    keeper.best = {"step00000004.ckpt": 1.0}
    keeper._settle_ranking(4)
    assert sorted(path.name for path in tmp_path.iterdir()) == expected["names"]
    assert json.loads((tmp_path / "best.json").read_text()) == expected["best"]


def test_files_of_later_steps_and_of_other_names_stay(tmp_path: Path):
    for name in ("step00000009.ckpt", "step00000002-mine.ckpt", "mine.ckpt", "step00000003.ckpt"):
        (tmp_path / name).write_bytes(b"")
    Checkpointer(folder=str(tmp_path), every_steps=1)._settle_ranking(4)
    assert not (tmp_path / "step00000003.ckpt").exists()
    assert len(list(tmp_path.iterdir())) == 3
