"""Runs that are killed: with SIGKILL at any moment, with SIGTERM or SIGUSR1 as schedulers do, one process or all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import forkserver
import pytest
import torch
from speech_lm_corpus import corpus
from voxzoo.tasks.processes.signals import EXIT_CODES

# Loaded by the runs through `callbacks.spy`. It notes what each process does, and sends the process a signal at the
# moment that SPY names, "MOMENT RANK COUNT SIGNAL": the COUNTth time that the process comes to it. Then SIGTERM follows
# again and again, to the end of the process. RANK -1: each process; -2: all of the group, workers that read data too.
# "meet": the first process waits for the second one to begin, in vain.
SPY = """
import json, os, signal, threading, time
from pathlib import Path
from lightning import Callback

class Spy(Callback):
    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / f"{os.getpid()}.jsonl"
        moment, rank, count, number = os.environ.get("SPY", "none 0 0 0").split()
        self.moment, self.rank, self.count, self.number = moment, int(rank), int(count), int(number)
        sync = os.fsync
        def fsync(file):
            self.at("write")
            sync(file)
        os.fsync = fsync
        if self.moment == "meet" and os.environ.get("LOCAL_RANK") == "1":
            self.say(killed="meet")
            os.kill([os.getppid(), os.getpid()][self.rank], self.number)
            time.sleep(300)

    def say(self, **what) -> None:
        with self.path.open("a") as file:
            print(json.dumps(what), file=file, flush=True)

    def at(self, moment: str) -> None:
        if moment != self.moment or self.rank not in (-1, -2, getattr(self, "own", None)):
            return
        self.count -= 1
        if self.count == 0:
            self.say(killed=moment)
            os.killpg(0, self.number) if self.rank == -2 else os.kill(os.getpid(), self.number)
            threading.Thread(target=self.repeat, daemon=True).start()

    def repeat(self) -> None:
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.002)

    def on_fit_start(self, trainer, pl_module):
        self.own = trainer.global_rank

    def on_train_start(self, trainer, pl_module):
        self.at("start")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch.ids

    def on_after_backward(self, trainer, pl_module):
        self.at("step")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.say(step=trainer.global_step, epoch=trainer.current_epoch, ids=batch.ids, rank=self.own)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.at("validation")
        self.say(validated=trainer.global_step, ids=batch.ids, rank=self.own)
"""

SETTINGS = [
    "trainer.max_steps=26", "trainer.val_check_interval=6", "checkpoint.every_steps=4", "data.batch_size=6",
    "schedule=cosine", "optim.lr=0.01", "trainer.log_every_n_steps=5", "logger=none", "allow=[spy]",
    "+callbacks.spy._target_=spy.Spy",
]  # fmt: skip
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1", "trainer.devices=2"]
HOW = {"one": [], "lm": [], "ddp": ["trainer=ddp", *CPU], "fsdp2": ["trainer=fsdp2", *CPU]}
LM = ["speech_lm.dropout=0.1", "stream_lm.dropout=0.1"]


class Runs:
    """Starts runs with a spy, and reads what it noted."""

    def __init__(self, folder: Path, tiny: list[str]) -> None:
        self.folder, self.tiny = folder, tiny
        (folder / "spy.py").write_text(SPY)

    def start(self, name: str, how: str, spy: str = "none 0 0 0", *more: str) -> subprocess.Popen[str]:
        (self.folder / f"notes-{name}").mkdir(exist_ok=True)
        words = [
            *HOW[how],
            *(self._speech_lm() if how == "lm" else self.tiny),
            *SETTINGS,
            f"+callbacks.spy.folder={self.folder}/notes-{name}",
        ]
        command = [*forkserver.COMMAND, "train", *words, f"root={self.folder}", f"name={name}"]
        paths = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "SPY": spy}
        return forkserver.popen(
            [*command, *more], cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def _speech_lm(self) -> list[str]:
        """The task of a speech LM, on data of its own: beside what a test has written."""
        folder = self.folder / "speech_lm"
        folder.mkdir(exist_ok=True)
        return [*corpus(folder, 40), *LM]

    def run(self, name: str, how: str, spy: str = "none 0 0 0", *more: str) -> tuple[int, str]:
        process = self.start(name, how, spy, *more)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said

    def notes(self, name: str) -> list[dict[str, Any]]:
        """What all processes of all starts noted."""
        files = sorted((self.folder / f"notes-{name}").iterdir(), key=lambda path: path.stat().st_mtime)
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    def last(self, name: str) -> dict[str, Any]:
        return torch.load(self.folder / name / "checkpoints" / "last.ckpt", weights_only=True)

    def same_end(self, name: str, other: str) -> None:
        """Equal weights, optimizer states and ranking, bit by bit; and nothing is left lying about."""
        first, second = self.last(name), self.last(other)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_equal(first[key], second[key], key)
        rankings = [json.loads((self.folder / run / "checkpoints" / "best.json").read_text()) for run in (name, other)]
        assert rankings[0] == rankings[1]
        files = [sorted(path.name for path in (self.folder / run / "checkpoints").iterdir()) for run in (name, other)]
        assert files[0] == files[1]


def assert_equal(first: Any, second: Any, where: str) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):  # FSDP2 gives one for the other
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.fixture(scope="module")
def runs(popen, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("killed"), tiny)


def whole(runs: Runs, how: str) -> str:
    """The name of the uninterrupted run."""
    name = f"whole-{how}"
    if not (runs.folder / name).exists():
        code, said = runs.run(name, how)
        assert code == 0, said
    return name


MOMENTS = {
    "one": ["step", "write", "validation", "write", "step"], "lm": ["step", "write", "validation"],
    "ddp": ["step", "write", "validation"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one", "ddp", "fsdp2", "lm"])
def test_killed_at_random_moments_ends_bit_equal(how: str, runs: Runs):
    expected = whole(runs, how)
    seed = time.time_ns() % 10**9
    draw = random.Random(seed)
    print("seed", seed)
    name = f"killed-{how}"
    for moment in MOMENTS.get(how, MOMENTS["ddp"]):
        # A write belongs to the first process; otherwise any one of the processes dies, or (-1) all at once.
        rank = 0 if how in ("one", "lm") or moment == "write" else draw.choice([0, 1, -1])
        count = draw.randint(2, 4) if moment == "step" else draw.randint(1, 2)
        code, said = runs.run(name, how, f"{moment} {rank} {count} {int(signal.SIGKILL)}")
        print(moment, rank, count, code)
        assert code != 0, said
        assert "this should not happen" not in said
        checkpoints = runs.folder / name / "checkpoints"
        if moment == "write":
            assert any(path.suffix == ".tmp" for path in (*checkpoints.glob(".*"), *checkpoints.parent.glob(".*")))
    code, said = runs.run(name, how)
    assert code == 0, said
    assert "resuming from" in said
    assert Counter(note["killed"] for note in runs.notes(name) if "killed" in note).keys() == {
        "step", "write", "validation",
    }  # fmt: skip
    runs.same_end(name, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number", "code", "line"),
    [
        (0, signal.SIGTERM, 75, "voxzoo train: stopped by SIGTERM with no step under way; the same command continues"),
        (0, signal.SIGKILL, -signal.SIGKILL, ""),
        (1, signal.SIGKILL, 1, "voxzoo train: process 1 of this run has ended (signal 9: killed, or out of memory?); "),
    ],
)
def test_before_the_first_step_all_processes_end_together(
    rank: int, number: signal.Signals, code: int, line: str, runs: Runs
):
    name = f"met-{rank}-{number.name}"
    # It returns when no process is left to hold its output, or fails.
    ended, said = runs.run(name, "ddp", f"meet {rank} 1 {int(number)}")
    assert ended == code, said
    own = [one for one in said.splitlines() if one.startswith("voxzoo train:")]
    assert len(own) == bool(line), said
    assert line in said
    assert "Traceback" not in said
    assert [note["killed"] for note in runs.notes(name)] == ["meet"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "moment", "number"),
    [
        ("one", "start", signal.SIGTERM),
        ("one", "step", signal.SIGTERM),
        ("one", "step", signal.SIGINT),
        ("one", "validation", signal.SIGUSR1),
        ("ddp", "validation", signal.SIGTERM),
        ("fsdp2", "step", signal.SIGUSR1),
    ],
)
def test_a_signal_loses_no_step(how: str, moment: str, number: signal.Signals, runs: Runs):
    expected = whole(runs, how)
    name = f"told-{how}-{moment}-{number.name}"
    rank = 0 if how == "one" else random.choice([0, 1, -1])
    code, said = runs.run(name, how, f"{moment} {rank} 1 {int(number)}")
    assert code == EXIT_CODES[number], said
    assert said.count("stopped by") == said.count(f"voxzoo train: stopped by {number.name} at step") == 1
    assert "Traceback" not in said
    code, said = runs.run(name, how)
    assert code == 0, said
    runs.same_end(name, expected)

    def trained(run: str) -> Counter:
        return Counter((note["rank"], note["step"], *note["ids"]) for note in runs.notes(run) if "step" in note)

    assert trained(name) == trained(expected)
    assert set(trained(name).values()) == {1}


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_group_leaves_those_that_read_data_at_work(runs: Runs):
    more = ["data.num_workers=2", "trainer.max_steps=9"]
    code, said = runs.run("group", "one", f"step -2 5 {int(signal.SIGTERM)}", *more)
    assert code == 75, said
    assert "voxzoo train: stopped by SIGTERM at step 5" in said
    assert "worker" not in said
    assert runs.run("group", "one", "none 0 0 0", *more)[0] == 0
    steps = [note["step"] for note in runs.notes("group") if "step" in note]
    assert steps == list(range(1, 10))


@pytest.mark.slow
def test_a_signal_while_averaged_weights_are_validated_changes_nothing(runs: Runs):
    more = [
        "callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "callbacks.ema.decay=0.5",
        "trainer.max_steps=-1", "trainer.max_epochs=2", "schedule=constant",
    ]  # fmt: skip
    assert runs.run("averaged", "one", "none 0 0 0", *more)[0] == 0
    code, said = runs.run("averaged-told", "one", f"validation 0 1 {int(signal.SIGTERM)}", *more)
    assert code == 75, said
    assert runs.run("averaged-told", "one", "none 0 0 0", *more)[0] == 0
    runs.same_end("averaged-told", "averaged")
    for name in ("averaged", "averaged-told"):  # the model's own weights are kept beside the average
        found = runs.last(name)
        assert_differ(found["state_dict"], found["current_model_state"])


def assert_differ(first: dict[str, Any], second: dict[str, Any]) -> None:
    shared = [key for key, value in first.items() if key in second and value.is_floating_point()]
    assert shared
    assert any(not torch.equal(first[key], second[key]) for key in shared)


LEGS = {
    "ddp": [("one", "trainer.accumulate_grad_batches=2"), ("ddp", "trainer.devices=3"), ("one", "threads=1"), ("ddp",)],
    "fsdp2": [("fsdp2",), ("one", "trainer.accumulate_grad_batches=2"), ("fsdp2", "trainer.devices=3"), ("one",)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEGS)
def test_no_utterance_is_skipped_or_repeated_when_the_number_of_processes_changes(name: str, runs: Runs):
    """7 batches of 40 utterances an epoch, stopped three times in the first two of three epochs."""
    legs = LEGS[name]
    seed = time.time_ns() % 10**9
    draw = random.Random(seed)
    print("seed", seed)
    for number, (how, *words) in enumerate(legs):
        last = number + 1 == len(legs)
        spy = "none 0 0 0" if last else f"step 0 {draw.choice([1, 3])} {int(signal.SIGTERM)}"
        code, said = runs.run(f"moved-{name}", how, spy, *words, "trainer.max_steps=-1", "trainer.max_epochs=3")
        print(how, words, spy, [line for line in said.splitlines() if "resuming" in line])
        assert code == (0 if last else 75), said
    seen: dict[int, Counter[str]] = {}
    for note in runs.notes(f"moved-{name}"):
        if "step" in note:
            seen.setdefault(note["epoch"], Counter()).update(note["ids"])
    assert sorted(seen) == [0, 1, 2]
    (ids,) = {frozenset(one) for one in seen.values()}
    assert len(ids) == 40
    assert all(count == Counter(ids) for count in seen.values())


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_validation_reads_every_utterance_once(devices: int, runs: Runs):
    """7 utterances: no multiple of 2 or 3."""
    name = f"valid-{devices}"
    more = ["data.corpus.num_valid=7", "trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=2"]
    code, said = runs.run(name, "ddp", "none 0 0 0", *more, f"trainer.devices={devices}")
    assert code == 0, said
    validated = [note for note in runs.notes(name) if "validated" in note]
    assert {note["rank"] for note in validated} == set(range(devices))
    seen = Counter(one for note in validated for one in note["ids"])
    assert len(seen) == 7
    assert set(seen.values()) == {1}


@pytest.mark.slow
def test_fewer_utterances_than_processes_are_refused_in_a_line(runs: Runs):
    code, said = runs.run("few", "ddp", "none 0 0 0", "data.corpus.num_valid=1", "trainer.devices=2")
    assert code == 1
    assert "valid: 1 utterances cannot be dealt to 2 processes in equal counts; use fewer processes" in said
    assert "Traceback" not in said
