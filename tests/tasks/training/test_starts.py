"""The folder of a run before its first step: what processes that start together, and corrected commands, find there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from voxzoo.configs import compose
from voxzoo.tasks.checkpoints.files import Checkpointer
from voxzoo.tasks.training.train import _settle


def test_later_processes_of_a_start_leave_its_files_alone(tiny: list[str], tmp_path: Path):
    """The languages that the first one found in the data are no other config."""

    def start(*words: str) -> dict[str, tuple[int, int]]:
        config = compose([*tiny, f"root={tmp_path}", "name=run", *words])
        assert not config.tokenizer.languages
        data = _settle(config, Path(config.run_dir))
        assert data.tokenizer is not None
        files = {name: (tmp_path / "run" / name).stat() for name in ("tokenizer.model", "config.yaml")}
        return {name: (found.st_ino, found.st_mtime_ns) for name, found in files.items()}

    first = start()
    assert start() == first
    corrected = start("tokenizer.vocab_size=64")
    assert all(corrected[name] != first[name] for name in first)
    assert start("tokenizer.vocab_size=64") == corrected


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_validation_that_gives_no_number_is_never_the_best(mode: str, tmp_path: Path):
    keeper = Checkpointer(folder=str(tmp_path), keep_best=2, mode=mode)  # pyright: ignore[reportArgumentType]
    removed = [
        keeper._rank(f"step{step}.ckpt", torch.tensor(score))
        for step, score in enumerate([math.nan, 0.5, 0.4, math.inf, 0.6, -math.inf])
    ]
    assert removed == [[], [], [], [], ["step4.ckpt" if mode == "min" else "step2.ckpt"], []]
    assert set(keeper.best) == {"step1.ckpt", "step2.ckpt" if mode == "min" else "step4.ckpt"}
