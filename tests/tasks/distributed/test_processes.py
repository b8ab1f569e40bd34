"""One run on one process or two, under DDP, FSDP2 or FSDP1, in one go or stopped and gone on with elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import stopper
import torch
from conftest import logged
from ways import CPU, HOW, SETTINGS, assert_close, weights


@pytest.fixture(scope="module")
def runs(voxzoo, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the same global batches, three ways."""
    folder = tmp_path_factory.mktemp("processes")
    for name, words in HOW.items():
        call = [*words, *tiny, *SETTINGS, f"root={folder}", f"name={name}", "trainer.max_steps=6"]
        done = voxzoo("train", *call, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 6  # one object, though two processes ran the command
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp"])
def test_two_processes_train_the_run_of_one(name: str, runs: Path):
    """A step over two processes is the step of one that accumulates the same batches, to rounding."""
    expected = logged(runs / "one", "train/grad_norm")
    assert len(expected) == 6
    assert logged(runs / name, "train/grad_norm") == pytest.approx(expected, rel=1e-5)
    assert_close(weights(runs / "one"), weights(runs / name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [("ddp", "one"), ("one", "fsdp2"), ("fsdp2", "ddp"), ("one", "fsdp"), ("fsdp", "fsdp2")]
)
def test_a_run_goes_on_under_another_strategy(first: str, then: str, voxzoo, tiny: list[str], runs: Path):
    folder = runs / f"{first}-{then}"
    shared = [*tiny, *SETTINGS, *stopper.WORDS, f"root={folder}", "name=run", "trainer.max_steps=20"]
    told = stopper.environment(3, signal.SIGTERM)
    said = voxzoo("train", *HOW[first], *shared, cwd=runs, env=told)
    assert said.returncode == 75, said.stderr  # what a scheduler requeues on
    stopped = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert stopped == 4
    done = voxzoo("train", *HOW[then], *shared, "--json", cwd=runs, env=stopper.environment())
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert json.loads(done.stdout)["steps"] == 20
    whole = runs / "whole"
    if not whole.exists():
        words = [*tiny, *SETTINGS, f"root={runs}", "name=whole", "trainer.max_steps=20"]
        assert voxzoo("train", *HOW["one"], *words, cwd=runs).returncode == 0
    assert_close(weights(whole), weights(folder / "run"))


@pytest.mark.slow
def test_two_nodes_train_the_quickstart(tiny: list[str], tmp_path: Path):
    """torchrun on two machines, simulated on one: all stages, one process on each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] % 20000 + 20000
    words = ["experiment=quickstart", *tiny, "unit_extractor=tiny", "t2u=tiny", "vocoder=tiny", "adaptor=stack"]
    words += ["trainer=multinode", "trainer.devices=1", *CPU, f"root={tmp_path}", "name=run", "logger=none"]
    words += ["trainer.max_steps=4", "trainer.val_check_interval=4", "data.batch_size=4"]
    nodes = []
    for rank in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"]
        command += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command += ["-m", "voxzoo.tasks.commands.cli", "train", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        nodes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        said = [node.communicate(timeout=400)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    stages = tmp_path / "run" / "stages"
    for name in ("first_pass", "vocoder", "second_pass"):
        assert json.loads((stages / name / "done.json").read_text())["steps"] == 4
    loops = torch.load(stages / "first_pass" / "checkpoints" / "last.ckpt", weights_only=True)
    assert loops["global_step"] == 4
