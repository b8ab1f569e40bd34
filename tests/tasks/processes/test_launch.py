"""The launch files for clusters, on this machine: `srun` and `scontrol` are played, the processes are real."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stopper

LAUNCH = Path(__file__).resolve().parents[3] / "configs" / "launch"
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = []
for rank in range(2):
    here = {{"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}}
    tasks.append(subprocess.Popen(words, env={{**os.environ, **here}}))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo "   JobState=$STATE Reason=None"; else echo "$@" >> requeued; fi
"""
# One worker that ends as HOW says; "early": a signal finds none yet.
TORCHRUN = f"""#!{sys.executable}
import os, subprocess, sys, time
worker = '''
import os, signal, sys, time
how = os.environ["HOW"]
def say(word):
    open(os.environ["VOXZOO_LAUNCHER_FILE"], "a").write(word + chr(10))
def end(number=0, frame=None):
    if how in ("saves", "told by another machine"):
        say("stopped")
        os._exit(75)
    os._exit(1)
signal.signal(signal.SIGUSR1, end)
say("ready")
if how in ("told by another machine", "fails"):
    end()
open("here", "w")
time.sleep(30)
'''
if os.environ["HOW"] == "early":
    open("here", "w")
    time.sleep(30)
sys.exit(1 if subprocess.call([sys.executable, "-c", worker]) else 0)
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """What Slurm sets in a job of two machines, both of which are this one."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ, **stopper.environment(), "PATH": path, "OMP_NUM_THREADS": "1", "STATE": "RUNNING",
        "SLURM_JOB_ID": "4711", "SLURM_JOBID": "4711", "SLURM_JOB_NAME": "voxzoo", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip


def words(tiny: list[str], folder: Path) -> list[str]:
    return [
        *tiny, "trainer=multinode", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
        "trainer.max_steps=6", "trainer.val_check_interval=3", "data.batch_size=5", "logger=none",
        f"root={folder}", "name=run", *stopper.WORDS,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["slurm.sh", "torchrun.sh"])
def test_the_files_parse_and_name_no_machine(name: str):
    assert subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True).returncode == 0
    paths = re.findall(r"(?<![\w.}])/[\w./-]+", (LAUNCH / name).read_text())
    assert set(paths) <= {"/bin/bash", "/dev/null", "/shared/runs"}  # of any machine, and an example


@pytest.mark.slow
def test_slurm_stops_queues_again_and_goes_on(tiny: list[str], cluster: dict[str, str], tmp_path: Path):
    def submit(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", LAUNCH / "slurm.sh", *words(tiny, tmp_path), "--json"],
            cwd=tmp_path, env={**cluster, **more}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip

    cancelled = submit(**stopper.environment(2, signal.SIGUSR1, each=True), STATE="CANCELLED")
    assert cancelled.returncode == 75, cancelled.stderr
    assert not (tmp_path / "requeued").exists()
    done = submit()
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    answer = json.loads(done.stdout)  # of one process alone
    assert answer["steps"] == 6
    assert answer["task"] == "SpeechToText"


def test_slurm_script_queues_again_where_it_should(cluster: dict[str, str], tmp_path: Path):
    """Without training: by the exit status of srun and the state of the job."""
    for code, state, again in (
        (75, "RUNNING", True), (138, "RUNNING", True), (75, "CANCELLED", False), (1, "RUNNING", False),
        (0, "RUNNING", False),
    ):  # fmt: skip
        (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
        (tmp_path / "requeued").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", LAUNCH / "slurm.sh", "x=1"], cwd=tmp_path, env={**cluster, "STATE": state}, timeout=20
        )
        assert done.returncode == code
        assert (tmp_path / "requeued").exists() == again, (code, state)
        if again:
            assert (tmp_path / "requeued").read_text() == "requeue 4711\n"


@pytest.mark.parametrize(
    ("how", "told", "code"),
    [
        ("early", True, 75),
        ("saves", True, 75),
        ("crashes while it saves", True, 1),
        ("told by another machine", False, 75),
        ("fails", False, 1),
    ],
)
def test_torchrun_script_says_75_where_the_run_was_stopped(
    how: str, told: bool, code: int, cluster: dict[str, str], tmp_path: Path
):
    """Without training: by what the processes tell it."""
    (tmp_path / "bin" / "torchrun").write_text(TORCHRUN)
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    environment = {**cluster, "HOW": how, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(["bash", LAUNCH / "torchrun.sh", "x=1"], cwd=tmp_path, env=environment)
    if told:
        wait_for(tmp_path / "here")
        process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == code
    assert not list(tmp_path.glob("tmp.*"))


def wait_for(path: Path, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
def test_torchrun_stops_on_a_signal_and_goes_on(tiny: list[str], cluster: dict[str, str], tmp_path: Path):
    environment = {name: value for name, value in cluster.items() if not name.startswith("SLURM")} | {"PROCESSES": "2"}
    call = ["bash", LAUNCH / "torchrun.sh", *words(tiny, tmp_path), "trainer.devices=2", "--json"]
    process = subprocess.Popen(
        call, cwd=tmp_path, env={**environment, **stopper.environment(slow=tmp_path / "steps")}, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "steps")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert said.count("stopped by") == said.count("voxzoo train: stopped by SIGTERM at step") == 1
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert json.loads(done.stdout)["steps"] == 6
