"""What a folder of choices looks up in the environment is what whoever runs it has named; no run tells of the rest."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from voxzoo.components.errors import UserError
from voxzoo.configs import compose
from voxzoo.tasks.commands.cli import main

SECRET = "hush-4711-hush"


def choice(folder: Path, group: str, content: str) -> str:
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / "mine.yaml").write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    "content",
    [
        "name: ${oc.env:SECRET}\n",
        "name: ${oc.env:SECRET,none}\n",
        "name: x-${oc.decode:${oc.env:SECRET}}\n",
        "where: oc.env\nname: ${${where}:SECRET}\n",
        "optim: {lr: 1, more: [{a: '${oc.env:SECRET}'}]}\n",
        "from: ${oc.env:SECRET}/model\n",
        "stages: {a: {set: {name: '${oc.env:SECRET}'}}}\n",
        "name: ${oc.decode:'${oc.env:SECRET}'}\n",
        "callbacks: ${oc.create:{a:'${oc.env:SECRET}'}}\n",
    ],
)
def test_a_folder_of_choices_looks_nothing_up_in_the_environment(content: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", SECRET)
    folder = choice(tmp_path, "experiment", "# @package _global_\n" + content)
    assert main(["check", "--config-dir", folder, "experiment=mine"]) == 1
    said = capsys.readouterr()
    assert "looks up SECRET in your environment" in said.err
    assert SECRET not in said.err + said.out


def test_what_is_named_on_the_command_line_is_looked_up(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    folder = choice(tmp_path, "experiment", "# @package _global_\nseed: ${oc.decode:${oc.env:SECRET}}\n")
    words = ["experiment=mine"]
    with pytest.raises(UserError, match="seed: looks up SECRET"):
        compose(words, config_dirs=[folder])
    with pytest.raises(UserError, match="seed: looks up SECRET"):
        compose([*words, "name=${oc.env:SECRETS,x}"], config_dirs=[folder])
    assert compose([*words, "name=a${oc.env:SECRET}"], config_dirs=[folder]).seed == 7
    assert compose(["seed='${oc.decode:${oc.env:SECRET}}'"], config_dirs=[folder]).seed == 7
    assert compose(["name=a${oc.env:SECRET}"]).name == "a7"


def test_numbers_of_launchers_are_looked_up(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_NNODES", "3")
    folder = choice(tmp_path, "trainer", "num_nodes: ${oc.decode:${oc.env:SLURM_NNODES,1}}\n")
    assert compose(["trainer=mine"], config_dirs=[folder]).trainer.num_nodes == 3


def test_other_configs_look_up_what_they_like(monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    assert OmegaConf.create({"a": "${oc.env:SECRET}"}).a == "7"
    assert OmegaConf.create({"a": "${oc.env:NO_SUCH,8}"}).a == "8"


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> content of each file below, that of archives record by record."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    found |= {f"{path}:{name}": archive.read(name) for name in archive.namelist()}
    return found


def test_a_run_tells_nothing_of_the_environment(tiny: list[str], tmp_path: Path, monkeypatch):
    """But the cache's folder, which its config says: VOXZOO_CACHE, or what is below the home."""
    planted = {name: f"{SECRET}-{name}" for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "USER", "LOGNAME", "SECRET")}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    words = ["task=speech_to_text", *tiny, "trainer.max_steps=2", "trainer.val_check_interval=1", "logger=tensorboard"]
    assert main(["train", *words, f"root={tmp_path}", "name=run"]) == 0
    found = contents(tmp_path / "run")
    assert any("last.ckpt:" in name for name in found)
    assert any("tfevents" in name for name in found)
    for text in planted.values():
        for name, content in found.items():
            assert text.encode() not in content, f"{name} tells {text}"


def test_a_value_that_the_user_put_there_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WHO", "alice")
    assert compose(["name=run-${oc.env:WHO}", f"root={tmp_path}"]).run_dir == f"{tmp_path}/run-alice"


@pytest.mark.parametrize("key", ["root", "cache_dir", "data.cache_dir", "data.corpus.root", "stage_dir"])
def test_a_file_chooses_no_folder_elsewhere(key: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    content = OmegaConf.create()
    OmegaConf.update(content, key, str(tmp_path / "elsewhere"), force_add=True)
    folder = choice(tmp_path / "choices", "experiment", "# @package _global_\n" + OmegaConf.to_yaml(content))
    words = ["check", "--config-dir", folder, "task=speech_to_text", "data=tiny", "experiment=mine"]
    assert main(words) == 1
    assert f"{key}: '{tmp_path / 'elsewhere'}': a file chooses no folder elsewhere" in capsys.readouterr().err
    assert main([*words, f"{key}={tmp_path / 'elsewhere'}"]) == 0
    OmegaConf.update(content, key, str(tmp_path / "here" / "below"))
    choice(tmp_path / "choices", "experiment", "# @package _global_\n" + OmegaConf.to_yaml(content))
    assert main(words) == 0
