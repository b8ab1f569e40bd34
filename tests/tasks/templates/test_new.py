"""`voxzoo parts new`: what it writes passes its own test, is checked and trains, by the commands that it prints."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import run_tests
from voxzoo.components.errors import UserError
from voxzoo.components.roles import ROLES
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.templates.write import KINDS, write_new

STAGED = ("t2u", "unit_extractor", "vocoder", "discriminator")
"""Kinds that are trained in several stages: seconds each."""


@pytest.fixture
def package(request: pytest.FixtureRequest, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch):
    """A name that no other test imports; commands run from the folder where the package is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXZOO_CACHE", str(shared / "corpora"))
    name = "zoo_" + "".join(filter(str.isalnum, request.node.name)).lower()
    before, path = set(sys.modules), list(sys.path)
    yield name
    sys.path[:] = path
    for module in set(sys.modules) - before:
        if module.split(".")[0] == name:
            del sys.modules[module]


def said(capfd: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0, capfd.readouterr()
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in STAGED)) for kind in KINDS])
def test_each_kind_passes_its_test_is_checked_and_trains(
    kind: str, package: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    written = said(capfd, ["parts", "new", kind, "mine", "--out", package])
    assert [Path(path).exists() for path in written["files"]] == [True] * 3
    commands = written["commands"]
    for made in {"clips", "codes"} & commands.keys():  # python -c "..."
        exec(shlex.split(commands[made])[2], {})
    assert commands["check"].startswith("voxzoo ")
    said(capfd, commands["check"].split()[1:])
    assert commands["test"] == f"python -m pytest {Path(written['files'][2]).relative_to(tmp_path)}"
    assert run_tests(Path(written["files"][2]), tmp_path) >= 1
    words = commands["train"].split()[1:]
    short = {
        "trainer.max_steps=20": "trainer.max_steps=2",
        "trainer.val_check_interval=20": "trainer.val_check_interval=2",
    }
    assert short.keys() <= set(words)
    said(capfd, [short.get(word, word) for word in words])
    (config,) = (tmp_path / "runs" / f"{kind}_mine").rglob("config.yaml") if kind not in STAGED else [None]
    if config is not None:
        assert f"{package}." in config.read_text()


def test_a_second_one_adds_and_nothing_is_overwritten(package: str, tmp_path: Path):
    write_new("adaptor", "mine", tmp_path / package)
    (tmp_path / package / "__init__.py").write_text("# kept")
    write_new("optimizer", "two_words", tmp_path / package)
    text = (tmp_path / package / "optim" / "two_words.py").read_text()
    assert "class TwoWordsOptimizer(Optimizer)" in text
    assert (tmp_path / package / "__init__.py").read_text() == "# kept"
    with pytest.raises(UserError, match=r"adaptor/mine\.py.*: there already"):
        write_new("adaptor", "mine", tmp_path / package)


@pytest.mark.parametrize(
    ("kind", "name", "out", "words"),
    [
        ("adaptr", "mine", "some_zoo", "parts new adaptr: there is no such template; there are: frontend"),
        ("adaptr", "mine", "some_zoo", "; did you mean 'adaptor'"),
        ("xls_r_1b", "mine", "some_zoo", "; xls_r_1b is a choice of speech_encoder: speech_encoder=xls_r_1b"),
        ("adaptor", "my-own", "some_zoo", "'my-own' cannot be the name"),
        ("adaptor", "class", "some_zoo", "'class' cannot be the name"),
        ("adaptor", "mine", "some-zoo", "'some-zoo' cannot be the package"),
        ("adaptor", "mine", "json", "'json' is the name of an installed package"),
        ("adaptor", "mine", "voxzoo", "'voxzoo' is the name of an installed package"),
    ],
)
def test_what_cannot_be_written_is_refused(kind: str, name: str, out: str, words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words):
        write_new(kind, name, tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_takes(capfd: pytest.CaptureFixture[str]):
    assert main(["parts", "new", "adaptor"]) == 1
    assert "parts new takes a kind, a name and --out DIR" in capfd.readouterr().err


def test_every_role_has_a_template():
    assert {*ROLES, "task", "callback", "optim", "schedule"} == {*KINDS}
