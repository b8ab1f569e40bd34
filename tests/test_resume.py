"""A run killed at any step and started again ends with the weights of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TINY = [
    "speech_encoder=tiny",
    "adaptor=tiny",
    "text_seq2seq=tiny",
    "tokenizer=tiny",
    "data=tiny",
    "schedule=cosine",
    "trainer.max_steps=30",
    "trainer.val_check_interval=8",
    "trainer.log_every_n_steps=5",
    "checkpoint.every_steps=3",
]


def command(cache: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "voxzoo.tasks.cli", "train", *TINY, f"cache_dir={cache}", *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def wait_for_step(run: Path, process: subprocess.Popen, step: int) -> None:
    """Return once `last.ckpt` holds at least this step."""
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last.exists() and torch.load(last, weights_only=True)["global_step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended or hung before step {step}: {process.poll()}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(cache), cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "default"


def assert_same_end(run: Path, other: Path) -> None:
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    ranking = [json.loads((path / "checkpoints" / "best.json").read_text()) for path in (run, other)]
    assert ranking[0] == ranking[1]


@pytest.mark.slow
def test_killed_and_resumed_is_bit_equal(uninterrupted: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "runs" / "default"
    for step in sorted(random.Random(int(time.time())).sample(range(3, 27), 2)):
        process = subprocess.Popen(command(cache), cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
        wait_for_step(run, process, step)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command(cache), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "resuming from" in last.stderr
    assert_same_end(uninterrupted, run)


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(uninterrupted: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "runs" / "default"
    process = subprocess.Popen(command(cache), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(run, process, 4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by SIGINT" in said
    assert "Traceback" not in said
    again = subprocess.run(command(cache), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert_same_end(uninterrupted, run)


@pytest.mark.slow
def test_a_changed_config_is_refused_with_the_difference_and_nothing_is_touched(uninterrupted: Path, cache: Path):
    before = (uninterrupted / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    done = subprocess.run(
        command(cache, "optim.lr=0.5"),
        cwd=uninterrupted.parent.parent,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "-  lr: 0.001" in done.stderr
    assert "+  lr: 0.5" in done.stderr
    assert (uninterrupted / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
