"""The quickstart with tiny parts: stages in processes of their own, what they make, and how they stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forkserver
import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components.errors import UserError
from voxzoo.tasks import SpeechToSpeechUnitY, SpeechToText, load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.runs.folder import pid_lock

pytestmark = pytest.mark.slow

STAGES = ["units", "vocoder", "first_pass", "second_pass"]
STEPS = 6
# A model that has learned nothing does not stop by itself.
SHORT = "{search:{_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}}"


def command(tiny: list[str], root: Path, name: str, *overrides: str, steps: int = STEPS) -> list[str]:
    return [
        *("train", "experiment=quickstart", *tiny, "unit_extractor=tiny", "t2u=tiny", "vocoder=tiny", "adaptor=stack"),
        *(f"root={root}", f"name={name}", "stage_jobs=2", "logger=none", "checkpoint.every_steps=1"),
        *(f"stages.{stage}.set.task={SHORT}" for stage in ("first_pass", "second_pass")),
        *(f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", *overrides),
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return forkserver.popen(
        [*forkserver.COMMAND, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_trains(parent: subprocess.Popen[str], run: Path, stage: str) -> None:
    deadline = time.monotonic() + 120
    while not (run / "stages" / stage / "checkpoints" / "last.ckpt").exists():
        if parent.poll() is not None or time.monotonic() > deadline:
            parent.kill()
            raise AssertionError(parent.communicate()[1])
        time.sleep(0.05)


def free(folder: Path) -> bool:
    """Whether no process works in a run folder: the lock of one goes with it, however it ends."""
    with suppress(UserError), pid_lock(folder):
        return True
    return False


@dataclass
class Interrupted:
    """What was seen of a run that was stopped with Ctrl-C in its first stage."""

    status: int
    said: str
    step: int
    free: bool
    done: list[str]
    litter: list[Path]


@pytest.fixture(scope="module")
def root(popen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("staged")


@pytest.fixture(scope="module")
def interrupted(tiny: list[str], root: Path) -> Interrupted:
    run = root / "whole"
    parent = start(command(tiny, root, "whole"))
    wait_until_it_trains(parent, run, "first_pass")
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=90)
    last = torch.load(run / "stages" / "first_pass" / "checkpoints" / "last.ckpt", weights_only=True)
    return Interrupted(
        status=parent.returncode,
        said=said,
        step=last["global_step"],
        free=all(free(folder) for folder in (run / "stages").iterdir()),
        done=[path.parent.name for path in run.glob("stages/*/done.json")],
        litter=list(run.rglob("*.tmp")),
    )


@pytest.fixture(scope="module")
def run(interrupted: Interrupted, tiny: list[str], root: Path, voxzoo: Callable[..., Any]) -> Path:
    """The same command again, to its end."""
    done = voxzoo(*command(tiny, root, "whole"), "--json", cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["stages"]) == STAGES
    assert interrupted.step == STEPS or "[first_pass] resuming from" in done.stderr
    return root / "whole"


def test_ctrl_c_stops_every_stage(interrupted: Interrupted):
    assert interrupted.status == 130
    assert interrupted.said.splitlines()[-1] == "voxzoo train: stopped by SIGINT; the same command continues"
    assert "Traceback" not in interrupted.said
    assert interrupted.free, "a stage still runs"
    assert interrupted.litter == []
    assert "second_pass" not in interrupted.done


def evaluate(run: Path, capfd: pytest.CaptureFixture[str], *words: str) -> dict:
    capfd.readouterr()
    assert main(["evaluate", str(run), "--split", "test_seen", "--limit", "3", "--beam", "1", "--json", *words]) == 0
    return json.loads(capfd.readouterr().out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_every_stage_is_trained_and_taken_over_by_the_last(run: Path):
    stages = {name: run / "stages" / name for name in STAGES}
    steps = {name: json.loads((path / "done.json").read_text()).get("steps") for name, path in stages.items()}
    assert steps == {"first_pass": STEPS, "units": None, "vocoder": STEPS, "second_pass": STEPS}
    assert (stages["units"] / "units.jsonl").stat().st_size > 0
    last = weights(stages["second_pass"])
    best = load_run(stages["first_pass"]).task.state_dict()
    for role, state in {
        "speech_encoder": best,
        "adaptor": best,
        "text_seq2seq": best,
        "unit_extractor": weights(stages["units"]),
        "vocoder": load_run(stages["vocoder"]).task.state_dict(),
    }.items():
        keys = [key for key in last if key.startswith(f"{role}.")]
        assert keys
        assert all(last[key].equal(state[key]) for key in keys), role
    task = load_run(run).task
    assert isinstance(task, SpeechToSpeechUnitY)
    assert task.first_pass_frozen is False  # freezing is for training
    table = task.tokenizer.piece_characters()
    assert last["t2u.characters"][:, : table.shape[1]].equal(table.to(last["t2u.characters"]))


def test_text_and_speech_are_evaluated(run: Path, capfd: pytest.CaptureFixture[str]):
    text = evaluate(run, capfd, "--task", "s2tt")
    assert text["num_utterances"] == 3
    assert {"bleu", "chrf"} <= text.keys()
    assert "duration_ratio" not in text
    spoken = evaluate(run, capfd, "--recogniser", "none")
    assert list(spoken["tasks"]) == ["s2st"]
    assert spoken["duration_ratio"] > 0
    assert spoken["silent"] >= 0
    assert spoken["clipped"] == 0
    assert spoken["notes"][0] == "speech output was not judged (--recogniser none)"
    lines = [json.loads(line) for line in Path(spoken["hypotheses"]).read_text().splitlines()]
    for line in lines:
        info = soundfile.info(str(run / "evaluation" / line["audio"]))
        assert (info.samplerate, info.subtype) == (16000, "PCM_16")
        assert info.frames / 16000 == pytest.approx(line["duration"], abs=1e-3)
        assert line["reference_duration"] > 0.1
    assert [line["hypothesis"] for line in lines] == [
        json.loads(line)["hypothesis"] for line in Path(text["hypotheses"]).read_text().splitlines()[:3]
    ]


def test_speech_is_translated_to_wav_files(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        noise = np.random.default_rng(0).standard_normal(int(16000 * seconds))
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * noise, 16000)
    out = tmp_path / "out"
    words = ["--task", "s2st", "--to", "eng", "--out", str(out), "--beam", "1", "--json"]
    assert main(["translate", str(run), str(tmp_path / "one.wav"), str(tmp_path / "two.wav"), *words]) == 0
    rows = json.loads(capfd.readouterr().out)["results"]
    assert [row["id"] for row in rows] == ["one", "two"]
    for row in rows:
        audio, rate = soundfile.read(row["audio"])
        assert Path(row["audio"]).parent == out
        assert len(audio) / rate == pytest.approx(row["duration"], abs=1e-3)
        assert np.isfinite(audio).all()
        assert all(0 <= unit < 8 for unit in row["units"])


def test_the_same_command_again_is_done_at_once(
    run: Path, tiny: list[str], root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    monkeypatch.setattr(subprocess, "Popen", None)  # no stage is started only to find that it is done
    assert main([*command(tiny, root, "whole"), "--json"]) == 0
    found, said = capfd.readouterr()
    assert list(json.loads(found)["stages"]) == STAGES
    assert said.count("already trained") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_setting_is_refused_before_any_stage(
    run: Path, tiny: list[str], root: Path, capfd: pytest.CaptureFixture[str]
):
    assert main(command(tiny, root, "whole", "optim.lr=0.5")) == 1
    said = capfd.readouterr().err
    assert "lr: 0.5" in said
    assert "Traceback" not in said


def test_a_stage_trained_alone_with_other_settings_is_not_passed_off(
    tiny: list[str], root: Path, capfd: pytest.CaptureFixture[str]
):
    words = command(tiny, root, "alone", "t2u=none")
    assert main([*words, "--stage", "first_pass", "optim.lr=0.5"]) == 0
    capfd.readouterr()
    assert main(words) == 1
    assert "lr: 0.5" in capfd.readouterr().err


def test_without_t2u_the_first_pass_is_trained_alone(tiny: list[str], root: Path, capfd: pytest.CaptureFixture[str]):
    assert main([*command(tiny, root, "text", "t2u=none", "adaptor=none"), "--json"]) == 0
    assert list(json.loads(capfd.readouterr().out)["stages"]) == ["first_pass"]
    assert type(load_run(root / "text").task) is SpeechToText
    assert evaluate(root / "text", capfd)["num_utterances"] == 3
    assert main(["translate", str(root / "text"), str(root), "--task", "s2st", "--to", "eng", "--out", str(root)]) == 1
    assert "--task s2st: this run can do asr, s2tt" in capfd.readouterr().err


def test_stages_stop_by_themselves_when_their_parent_is_killed(
    tiny: list[str], root: Path, voxzoo: Callable[..., subprocess.CompletedProcess[str]]
):
    words = command(tiny, root, "killed", "t2u=none", steps=2000)
    folder = root / "killed" / "stages" / "first_pass"
    parent = start(words)
    wait_until_it_trains(parent, root / "killed", "first_pass")
    assert not free(folder)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while not free(folder):
        assert time.monotonic() < deadline, "the stage still runs"
        time.sleep(0.1)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < content["global_step"] < 2000
    assert not (folder / "done.json").exists()


def test_a_stage_that_fails_is_named_with_its_reason(tiny: list[str], root: Path, capfd: pytest.CaptureFixture[str]):
    assert main(command(tiny, root, "failing", "t2u=none", "data.max_seconds=0.2")) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("voxzoo train: stage first_pass stopped (exit 1): ")
    assert "train: none of 40 utterances can be used: 40 longer than 0.2 s" in last
    assert free(root / "failing" / "stages" / "first_pass")


# How often a run imports, composes and traces

COUNTED = """
import os, subprocess, sys
from pathlib import Path
from voxzoo.tasks.commands import cli
from voxzoo.tasks.training import train as module

counts, words = Path(sys.argv[1]), sys.argv[2:]

def count(name, call):
    def counted(*args, **options):
        with counts.open("a") as file:
            file.write(f"{name} {os.getpid()}\\n")
        return call(*args, **options)
    return counted

class Popen(subprocess.Popen):
    def __init__(self, command, *args, **options):
        assert "voxzoo.tasks.commands.cli" not in command, "a fresh process imports all again"
        super().__init__(command, *args, **options)

module.trace = count("trace", module.trace)  # also in what is forked from this process
module._train_one = count("train", module._train_one)
composing = sys.modules["voxzoo.configs.compose"]  # the package has a function of that name
composing.hydra_compose = count("compose", composing.hydra_compose)
subprocess.Popen = Popen
sys.argv = ["voxzoo", *words]
raise SystemExit(cli.main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forked on Linux alone")
def test_stages_import_compose_and_trace_nothing_again(tiny: list[str], root: Path):
    words = command(tiny, root, "counted", "stages.second_pass=null", "stage_jobs=1", steps=1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", COUNTED, str(root / "counts"), *words]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = [line.split() for line in (root / "counts").read_text().splitlines()]
    parent = next(pid for name, pid in counts if name == "trace")
    assert [pid for name, pid in counts if name == "trace"] == [parent] * 3
    trained = [pid for name, pid in counts if name == "train"]
    assert len(set(trained)) == 3
    assert parent not in trained
    # The run, the defaults that keys are compared with, and each stage with what it chooses: a stage that the command
    # line names costs no other.
    assert [pid for name, pid in counts if name == "compose"] == [parent] * (2 + 3)
    assert done.stderr.count("[units] ") > 0
