"""The commands on one tiny real run: what comes out, and what bad input gets."""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.tasks.checkpoints import files as checkpoints
from voxzoo.tasks.checkpoints.files import read_checkpoint
from voxzoo.tasks.commands import cli
from voxzoo.tasks.commands.cli import VERBS, main
from voxzoo.tasks.runs.folder import pid_lock
from voxzoo.tasks.runs.run import load_run

# As this process was started: a job in the background begins with SIGINT ignored.
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

# A model that has learned nothing does not stop by itself.
SHORT = "task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}"
STEPS = [
    "schedule=constant",
    "optim.lr=1e-3",
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "checkpoint.every_steps=1",
    "trainer.log_every_n_steps=1",
]


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one object on standard output."""
        assert len(self.out.splitlines()) == 1
        return json.loads(self.out)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """call("evaluate", run, ...) in this process: exit status, standard output, standard error. No traceback ever."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        done = Done(code, *capfd.readouterr())
        assert "Traceback" not in done.err
        assert "this should not happen" not in done.err
        return done

    return run


def train(tiny: list[str], root: Path, name: str, *overrides: str) -> list[str]:
    return ["train", *tiny, *STEPS, SHORT, f"root={root}", f"name={name}", *overrides]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(tiny: list[str], root: Path) -> Path:
    """A run that turns speech into text."""
    assert main(train(tiny, root, "speech")) == 0
    return root / "speech"


@pytest.fixture(scope="module")
def text_run(tiny: list[str], root: Path) -> Path:
    """A run that translates text."""
    words = ["task=text_to_text", "data.tasks.s2tt=false", "data.tasks.t2tt=true", "logger=none"]
    assert main(train(tiny, root, "text", *words)) == 0
    return root / "text"


# train


def test_a_run_holds_what_the_other_commands_read(run: Path):
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name[0] != "."}
    assert {"config.yaml", "tokenizer.model", "done.json", "checkpoints/last.ckpt", "checkpoints/best.json"} <= found
    assert not list(run.rglob("*.tmp"))
    done = json.loads((run / "done.json").read_text())
    assert done["steps"] == 3
    assert done["task"] == "SpeechToText"
    assert {"valid/loss", "valid/text", "valid/ctc", "valid/accuracy"} <= done["metrics"].keys()


def test_the_same_command_again_has_nothing_to_do(tiny: list[str], run: Path, call):
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    done = call(*train(tiny, run.parent, "speech"), "--json")
    assert done.code == 0
    assert done.json["run"] == str(run)
    assert "already trained" in done.err
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_another_config_in_the_folder_is_refused_with_the_difference(tiny: list[str], run: Path, call):
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    done = call(*train(tiny, run.parent, "speech", "optim.lr=0.5"))
    assert done.code == 1
    assert "-  lr: 0.001" in done.err
    assert "+  lr: 0.5" in done.err
    assert "name=" in done.err
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_refused_train_writes_nothing(tiny: list[str], run: Path, root: Path, call):
    """Also where the run has no vocabulary in its folder, as an imported one."""
    folder = root / "kept"
    shutil.copytree(run, folder)
    for name in ("tokenizer.model", ".lock", ".turn"):
        (folder / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for words in (["optim.lr=0.5"], ["tokenizer.languages=[spa,eng,fra]"], ["trainer.max_steps=1"]):
        done = call(*train(tiny, root, "kept", *words))
        assert done.code == 1
        assert "holds a run of another config" in done.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_says_how_fast_it_trained(run: Path):
    speed = json.loads((run / "done.json").read_text())["throughput"]
    assert speed.keys() == {"steps_per_second", "audio_seconds_per_second"}
    assert speed["audio_seconds_per_second"] > speed["steps_per_second"] > 0  # batches are of several seconds


def test_a_longer_run_goes_on_where_it_ended_as_if_it_had_never_stopped(tiny: list[str], run: Path, root: Path, call):
    """Where the schedule does not depend on the length, as `constant`."""
    longer = [*train(tiny, root, "longer", "logger=none"), "--json"]
    assert call(*longer, "trainer.max_steps=2").json["steps"] == 2
    assert call(*longer, "trainer.max_steps=3").json["steps"] == 3
    first, second = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (run, root / "longer"))
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    shorter = call(*longer, "trainer.max_steps=2")
    assert shorter.code == 1
    assert "max_steps: 2" in shorter.err
    by_length = call(*longer, "trainer.max_steps=9", "schedule=cosine")
    assert by_length.code == 1
    assert "max_steps: 9" in by_length.err


def test_a_start_that_failed_leaves_its_folder_free(tiny: list[str], root: Path, call):
    words = train(tiny, root, "corrected", "logger=none", "trainer.max_steps=1")
    failed = call(*words, f"init.speech_encoder={root}")
    assert failed.code == 1
    assert (root / "corrected" / "config.yaml").exists()
    done = call(*words, "tokenizer.vocab_size=90", "--json")
    assert done.code == 0, done.err
    assert load_run(root / "corrected").task.tokenizer.vocab_size == 90  # and not that of the start that failed


def test_rows_of_another_vocabulary_are_refused(tiny: list[str], root: Path, run: Path, call):
    words = train(tiny, root, "taken", "logger=none", "trainer.max_steps=1", f"init.text_seq2seq={run}")
    other = call(*words, "data.corpus.num_train=30")
    assert other.code == 1
    assert f"tokenizer.model={run / 'tokenizer.model'}" in other.err
    same = call(*words, f"tokenizer.model={run / 'tokenizer.model'}", "--json")
    assert same.code == 0, same.err


def test_a_folder_that_another_process_trains_is_refused(tiny: list[str], root: Path, call):
    with pid_lock(root / "locked"):
        done = call(*train(tiny, root, "locked"))
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [f"voxzoo train: {root / 'locked'} is being trained by another process"]


@pytest.fixture
def disk_fills_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the first checkpoint no file can grow beyond half a megabyte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = checkpoints.AtomicCheckpointIO.save_checkpoint

    def save_once(self, *args, **kwargs):
        save(self, *args, **kwargs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))

    monkeypatch.setattr(checkpoints.AtomicCheckpointIO, "save_checkpoint", save_once)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tiny: list[str], root: Path, call, request):
    request.getfixturevalue("disk_fills_up")
    words = train(tiny, root, "full", "logger=none")
    done = call(*words)
    folder = root / "full" / "checkpoints"
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("voxzoo train: ")]
    assert str(folder / "last.ckpt") in line
    assert "the previous checkpoint is untouched" in line
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    request.getfixturevalue("monkeypatch").undo()
    again = call(*words)
    assert again.code == 0
    assert "resuming from" in again.err
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("kind", ["cut off", "of another config", "not ours"])
def test_a_checkpoint_that_cannot_be_resumed_from_is_named(
    kind: str, tiny: list[str], root: Path, run: Path, text_run: Path, call
):
    name = f"resume-{kind.replace(' ', '-')}"
    last = root / name / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    if kind == "cut off":
        last.write_bytes(whole[: len(whole) // 2])
    elif kind == "of another config":
        shutil.copy(text_run / "checkpoints" / "last.ckpt", last)
    else:
        torch.save({"model": torch.zeros(2)}, last)
    before = last.read_bytes()
    done = call(*train(tiny, root, name))
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("voxzoo train: ")]
    assert str(last) in line
    assert len(line) < 1000
    assert last.read_bytes() == before


def test_ctrl_c_belongs_to_the_caller_again_after_training(run: Path):
    assert run.exists()
    assert {number: signal.getsignal(number) for number in HANDLERS} == HANDLERS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.fast_dev_run=-1"], "voxzoo train: trainer: fast_dev_run=-1 is not a valid configuration"),
        (["data=manifest"], "there is no data: set data.train, data.valid and data.test to manifests, or data.corpus"),
        (["data=manifest", "data.train=gone.jsonl", "data.valid=gone.jsonl"], "gone.jsonl: no such manifest"),
        (["tokenizer.vocab_size=20"], "choose another tokenizer.vocab_size"),
        (["tokenizer.languages=[spa]"], "no token for the language 'eng' in the tokenizer"),
        (["data.max_seconds=0.2"], "train: none of 40 utterances can be used: 40 longer than 0.2 s"),
        (
            ["checkpoint.monitor=valid/blue"],
            "checkpoint.monitor=valid/blue: validation measures valid/loss, valid/text, valid/ctc, valid/accuracy",
        ),
    ],
)
def test_settings_that_only_the_data_can_refute(words: list[str], message: str, tiny: list[str], root: Path, call):
    name = f"odd{abs(hash(tuple(words)))}"
    done = call(*train(tiny, root, name, "trainer.val_check_interval=1", "logger=none", *words))
    assert done.code == 1
    assert message in done.err.splitlines()[-1]


# evaluate


def test_evaluate_prints_one_object_from_any_folder(run: Path, voxzoo, tmp_path: Path):
    done = voxzoo("evaluate", run, "--split", "test_seen", "--limit", "4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    found = json.loads(done.stdout)
    assert found["status"] == "ok"
    assert found["num_utterances"] == 4
    for name in ("bleu", "chrf"):
        assert 0 <= found["intervals"][name][0] <= found[name] <= found["intervals"][name][1] <= 100
        assert "version:" in found["signatures"][name]
    assert json.loads((run / "evaluation" / "test_seen.json").read_text())["bleu"] == found["bleu"]
    lines = (run / "evaluation" / "test_seen.hypotheses.jsonl").read_text().splitlines()
    assert {"id", "reference", "hypothesis", "score"} <= json.loads(lines[0]).keys()
    assert len(lines) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_file_alone_is_a_run(run: Path, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    monkeypatch.chdir(tmp_path)
    done = call("evaluate", "mine.ckpt", "--split", "valid", "--limit", "2", "--json")
    assert done.code == 0
    assert done.json["num_utterances"] == 2
    assert (tmp_path / "evaluation" / "valid.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "nope"], "split 'nope': this data has train, valid, test_seen, test_unseen"),
        (["--limit", "0"], "--limit 0: expected at least 1"),
        (["--task", "s2st"], "the data asks for s2st, but this run can do asr, s2tt"),
    ],
)
def test_evaluate_says_what_it_cannot_do(words: list[str], message: str, run: Path, call):
    done = call("evaluate", run, *words, "--json")
    assert done.code == 1
    assert done.json["status"] == "failed"
    assert message in done.json["error"]
    assert done.err.splitlines()[-1] == f"voxzoo evaluate: {done.json['error']}"


def test_what_is_not_a_run_is_refused(call, tmp_path: Path, run: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "begun")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for given, message in {
        "absent": "no such run folder or checkpoint",
        "empty": "not a run (no config.yaml in it)",
        "begun": "there is no checkpoint; train it first",
        "text.ckpt": "text.ckpt",
    }.items():
        for words in (
            ["evaluate", tmp_path / given],
            ["translate", tmp_path / given, "a.wav", "--task", "asr", "--to", "spa"],
        ):
            done = call(*words)
            assert (done.code, done.out) == (1, "")
            assert len(done.err.splitlines()) == 1
            assert message in done.err


# translate


def speech(path: Path, seconds: float, rate: int = 16000, gain: float = 0.3, channels: int = 1) -> Path:
    """Noise that comes and goes, as syllables do."""
    random = np.random.default_rng(1)
    time = np.arange(int(seconds * rate)) / rate
    wave = gain * random.standard_normal((len(time), channels)) * (0.1 + np.sin(9 * time)[:, None] ** 2)
    soundfile.write(path, np.clip(wave, -1, 1), rate)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good/ and bad/ recordings."""
    folder = tmp_path_factory.mktemp("sounds")
    good, bad = folder / "good", folder / "bad"
    for path in (good, bad):
        path.mkdir()
    speech(good / "plain.wav", 2.0)
    speech(good / "telephone.wav", 1.5, rate=8000)
    speech(good / "stereo.flac", 1.0, rate=48000, channels=2)
    speech(good / "clipped.wav", 1.0, gain=20.0)
    speech(good / "quiet.ogg", 1.0, gain=0.01)
    (bad / "empty.wav").touch()
    (bad / "corrupt.wav").write_bytes(b"RIFF1234WAVE but nothing of the kind")
    (bad / "cut.flac").write_bytes((good / "stereo.flac").read_bytes()[:50])
    speech(bad / "short.wav", 0.01)
    soundfile.write(bad / "silent.wav", np.zeros(16000), 16000)
    return folder


def test_good_files_are_served_beside_bad_ones(run: Path, sounds: Path, call):
    good = sorted((sounds / "good").iterdir())
    bad = [*sorted((sounds / "bad").iterdir()), sounds / "missing.wav"]
    mixed = [path for pair in zip(bad, [*good, sounds / "good"]) for path in pair]  # the folder once more, whole
    done = call("translate", run, *mixed, "--task", "s2tt", "--to", "eng", "--batch-size", "4", "--json")
    assert done.code == 1
    found = done.json
    assert found["status"] == "failed"
    assert found["error"] == f"{len(bad)} of {len(bad) + 2 * len(good)} inputs could not be served; the others were"
    assert [row["id"] for row in found["results"][: len(good)]] == [path.stem for path in good]
    assert len(found["results"]) == 2 * len(good)
    for row in found["results"]:
        assert {"id", "task", "src_lang", "tgt_lang", "text", "units", "audio", "duration", "score"} <= row.keys()
        assert isinstance(row["text"], str)
        assert row["tgt_lang"] == "eng"
    reasons = {row["id"]: row["error"] for row in found["failures"]}
    assert {row["input"] for row in found["failures"]} == {str(path) for path in bad}
    expected = {
        "missing": "no such",
        "empty": "empty",
        "corrupt": "cannot be read",
        "short": "10.0 ms",
        "silent": "silent",
    }
    assert all(words in reasons[name] for name, words in expected.items()), reasons
    assert done.err.splitlines()[:-1] == [
        f"voxzoo translate: {row['input']}: {row['error']}" for row in found["failures"]
    ]


def test_ten_minutes_are_cut_and_joined(run: Path, tmp_path: Path, call):
    speech(tmp_path / "talk.flac", 600.0)
    done = call("translate", run, tmp_path / "talk.flac", "--task", "s2tt", "--to", "eng", "--beam", "1", "--json")
    assert done.code == 0
    (row,) = done.json["results"]
    assert row["source_duration"] == 600
    assert len(row["segments"]) >= 20
    assert all(0 < part["end"] - part["start"] <= 30 for part in row["segments"])
    assert row["text"] == " ".join(part["text"] for part in row["segments"])


def test_paths_come_from_standard_input(run: Path, sounds: Path, voxzoo):
    lines = f"{sounds / 'good' / 'plain.wav'}\n\n{sounds / 'gone.wav'}\n"
    done = voxzoo(
        "translate",
        run,
        "-",
        "--task",
        "asr",
        "--to",
        "spa",
        "--batch-size",
        "1",
        "--beam",
        "1",
        cwd=sounds,
        input=lines,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["id"] == "plain"
    assert "gone.wav: no such audio file" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_input_is_not_this_folder(run: Path, sounds: Path, call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(sounds)
    done = call("translate", run, "", "--task", "s2tt", "--to", "eng", "--json")
    assert done.code == 1
    assert done.json["results"] == []
    assert "expected a file or folder" in done.json["failures"][0]["error"]


def test_an_unknown_language_is_refused_with_the_known_ones(run: Path, sounds: Path, call):
    done = call("translate", run, sounds / "good", "--task", "s2tt", "--to", "xyz")
    assert done.code == 1
    assert done.err == "voxzoo translate: --to xyz: unknown language; this run knows eng, spa\n"


def test_text_empty_over_long_and_usual(text_run: Path, call, monkeypatch: pytest.MonkeyPatch):
    lines = ["dos trenes", "", "palabra " * 15000, "\u4f60\u597d \U0001f600 ok", "   ", "tres trenes", "uno " * 5000]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    done = call("translate", text_run, "-", "--task", "t2tt", "--from", "spa", "--to", "eng", "--json")
    assert done.code == 1
    found = done.json
    assert [row["id"] for row in found["results"]] == ["line-00001", "line-00004", "line-00006"]
    reasons = {row["id"]: row["error"] for row in found["failures"]}
    assert reasons.keys() == {"line-00002", "line-00003", "line-00005", "line-00007"}
    assert "empty" in reasons["line-00002"]
    assert "empty" in reasons["line-00005"]
    assert reasons["line-00003"] == "119,999 characters long; the limit is 1024 tokens: give one sentence a line"
    assert re.fullmatch(r"\d+ tokens long; the limit is 1024: give one sentence a line", reasons["line-00007"])
    assert all(len(reason) < 300 for reason in reasons.values())


def test_a_row_that_is_too_long_takes_no_other_with_it(text_run: Path, tmp_path: Path, call):
    texts = {"a": "dos trenes", "long": "palabra " * 15000, "b": "tres trenes"}
    about = {"src_lang": "spa", "tgt_lang": "eng", "tgt_text": "three trains"}
    rows = [{"id": name, "src_text": text, **about} for name, text in texts.items()]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call("evaluate", text_run, "--manifest", tmp_path / "m.jsonl", "--task", "t2tt", "--json", "--out", tmp_path)
    assert done.code == 0
    assert done.json["num_utterances"] == 2
    reason = "119,999 characters long; the limit is 1024 tokens: give one sentence a line"
    assert done.json["dropped"] == [{"id": "long", "reason": reason}]


# check and parts


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("speech_encoder.num_layer=2", "num_layer: ConformerEncoder has no such parameter; did you mean 'num_layers'?"),
        ("trainer.max_steps=many", "trainer.max_steps: 'many' is not a whole number"),
        ("task.ctc_on=encoderr", "task.ctc_on: 'encoderr' is not one of 'encoder', 'adaptor'; did you mean 'encoder'?"),
        ("adaptor._target_=voxzoo.components.ConformerEncoder", "ConformerEncoder is not a"),
        ("adaptor._target_=os.system", "'os.system' is outside voxzoo"),
        ("speech_encoder.dim=???", "speech_encoder.dim: a value is needed (???)"),
        ("adaptor=stak", "adaptor=stak: there is no such choice; did you mean 'stack'?"),
        ("data=null", "data=null: there is no such choice. Choices: manifest"),
        ("schedule=cosine trainer.max_steps=-1", "schedule: cosine needs the length of the run"),
        ("trainer.max_steps=[1,", "does not parse"),
        ("=3", "does not parse"),
        ("adaptor", "does not parse"),
        ("adaptor.input_dim=24", "adaptor.input_dim is 24, but speech_encoder gives width 32"),
        ("speech_encoder.input_dim=24", "it expects width 24"),
        ("speech_encoder.num_heads=5", "num_heads"),
        ("freeze.vocoder=true", "freeze.vocoder: SpeechToText has no such part"),
        ("adaptor=none adaptor.output_dim=${text_seq2seq.dim2}", "text_seq2seq.dim2"),
    ],
)  # fmt: skip
def test_broken_configs_get_the_right_message(override: str, message: str, tiny: list[str], call):
    done = call("check", *tiny, *override.split())
    assert done.code == 1
    assert message in done.err
    assert done.err.startswith("voxzoo check: ")
    assert len(done.err.splitlines()) <= 3
    # Training stops at the same point, before it touches anything.
    assert call("train", *tiny, "root=/nonexistent/folder", *override.split()).code == 1


def test_the_expected_width_is_said_only_where_it_differs(tiny: list[str], call, monkeypatch: pytest.MonkeyPatch):
    def fails(*_, **__):
        raise RuntimeError("another reason")

    monkeypatch.setattr("voxzoo.components.ConformerAdaptor.forward", fails)
    done = call("check", *tiny, "adaptor=tiny")
    assert done.code == 1
    assert "another reason" in done.err
    assert "it expects width" not in done.err


def test_check_shows_what_flows(tiny: list[str], call):
    done = call("check", *tiny, "--json", "adaptor=stack")
    assert done.code == 0
    (stage,) = done.json["stages"].values()
    parts = {row["part"]: row for row in stage["parts"]}
    assert list(parts) == ["speech_encoder", "adaptor", "text_seq2seq", "(heads)"]
    assert parts["adaptor"]["cls"] == "StackAdaptor"
    assert parts["speech_encoder"]["output"].startswith("(2, ")
    assert parts["adaptor"]["state"] == "trainable"
    assert "trainable" in parts["text_seq2seq"]["state"]  # in part: no loss reaches its text encoder
    for count in ("parameters", "trainable"):
        assert stage[count] == sum(row[count] for row in parts.values())
    shown = call("check", *tiny)
    assert shown.code == 0
    assert "ConformerAdaptor" in shown.out


@pytest.mark.parametrize("choice", ["adaptor=stack", "adaptor=none", "speech_encoder.num_layers=2", "t2u=none"])
def test_check_of_the_quickstart(choice: str, call):
    done = call("check", "experiment=quickstart", choice, "--json")
    assert done.code == 0
    stages = list(done.json["stages"])
    assert stages == (["first_pass"] if choice == "t2u=none" else ["units", "vocoder", "first_pass", "second_pass"])


def test_a_failed_check_is_one_object(call):
    done = call("check", "speech_encoder.num_layer=2", "seeed=1", "--json")
    assert done.code == 1
    assert done.json["status"] == "failed"
    assert done.json["error"].startswith("2 faults in the config:")


def test_parts_lists_every_role(call):
    done = call("parts", "--json")
    assert done.code == 0
    roles = done.json["roles"]
    assert set(roles) == {
        "frontend", "tokenizer", "speech_encoder", "adaptor", "text_seq2seq", "t2u", "unit_extractor", "vocoder",
        "discriminator", "codec", "speech_lm", "stream_lm", "data",
    }  # fmt: skip
    for role, choices in roles.items():
        assert "tiny" in {choice["choice"] for choice in choices}, role
        assert all(choice["about"] for choice in choices)
    large = {c["choice"]: c for c in roles["speech_encoder"]}["w2v_bert_large"]
    assert 5.7e8 < large["parameters"] < 6.1e8
    assert "small" in call("parts", "adaptor").out or "conformer" in call("parts", "adaptor").out


# data


def test_validate_names_every_trouble(tmp_path: Path, call):
    speech(tmp_path / "a.wav", 1.0)
    speech(tmp_path / "b.wav", 2.0)
    row = {
        "audio": "a.wav",
        "duration": 1.0,
        "src_lang": "spa",
        "src_text": "hola",
        "tgt_lang": "eng",
        "tgt_text": "hello",
    }
    rows = [
        {"id": "good", **row},
        {"id": "missing", **row, "audio": "gone.wav", "src_text": "x", "tgt_text": "x"},
        {"id": "empty text", **row, "audio": "b.wav", "duration": 2.0, "src_text": "", "tgt_text": ""},
        {"id": "wrong duration", **row, "duration": 9.0, "src_text": "y", "tgt_text": "y"},
        {"id": "twice", **row},
    ]
    lines = [*map(json.dumps, rows), '{"id": "torn", "audio": ']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n")
    done = call("data", "validate", tmp_path / "bad.jsonl", "--json")
    assert done.code == 1
    (report,) = done.json["manifests"].values()
    findings = {row["kind"]: row for row in report["findings"]}
    assert findings["unusable source audio"]["first"][0].startswith("missing: ")
    assert findings["wrong duration"]["first"] == ["wrong duration: says 9.00 s, the file has 1.00 s (+8.00)"] or (
        "says 9.00 s" in findings["wrong duration"]["first"][0]
    )
    assert findings["no target text"]["first"] == ["empty text"]
    assert findings["same texts twice"]["first"] == ["twice: as good"]
    assert findings["same audio twice"]["count"] == 2
    assert findings["faulty row"]["first"][0].startswith("line 6")
    errors = {kind for kind, row in findings.items() if row["error"]}
    assert {"unusable source audio", "wrong duration", "faulty row"} <= errors
    assert done.json["errors"] == sum(findings[kind]["count"] for kind in errors)
    shown = call("data", "validate", tmp_path / "bad.jsonl")
    assert shown.code == 1
    assert "line 6" in shown.out
    gone = call("data", "validate", tmp_path / "gone.jsonl")
    assert gone.code == 1
    assert "no such manifest" in gone.err
    (tmp_path / "good.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert call("data", "validate", tmp_path / "good.jsonl", "--json").code == 0


# help


@pytest.mark.parametrize(
    "words", [[], *([verb] for verb in VERBS), ["data", "validate"], ["units", "fit"], ["distil", "targets"]]
)
def test_help_shows_an_example(words: list[str], call):
    done = call(*words, "--help")
    assert done.code == 0
    assert done.err == ""
    if len(words) == 1:
        assert f"example:\n  voxzoo {words[0]} " in done.out
        assert "--json" in done.out or words[0] in ("data", "units", "distil")
    if not words:
        assert all(f"\n    {verb}" in done.out for verb in VERBS)


def test_no_verb_is_a_bad_call(call):
    assert call().code == 2
    assert call("fly").code == 2


def test_neither_help_nor_a_bad_call_waits_for_torch():
    """All of them in one process: none may import it."""
    calls = [
        ([], 2), (["--help"], 0), (["--version"], 0), (["fly"], 2), (["check", "--memory", "none"], 2),
        *(([verb, "--help"], 0) for verb in VERBS), *(([verb, "--no-such-flag"], 2) for verb in VERBS),
        *((["data", verb, "--help"], 0) for verb in ("validate", "prepare")),
        *((["units", verb, "--help"], 0) for verb in ("fit", "extract", "resynthesise")),
    ]  # fmt: skip
    script = (
        "import sys\nfrom voxzoo.tasks.commands.cli import main\n"
        f"for words, code in {calls!r}:\n"
        "    try:\n        found = main(words)\n    except SystemExit as end:\n        found = end.code\n"
        "    assert found == code, (words, found)\n"
        "    slow = {'torch', 'lightning', 'rich', 'omegaconf'} & sys.modules.keys()\n"
        "    assert not slow, (words, slow)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: voxzoo") == 2 + len(VERBS) + 5
    assert done.stderr.count("error: ") == 2 + len(VERBS)


def test_a_wrong_choice_does_not_wait_for_torch():
    script = (
        "import sys\nfrom voxzoo.configs.compose import compose\nfrom voxzoo.tasks.commands.cli import main\n"
        "compose(['experiment=quickstart'], stage='units', fit=False)\n"
        "assert main(['check', 'adaptor=stak']) == 1\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules, 'slow'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'stack'?" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_is_one_line_with_advice(error: Exception):
    for verb, advice in (("train", "data.batch_seconds"), ("evaluate", "--batch-size")):
        answer, code = cli._failure(error, argparse.Namespace(traceback=False, verb=verb))
        assert code == 1
        assert answer["error"].startswith("out of memory")
        assert advice in answer["error"]
        assert "should not happen" not in answer["error"]
        assert "\n" not in answer["error"]
