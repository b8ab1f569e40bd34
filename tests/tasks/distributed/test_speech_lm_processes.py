"""The task of a speech LM on two processes, under each strategy, against one that accumulates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import logged
from speech_lm_corpus import corpus
from ways import HOW, SETTINGS, assert_close, weights

NOT_HERE = ("text_seq2seq.", "adaptor.")  # settings of parts that this task has not


@pytest.fixture(scope="module")
def runs(voxzoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the same global batches: tasks, directions, prompts and stages are drawn by name and epoch."""
    folder = tmp_path_factory.mktemp("speech_lm")
    shared = [*corpus(folder, 24), *(word for word in SETTINGS if not word.startswith(NOT_HERE))]
    for name, words in HOW.items():
        call = [*words, *shared, f"root={folder}", f"name={name}", "trainer.max_steps=6", "--json"]
        done = voxzoo("train", *call, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 6
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp"])
def test_two_processes_train_the_speech_lm_of_one(name: str, runs: Path):
    for value in ("train/grad_norm", "valid/lm", "valid/streams", "valid/accuracy_gen", "valid/loss_trans"):
        expected = logged(runs / "one", value)
        assert expected
        assert logged(runs / name, value) == pytest.approx(expected, rel=1e-5), value
    assert_close(weights(runs / "one"), weights(runs / name))
