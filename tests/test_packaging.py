"""The package list in pyproject.toml is explicit, so it is compared with the folders."""

import tomllib
from pathlib import Path

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
