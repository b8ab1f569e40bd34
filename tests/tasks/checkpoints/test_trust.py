"""What is in a checkpoint, or in the folder of a run, may come from anywhere: it chooses no place on this machine."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from voxzoo.components.errors import UserError, printable
from voxzoo.components.locks import open_lock
from voxzoo.configs.foreign import require_plain
from voxzoo.tasks import load_run
from voxzoo.tasks.checkpoints.files import Checkpointer, pick_checkpoint, read_checkpoint
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.runs.folder import pid_lock, turns
from voxzoo.tasks.runs.unit_extractors import load_extractor


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on the tiny corpus."""
    root = tmp_path_factory.mktemp("trust")
    words = ["task=speech_to_text", *tiny, "trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none"]
    assert main(["train", *words, f"root={root}", "name=run"]) == 0
    return root / "run"


def changed(run: Path, folder: Path, change: Any) -> Path:
    """A copy of the run's last checkpoint, changed."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    change(content)
    path = folder / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    (folder / "run" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    return path


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"task": {"a": "x-${oc.env:SECRET}"}}, "task.a='x-${oc.env:SECRET}'"),
        ({"data": {"test": ["a", "${b}"]}}, "data.test[1]='${b}'"),
        ({"tokenizer": {"${oc.env:SECRET}": 1}}, "tokenizer.${oc.env:SECRET}="),
    ],
)
def test_nothing_is_looked_up_for_a_saved_config(config: dict[str, Any], said: str):
    with pytest.raises(UserError) as error:
        require_plain(config, "last.ckpt")
    assert said in str(error.value)
    assert "${" not in str(error.value).partition(said)[2].replace("'${", "")


def test_an_interpolation_in_a_checkpoint_is_refused_by_key(run: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "hush-hush")
    path = changed(run, tmp_path, lambda c: c["voxzoo"]["config"].update(name="${oc.env:SECRET}"))
    assert main(["translate", str(path), "--task", "s2tt", "--to", "eng", os.devnull]) == 1
    said = capsys.readouterr()
    assert f"{path}: name='${{oc.env:SECRET}}' of its config would be looked up" in said.err
    assert "hush" not in said.err + said.out


def test_an_interpolation_in_a_unit_extractor_is_refused_by_key(tmp_path: Path):
    (tmp_path / "unit_extractor.json").write_text(json.dumps({"config": {"_target_": "${oc.env:HOME}"}}))
    with pytest.raises(UserError, match=r"unit_extractor\.json: _target_="):
        load_extractor(tmp_path)


@pytest.mark.parametrize(
    "best",
    [
        {"../../../victim.txt": 1e9},
        {"/etc/hosts": 1.0},
        {"step1.ckpt": 1.0},
        {"step00000004.ckpt": "x"},
        ["a"],
        {1: 1.0},
    ],
)
def test_the_best_checkpoints_are_files_of_their_folder(best: Any, tmp_path: Path):
    keeper = Checkpointer(folder=str(tmp_path), every_steps=1)
    with pytest.raises(UserError, match="list of the best checkpoints"):
        keeper.load_state_dict({"best": best})
    if isinstance(best, dict) and not {1, "step1.ckpt"} & best.keys():
        (tmp_path / "best.json").write_text(json.dumps(best))
        with pytest.raises(UserError, match=r"best\.json"):
            pick_checkpoint(tmp_path)


def test_a_resumed_run_deletes_no_file_that_its_checkpoint_names(tiny: list[str], tmp_path: Path, capsys):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    words = ["task=speech_to_text", *tiny, "trainer.val_check_interval=1", "logger=none"]
    words = ["train", *words, f"root={tmp_path}", "name=run"]
    assert main([*words, "trainer.max_steps=1"]) == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    state = next(value for key, value in content["callbacks"].items() if "Checkpointer" in key)
    state["best"] = {"../../victim.txt": -1e9}
    path.unlink()  # another name of it is among the best
    torch.save(content, path)
    (tmp_path / "run" / "done.json").unlink()
    assert main([*words, "trainer.max_steps=2"]) == 1
    assert "'../../victim.txt'" in capsys.readouterr().err
    assert victim.read_text() == "mine"


def test_frozen_weights_that_a_file_names_are_not_fetched(run: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    entry = {
        "role": "speech_encoder", "source": "someone/else", "sha256": "0", "tensors": {"absent": ["float32", [1]]}
    }  # fmt: skip
    path = changed(run, tmp_path, lambda c: c.update(published={"speech_encoder": entry}))

    def connect(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(UserError, match=r"someone/else: no such folder, and not in the cache .* is not fetched"):
        read_checkpoint(path)


def test_evaluate_writes_where_no_config_says(run: Path, tmp_path: Path, monkeypatch, capfd):
    """`data.corpus.root` and `data.cache_dir` of a foreign checkpoint are folders of its maker's choice."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))

    def change(content: dict[str, Any]) -> None:
        content["voxzoo"]["config"]["data"]["corpus"]["root"] = str(elsewhere)
        content["voxzoo"]["config"]["data"]["cache_dir"] = str(elsewhere)

    path = changed(run, tmp_path, change)
    data = load_run(path).datamodule()
    data.prepare_data()
    assert data.corpus.is_prepared
    assert not list(elsewhere.iterdir())
    assert {item.name for item in (tmp_path / "cache").iterdir()} == {elsewhere.name}
    assert f"not {elsewhere} of the run's config" in capfd.readouterr().err


def test_a_corpus_that_is_there_is_read_where_it_is(run: Path, shared: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / "cache"))
    data = load_run(run).datamodule()
    assert data.corpus.folder.is_relative_to(shared)
    assert data.cache_dir == str(tmp_path / "cache")


@pytest.mark.parametrize("lock", [".turn", ".lock"])
def test_locks_follow_no_link(lock: str, tmp_path: Path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock).symlink_to(victim)
    with pytest.raises(UserError, match="a symbolic link where a file to lock belongs"):
        pid_lock(tmp_path / "run") if lock == ".lock" else turns(tmp_path / "run").__enter__()
    assert victim.read_text() == "mine"


def test_a_lock_keeps_what_it_holds_until_it_is_held(tmp_path: Path):
    with open_lock(tmp_path / "a") as file:
        file.write("1")
    with open_lock(tmp_path / "a") as file:
        assert file.read() == "1"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "", "."])
def test_a_run_folder_is_below_its_root(name: str, tiny: list[str], tmp_path: Path, capsys):
    words = ["task=speech_to_text", *tiny, f"root={tmp_path / 'root'}", f"name={name}"]
    assert main(["check", *words]) == 1
    assert "name: " in capsys.readouterr().err
    assert main(["train", *words]) == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("a\rb\x00", "a\\rb\\x00"),
        ("a\u202eb", "a\\u202eb"),
        ("a\udcffb", "a\\udcffb"),
        ("ñandú 中文", "ñandú 中文"),
    ],
)
def test_a_terminal_is_told_nothing(text: str, expected: str):
    assert printable(text) == expected


def test_long_values_are_cut():
    said = printable("x" * 20_000_000 + "\nshort")
    assert len(said) < 2100
    assert "19,998,000 characters more" in said
    assert said.endswith("\nshort")


def test_a_command_prints_an_error_in_printable_characters(tmp_path: Path, capsys):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"id": "\x1b[31mred", "audio": "no.wav", "duration": 1}) + "\n")
    main(["data", "validate", str(manifest)])
    main(["translate", str(tmp_path / "\x1b[2J"), "x.wav", "--task", "s2tt", "--to", "eng"])
    said = capsys.readouterr()
    assert "\x1b[31mred" not in said.out + said.err
    assert "\\x1b[2J" in said.err
    assert "\x1b[2J" not in said.err


def test_the_best_checkpoint_of_an_imported_run_is_found(tmp_path: Path):
    (tmp_path / "best.json").write_text(json.dumps({"imported.ckpt": 0.0}))
    (tmp_path / "imported.ckpt").touch()
    assert pick_checkpoint(tmp_path) == tmp_path / "imported.ckpt"
