"""What a run says while it trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import logged
from voxzoo.tasks.training.train import train

CSV = ["logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}"]


@pytest.mark.parametrize(("every", "steps"), [(20, 3), (2, 3)])
def test_a_short_run_says_its_loss_at_the_end(
    every: int, steps: int, tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    words = [*tiny, f"root={tmp_path}", f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={every}"]
    train([*words, "trainer.limit_val_batches=0", "name=short", *CSV])
    (line,) = [one for one in capfd.readouterr().err.splitlines() if one.startswith("step ")]
    said = re.fullmatch(rf"step {steps}/{steps}  loss (\S+)  acc \S+  audio s/s \S+", line)
    assert said is not None, line
    losses = logged(tmp_path / "short", "train/loss")
    assert len(losses) == -(-steps // every)  # what remains over is logged too
    assert float(said[1]) == pytest.approx(losses[-1], rel=6e-3)
    assert losses[-1] > 0
