"""The rooms of the house import downwards, and each says on its first line what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [path.parent for path in (ROOT / "tasks").glob("*/__init__.py")]


def test_imports_lead_downwards(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_an_import_upwards_is_found(tmp_path, monkeypatch, capsys):
    """The contracts of the project on a house of two rooms, of which the lower one imports the upper one."""
    package = tmp_path / "little"
    for room, line in {"training": "", "runs": "from ..training import above"}.items():
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
        (package / room / "file.py").write_text(line)
    (package / "__init__.py").write_text("")
    (package / "training" / "above.py").write_text("")
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = little\n[importlinter:contract:1]\nname = rooms\ntype = layers\n"
        "containers = little\nlayers =\n    training\n    runs\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert lint_imports(no_cache=True) == 1
    assert "little.runs.file -> little.training.above" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_a_room_says_what_it_may_import(room: Path):
    first = (room / "__init__.py").read_text().splitlines()[0]
    assert first.startswith('"""')
    assert "import" in first.lower()
