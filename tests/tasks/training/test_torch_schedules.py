"""Schedules of torch in a run: what they are given, and that they go on where they stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from voxzoo.tasks import train

TORCH = "schedule._target_=torch.optim.lr_scheduler."


@pytest.fixture
def run(tiny: list[str], tmp_path: Path):
    """run("name", steps, *words) -> the state of the schedule behind the last step."""

    def call(name: str, steps: int, *words: str) -> dict[str, Any]:
        common = ["task=text_to_text", "data.tasks={s2tt:false,t2tt:true}", "logger=none", "schedule=none"]
        length = [f"trainer.max_steps={steps}", "trainer.val_check_interval=1", "trainer.limit_val_batches=1"]
        train([*tiny, *common, *words, *length, f"root={tmp_path}", f"name={name}", "optim.lr=0.01"])
        content = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        return content["lr_schedulers"][0]

    return call


def test_a_schedule_that_waits_for_plateaus_is_told_what_each_validation_found(run):
    words = [f"{TORCH}ReduceLROnPlateau", "schedule.patience=0", "schedule.threshold=0.99", "schedule.factor=0.5"]
    # The first of four validations is the best.
    assert run("plateau", 4, *words)["_last_lr"] == pytest.approx([0.01 * 0.5**3] * 2)
    # The rate does not depend on the length of the run, so that it goes on.
    assert run("plateau", 5, *words)["_last_lr"] == pytest.approx([0.01 * 0.5**4] * 2)


def test_a_schedule_that_takes_the_length_of_the_run_is_given_it(run):
    assert run("cycle", 3, f"{TORCH}OneCycleLR", "schedule.max_lr=0.01")["total_steps"] == 3
