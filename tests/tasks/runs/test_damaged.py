"""Runs whose small files were damaged, and runs that were moved."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import DictConfig, OmegaConf
from voxzoo.components.errors import UserError
from voxzoo.tasks import load_run
from voxzoo.tasks.checkpoints.files import write_atomically
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.runs.folder import is_trained, result_of
from voxzoo.tasks.runs.run import find_checkpoint
from voxzoo.tasks.training.settling import refuse_another
from voxzoo.tasks.training.throughput import Throughput
from voxzoo.tasks.training.train import train

SETTINGS = ["logger=none", "trainer.val_check_interval=2", "checkpoint.every_steps=1", "schedule=constant"]
DAMAGES = {
    "empty": b"",
    "bytes": b"\xff\xfe\x00x",
    "list": b"[1, 2]",
    "half": b'{"a": [1,',
    "number": b"7",
    "nested": b"[" * 100_000,
}


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("damaged")
    words = [*tiny, *SETTINGS, f"root={folder}", "trainer.max_steps=2", "name=run"]
    train(words)
    return folder / "run", words


def one_line(call, *said: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in said), str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_run_is_named(damage: str, run, tmp_path: Path):
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    assert isinstance(config, DictConfig)
    for name, calls in (
        ("config.yaml", [lambda: refuse_another(folder, config), lambda: find_checkpoint(folder)]),
        ("done.json", [lambda: result_of(folder)]),
        ("checkpoints/best.json", [lambda: is_trained(folder), lambda: find_checkpoint(folder)]),
    ):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(DAMAGES[damage])
        for call in calls:
            one_line(call, name)
        (folder / name).write_bytes(content)


def test_damage_is_said_by_the_commands(run, tmp_path: Path):
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    (folder / "done.json").write_text("{")
    load_run(folder)
    one_line(lambda: train([*run[1], f"root={tmp_path}"]), "done.json", "delete it and run the same command again")


def test_a_run_that_was_moved_and_renamed_goes_on(tiny: list[str], run, tmp_path: Path):
    source, words = run
    moved = tmp_path / "elsewhere" / "another"
    shutil.copytree(source, moved)
    asked = [*words, f"root={moved.parent}", f"name={moved.name}"]
    assert train(asked)["steps"] == 2  # it has ended
    assert str(source) not in (moved / "config.yaml").read_text()
    assert train([*asked, "trainer.max_steps=4"])["steps"] == 4
    load_run(moved)
    with pytest.raises(UserError, match="a run of another config"):
        train([*asked, "trainer.max_steps=4", "seed=5"])


@pytest.mark.slow
def test_a_staged_run_that_was_moved_goes_on(tiny: list[str], tmp_path: Path):
    parts = ["experiment=quickstart", *tiny, "unit_extractor=tiny", "t2u=tiny", "vocoder=tiny", "adaptor=stack"]
    words = [*parts, "logger=none", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    first = train([*words, f"root={tmp_path}/a", "name=run"])
    shutil.move(tmp_path / "a" / "run", tmp_path / "b")
    last = tmp_path / "b" / "stages" / list(first["stages"])[-1]
    shutil.rmtree(last)  # as if it had been stopped there
    again = train([*words, f"root={tmp_path}", "name=b"])
    assert again["status"] == "ok"
    assert json.loads((last / "done.json").read_text())["steps"] == 2


def test_ctrl_c_while_a_run_stops_is_no_failure_of_its_own(tiny: list[str], tmp_path: Path, monkeypatch, capsys):
    """Lightning exits with 1; promised is 130."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Throughput, "on_train_batch_end", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["train", *tiny, *SETTINGS, f"root={tmp_path}", "name=run", "trainer.max_steps=2"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "voxzoo train: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0",
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "basic_ios::clear: iostream error: No space left on device",
    ],
)
def test_a_full_disk_is_one_line_whatever_torch_says(said: str, tmp_path: Path):
    def write(file):
        raise RuntimeError(said)

    one_line(
        lambda: write_atomically(tmp_path / "last.ckpt", write), "last.ckpt", "is the disk full?", "Free some space"
    )
    assert not list(tmp_path.iterdir())


def test_what_a_run_would_leave_out_is_named_before(run, tmp_path: Path, capfd):
    """By its tokenizer's languages and its decoder's positions, as training does."""
    rows = [{"id": f"row{number}", "src_lang": "spa", "src_text": "hola", "tgt_lang": "eng", "tgt_text": "hello"}
            for number in range(4)]  # fmt: skip
    rows[1]["tgt_lang"] = "deu"
    for row in rows:
        row["audio"] = "a.wav"
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(16000) / 10, 16000)
    rows[2]["tgt_text"] = ""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capfd.readouterr()
    main(["data", "validate", str(path), "--run", str(run[0]), "--json"])
    findings = json.loads(capfd.readouterr().out)["manifests"][str(path)]["findings"]
    said = {item["kind"]: item["first"] for item in findings if item["kind"].startswith("left out by the run")}
    assert said == {
        "left out by the run: no target text": ["row2"],
        "left out by the run: no token for the language 'deu' in the tokenizer": ["row1"],
    }
