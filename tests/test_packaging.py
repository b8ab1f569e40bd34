"""The package list in pyproject.toml is explicit, so it is compared with the folders."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def test_every_folder_with_python_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(settings["packages"])
    found = {
        "voxzoo." + ".".join(folder.relative_to(ROOT).parts)
        for top in ("components", "tasks", "datamodules", "configs")
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob("*.py"))
    }
    assert listed == found


def test_nothing_is_packaged_under_a_top_level_name():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert all(name.startswith("voxzoo.") for name in settings["packages"])
    assert settings["package-dir"] == {f"voxzoo.{n}": n for n in ("components", "configs", "datamodules", "tasks")}


def test_lightning_uploads_known_to_be_malicious_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [r for r in project["dependencies"] if r.startswith("lightning")]
    assert "!=2.6.2" in requirement
    assert "!=2.6.3" in requirement
    constraints = (ROOT / "constraints.txt").read_text()
    assert "lightning==2.6.2\n" not in constraints
    assert "lightning==2.6.3\n" not in constraints


@pytest.mark.parametrize("name", [f"requirements-{name}.lock" for name in ("demo", "dev", "quality", "uv")])
def test_locks_hold_versions_and_hashes_alone(name: str):
    """No registry's host, no machine's path: they install from where pip is set to. `make locks` makes them."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {canonicalize_name(each): version for each, version in pinned.items()}
    locked = {}
    for line in (ROOT / name).read_text().splitlines():
        if not re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?", line):
            found = re.fullmatch(r"([\w.-]+)==([\w.+!]+) \\", line)
            assert found, line
            locked[canonicalize_name(found[1])] = found[2]
    assert {each: version for each, version in locked.items() if each != "setuptools"}.items() <= pinned.items()
    alone = {"requirements-uv.lock": "uv", "requirements-quality.lock": "resemblyzer"}
    if name in alone:
        assert set(locked) == {alone[name]}
        return
    extras = {"requirements-demo.lock": ("demo", "eval"), "requirements-dev.lock": ("demo", "eval", "dev")}[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for each in extras for line in project["optional-dependencies"][each])]
    for requirement in map(Requirement, asked):
        if requirement.name != "voxzoo":
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), str(requirement)
    assert "encodec" not in locked
