"""One run on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_two_processes_train_one_run(voxzoo, tiny: list[str], tmp_path: Path):
    """A step over two processes is the step of one that accumulates the same batches, to rounding."""
    shared = [*tiny, f"root={tmp_path}", "trainer.val_check_interval=4", "logger=none", "data.batch_size=5"]
    shared += ["text_seq2seq.dropout=0", "adaptor.dropout=0", "text_seq2seq.attention_dropout=0"]
    # Full steps from the first one on; eps keeps gradients that are only rounding from becoming full steps too.
    shared += ["schedule=constant", "optim.lr=0.01", "optim.eps=1e-3"]
    two = ["trainer.devices=2", "+trainer.strategy=ddp", "trainer.max_steps=4"]
    one = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=4"]
    states, answers = {}, {}
    for name, words in (("two", two), ("one", one)):
        done = voxzoo("train", *shared, f"name={name}", *words, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers[name] = json.loads(done.stdout)  # one object, though two processes ran the command
        checkpoint = tmp_path / name / "checkpoints" / "last.ckpt"
        states[name] = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert answers["one"]["steps"] == answers["two"]["steps"] == 4
    torch.testing.assert_close(states["two"], states["one"], atol=1e-4, rtol=1e-3)
