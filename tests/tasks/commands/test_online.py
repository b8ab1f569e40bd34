"""Nothing goes online unless it is asked to, whoever names a model of the hub. No socket is opened here."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import published
import pytest
from voxzoo.components.converters import online
from voxzoo.components.converters.files import published_folder
from voxzoo.components.errors import UserError
from voxzoo.tasks.commands.cli import main

hub = pytest.importorskip("huggingface_hub")
NAME = "someone/else"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.publish_hubert(tmp_path_factory.mktemp("published") / "hubert")


@pytest.fixture
def tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was tried to reach; the cache is empty."""
    found: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        found.append(where)
        raise OSError("refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return found


def adapter(folder: Path) -> Path:
    """An adapter of PEFT that names the model it belongs to."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": NAME}))
    return folder


def choices(folder: Path) -> Path:
    """A folder of choices that names a model."""
    (folder / "speech_encoder").mkdir(parents=True)
    (folder / "speech_encoder" / "mine.yaml").write_text(f"pretrained: {NAME}\n")
    return folder


COMMANDS = {
    "import": lambda tmp, _: ["import", NAME, tmp / "run"],
    "import a tokenizer": lambda tmp, folder: ["import", folder, tmp / "run", "--tokenizer", NAME],
    "import an adapter": lambda tmp, _: ["import", adapter(tmp / "adapter"), tmp / "run"],
    "train from": lambda tmp, _: ["train", "experiment=finetune", f"from={NAME}", f"root={tmp}"],
    "check from": lambda tmp, _: ["check", "experiment=finetune", f"from={NAME}"],
    "check a part": lambda tmp, _: [
        "check", "speech_encoder=pretrained", f"speech_encoder.pretrained={NAME}", "frontend=raw"
    ],
    "check a choice": lambda tmp, _: ["check", "--config-dir", choices(tmp / "choices"), "speech_encoder=mine"],
    "parts check": lambda tmp, _: [
        "parts", "check", "--config-dir", choices(tmp / "choices"), "speech_encoder=mine"
    ],
    "units fit": lambda tmp, _: [
        "units", "fit", tmp / "m.jsonl", "--out", tmp / "units", "--set", "unit_extractor=encoder",
        "speech_encoder=pretrained", f"speech_encoder.pretrained={NAME}", "frontend=raw", "unit_extractor.layer=1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_name_of_the_hub_is_not_fetched_unasked(command: str, folder: Path, tries, tmp_path: Path, capsys):
    words = list(map(str, COMMANDS[command](tmp_path, folder)))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "no such folder, and not in the cache of huggingface_hub; it is not fetched unless you say --online" in said
    assert NAME in said
    assert not tries
    assert not (tmp_path / "run").exists()


def test_it_is_fetched_where_that_is_asked_for(folder: Path, tries, tmp_path: Path, monkeypatch, capsys):
    asked: list[bool] = []

    def fetch(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise OSError("not in the cache")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert main(["import", NAME, str(tmp_path / "run")]) == 1
    assert asked == [True]
    assert main(["import", NAME, str(tmp_path / "run"), "--online"]) == 0
    assert not any(asked[1:])
    assert (tmp_path / "run" / "config.yaml").is_file()
    capsys.readouterr()
    assert main(["check", "speech_encoder=pretrained", f"speech_encoder.pretrained={NAME}", "frontend=raw"]) == 1
    with online():
        assert published_folder(NAME) == folder
    with pytest.raises(UserError, match="unless you say --online"):
        published_folder(NAME)
    assert not tries


def test_what_the_cache_has_is_read_without_asking(folder: Path, tries, tmp_path: Path):
    """As huggingface_hub lays it out."""
    own = tmp_path / "cache" / "models--someone--else"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text("abc")
    (own / "snapshots").mkdir()
    (own / "snapshots" / "abc").symlink_to(folder, target_is_directory=True)
    assert main(["import", NAME, str(tmp_path / "run")]) == 0
    assert not tries
