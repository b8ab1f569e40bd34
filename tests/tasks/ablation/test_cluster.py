"""Points as jobs, through submitit's debug and local executors, and as arrays of a Slurm that is played."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forkserver
import pytest
from test_sweep import answer, ended, single, tables
from voxzoo.components.errors import UserError
from voxzoo.tasks.ablation.cluster import Cluster, settings_of
from voxzoo.tasks.runs.folder import is_held, pid_lock

pytest.importorskip("submitit")

FAILS = ["max_skipped_steps=1", "trainer.max_steps=12"]  # of lr=1e30


def test_jobs_of_the_debug_executor_are_points_like_others(voxzoo, tiny: list[str], tmp_path: Path):
    debug = single(tiny, tmp_path, "debug", "lr=1e-3,1e30", *FAILS, "--cluster", "debug")
    found = answer(voxzoo(*debug, cwd=tmp_path))
    plain = answer(voxzoo(*single(tiny, tmp_path, "plain", "lr=1e-3,1e30", *FAILS), cwd=tmp_path))
    assert found["status"] == plain["status"] == "failed"
    assert found["trained_now"] == plain["trained_now"] == 1
    why = [one["results"]["systems"]["lr=1e+30"]["failed"]["lr=1e+30"] for one in (found, plain)]
    log = why[0].removeprefix(why[1].replace("plain", "debug"))
    assert log.startswith(" (")
    assert log.endswith("_0_log.err)")
    found["results"]["systems"]["lr=1e+30"]["failed"] = plain["results"]["systems"]["lr=1e+30"]["failed"]
    assert found["results"] == plain["results"]
    costs = found["costs"]["lr=0.001"]
    assert min(costs[name] for name in ("seconds", "cpu_seconds", "peak_mb", "scoring_seconds")) > 0
    ends = ended(tmp_path / "debug")
    assert answer(voxzoo(*debug, cwd=tmp_path))["trained_now"] == 0
    assert {name: when for name, when in ended(tmp_path / "debug").items() if name in ends} == ends


def test_settings_that_are_none_are_said(tmp_path: Path):
    assert settings_of(["slurm_partition=gpu", "timeout_min=240"]) == {"slurm_partition": "gpu", "timeout_min": 240}
    with pytest.raises(UserError, match="--cluster-option gpu: expected KEY=VALUE"):
        settings_of(["gpu"])
    with pytest.raises(UserError, match=r"--cluster debug: .*partitions"):
        Cluster(tmp_path, {"partitions": "gpu"}, "debug")
    with pytest.raises(UserError, match="--cluster slurm: say how many minutes a job may take"):
        Cluster(tmp_path, {}, "slurm")


def test_a_point_that_another_process_still_saves_is_waited_for(voxzoo, tiny: list[str], tmp_path: Path):
    call = single(tiny, tmp_path, "held", "lr=1e-3", "--split", "none")
    words = [word for word in call if word != "--json"]
    assert voxzoo(*words, "--dry-run", cwd=tmp_path).returncode == 0
    plan = answer(voxzoo(*call, "--dry-run", cwd=tmp_path))
    folder = Path(plan["points"][0]["folder"])
    lock = pid_lock(folder)
    assert is_held(folder)
    with forkserver.popen([*forkserver.COMMAND, *words], cwd=tmp_path, stderr=-1, text=True) as process:
        said = ""
        while "waits for a process that has not ended yet" not in said:
            said += process.stderr.readline()
        lock.close()
        assert not is_held(folder)
        said += process.communicate(timeout=100)[1]
    assert process.returncode == 0, said


def processes(folder: Path) -> list[int]:
    """Those that have the folder among their words or their environment, without this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def wait_for(what: Any, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_jobs_of_this_machine_end_with_the_command_and_go_on(voxzoo, tiny: list[str], tmp_path: Path):
    swept = ["lr=1e-3,1e-2,1e30", *FAILS]
    plain = answer(voxzoo(*single(tiny, tmp_path, "plain", *swept), cwd=tmp_path))
    folder = tmp_path / "local"
    call = single(tiny, tmp_path, "local", *swept, "--cluster", "local", "--jobs", "2")
    for number in (signal.SIGKILL, signal.SIGTERM):
        kept = len(list(folder.glob("points/*/checkpoints/last.ckpt")))
        process = forkserver.popen([*forkserver.COMMAND, *call], cwd=tmp_path, stdout=-3, stderr=-3)
        wait_for(lambda kept=kept: len(list(folder.glob("points/*/checkpoints/last.ckpt"))) > kept)
        process.send_signal(number)
        process.wait()
        wait_for(lambda: not processes(folder), 30)
    ends = ended(folder)
    found = answer(voxzoo(*call, cwd=tmp_path, timeout=400))
    assert {name: when for name, when in ended(folder).items() if name in ends} == ends
    failed = found["results"]["systems"]["lr=1e+30"]["failed"]
    assert "the gradient is not finite" in failed["lr=1e+30"]
    assert "_log.err)" in failed["lr=1e+30"]
    for one in (found, plain):
        del one["results"]["systems"]["lr=1e+30"]["failed"]
    assert found["results"] == plain["results"]
    resumed = [path for path in (folder / "jobs").glob("*_log.err") if "resuming from" in path.read_text()]
    assert resumed
    costs = found["costs"]["lr=0.001"]
    assert min(costs[name] for name in ("seconds", "cpu_seconds", "peak_mb")) > 0


QUEUED_AGAIN = """
import os, signal, sys
from voxzoo.tasks.ablation.job import Call
def again(number, frame):
    sys.exit(144)  # what submitit's handler does
signal.signal(signal.SIGUSR1, again)
print(Call(os.getcwd(), None, 1)("a point", sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves_before_it_is_queued_again(tiny: list[str], tmp_path: Path):
    words = [*single(tiny, tmp_path, "run")[1:], "trainer.max_steps=2000", "checkpoint.every_steps=1000"]
    words = [word for word in words if "=" in word]
    job = subprocess.Popen(
        [sys.executable, "-c", QUEUED_AGAIN, "train", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert job.stderr is not None
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last.ckpt").exists())
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 144
    assert re.search(r"stopped by SIGTERM at step \d+; the same command continues", said)


# Slurm, played: `sbatch` starts what `srun` would, `sacct` says how it ended.

SBATCH = """#!PYTHON
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
number = 1 + len(open("arrays").readlines()) if os.path.exists("arrays") else 1
option = lambda name: re.search(rf"^#SBATCH --{name}=(.*)$", text, re.MULTILINE)
array = option("array")
open("arrays", "a").write((array[1] if array else "one") + " " + option("signal")[1] + "\\n")
script = os.path.abspath(f"script.{number}")
open(script, "w").write(text)
for place in range(int(re.match(r"0-(\\d+)", array[1])[1]) + 1) if array else [None]:
    job = str(number) if place is None else f"{number}_{place}"
    names = {"SLURM_JOB_ID": str(number), "SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NODEID": "0",
             "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "JOB": job}
    if place is not None:
        names |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(place)}
    subprocess.Popen(["bash", "-c", f"bash {script}; echo $? > ended.{job}"], env={**os.environ, **names},
                     start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
print(f"Submitted batch job {number}")
"""
SRUN = """#!PYTHON
import os, subprocess, sys
words, files = sys.argv[1:], {}
while words[0].startswith("-"):
    word = words.pop(0)
    if word in ("--output", "--error"):
        path = words.pop(0).replace("%A_%a", os.environ["JOB"]).replace("%j", os.environ["JOB"]).replace("%t", "0")
        files[word] = open(path, "a")
sys.exit(subprocess.call(words, stdout=files["--output"], stderr=files["--error"]))
"""
SACCT = """#!PYTHON
import os
print("JobID|State|NodeList")
for line in range(1, 1 + len(open("arrays").readlines())):
    for job in [str(line), *(f"{line}_{n}" for n in range(9))]:
        print(f"{job}|{'COMPLETED' if os.path.exists(f'ended.{job}') else 'RUNNING'}|here")
"""
SCANCEL = """#!/bin/sh
echo $@ >> cancelled
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what Slurm has; its records are where one stands."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(text.replace("PYTHON", sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.slow
def test_points_are_an_array_of_slurm_and_outlive_the_command(voxzoo, slurm: Path, tiny: list[str]):
    swept = ["lr=1e-3,1e-2,1e30", *FAILS]
    call = single(
        tiny, slurm, "array", *swept, "--cluster", "slurm", "--cluster-option", "timeout_min=10", "--jobs", "2"
    )
    process = forkserver.popen([*forkserver.COMMAND, *call], cwd=slurm, stdout=-3, stderr=-3)
    wait_for(lambda: (slurm / "array" / "jobs" / "begun.json").exists())
    process.kill()
    process.wait()
    found = answer(voxzoo(*call, cwd=slurm, timeout=400))
    assert found["results"]["systems"], found
    # The same three jobs: only the scores of the two that were trained are new ones.
    assert (slurm / "arrays").read_text().splitlines()[0] == "0-2%2 USR1@90"
    assert len(json.loads((slurm / "array" / "jobs" / "begun.json").read_text())) == 5
    assert len(list(slurm.glob("ended.1_*"))) == 3
    assert found["status"] == "failed"
    assert "the gradient is not finite" in found["results"]["systems"]["lr=1e+30"]["failed"]["lr=1e+30"]
    plain = answer(voxzoo(*single(tiny, slurm, "plain", *swept), cwd=slurm))
    for one in (found, plain):
        del one["results"]["systems"]["lr=1e+30"]["failed"]
    assert found["results"] == plain["results"]
    before = tables(slurm / "array")
    assert answer(voxzoo(*call, cwd=slurm, timeout=400))["trained_now"] == 0
    assert (slurm / "arrays").read_text().splitlines()[-1] == "one USR1@90"  # the one that fails, once more
    assert tables(slurm / "array")["table.csv"] == before["table.csv"]
