"""`benchmarks scale`: the law out of three sizes, and what is said."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the checkout and belong to no package

from benchmarks.scale import command, process
from benchmarks.scale.law import law
from benchmarks.scale.row import Row

SIZES = (100, 400, 1600)


@pytest.mark.parametrize(
    ("values", "said", "expected"),
    [
        ([7 + 0.5 * size for size in SIZES], "linear", 7 + 0.5 * 10_000),
        ([7 + 0.5 * size**2 for size in SIZES], "size^2.0", 7 + 0.5 * 10_000**2),
        ([7 + 0.5 * size**0.5 for size in SIZES], "size^0.5", 7 + 0.5 * 100),
        ([10.0, 10.2, 10.1], "constant", 10.1),
        ([10.0, 5.0, 20.0], "unclear", None),
        ([10.0, 10.0, math.inf], "unclear", None),
    ],
)
def test_law(values, said, expected):
    found = law(SIZES, values)
    assert str(found) == said
    assert found.at(10_000) == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_law_needs_three_sizes_of_one_factor():
    with pytest.raises(ValueError, match="must grow by one factor; got 1, 2, 3"):
        law((1, 2, 3), (1, 2, 3))
    with pytest.raises(ValueError, match="three sizes and values are needed; got 2 and 2"):
        law((1, 2), (1, 2))


def test_a_row_is_measured_in_a_folder_of_its_own_and_said(monkeypatch, capsys, tmp_path):
    folders = []

    def work(size: int, folder: Path) -> dict[str, float]:
        assert list(folder.iterdir()) == []
        (folder / "made").touch()
        folders.append(folder)
        return {"CPU s": 2.0 * size, "MB": 3.0}

    row = Row("some", "G0 something", work, "rows", (1, 2, 4), (25, 50, 100), 100, {"CPU s": 150, "MB": 4})
    alone = Row("alone", "G00 alone", lambda size, folder: {"CPU s": 1.0}, aims={"CPU s": 2})
    broken = Row("broken", "G000 broken", lambda size, folder: (_ for _ in ()).throw(RuntimeError("ended with 7")))
    monkeypatch.setattr(command, "ROWS", {"some": row, "alone": alone, "broken": broken})
    out = tmp_path / "out.json"
    assert command.main(["some", "alone", "--out", str(out)]) == 0
    assert len(set(folders)) == 3
    assert not any(folder.exists() for folder in folders)
    assert capsys.readouterr().out.splitlines() == [
        "G0 something (1, 2, 4 rows)",
        "  CPU s: 2, 4, 8; linear, 200 expected at 100; aim 150  <-- more than that",
        "  MB: 3, 3, 3; constant, 3 expected at 100; aim 4",
        "G00 alone",
        "  CPU s: 1; aim 2",
    ]
    assert json.loads(out.read_text())["rows"]["some"]["quantities"]["CPU s"]["law"] == "linear"
    assert command.main(["some", "--full"]) == 0
    assert "CPU s: 50, 100, 200; linear; aim 150  <-- more" in capsys.readouterr().out
    assert command.main(["broken", "alone"]) == 1
    said = capsys.readouterr()
    assert "G000 broken: ended with 7" in said.err
    assert "G00 alone" in said.out
    for wrong in (["nothing"], ["some", "alone", "--sizes", "1,2,4"]):
        with pytest.raises(SystemExit):
            command.main(wrong)


def test_every_row_of_section_g_has_a_place():
    numbers = {row.what.split()[0] for row in command.ROWS.values()}
    assert numbers == {f"G{number}" for number in range(1, 15)} - {"G13"}  # which `make demo` prints
    for row in command.ROWS.values():
        for sizes in (row.sizes, row.full):
            assert len(sizes) in (1, 3)
            if len(sizes) == 3:
                law(sizes, (1, 2, 3))  # of one factor
        assert row.target == row.full[-1] or len(row.sizes) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_work_is_measured_in_a_process_of_its_own(tmp_path):
    found = process.apart("scoring:scored", 50, tmp_path)
    assert found["cpu"] > 0
    assert found["peak"] >= found["kept"]
    with pytest.raises(RuntimeError, match=r"scoring:nothing .* ended with 1"):
        process.apart("scoring:nothing", 1, tmp_path)


_HELD = """
from benchmarks.scale import process
before = process.private()
held = bytearray(b"x" * 40_000_000)
assert 30_000_000 < process.private() - before < 90_000_000
peak = process.Peak()
more = bytearray(b"x" * 20_000_000)
assert 15_000_000 < peak.stop() < 50_000_000
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_memory_is_that_of_the_process_alone():
    """In a process of its own: one that has run other tests has holes in its heap, which take this in."""
    done = subprocess.run([sys.executable, "-c", _HELD], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_command_is_measured_from_outside(tmp_path):
    found = process.command(["--help"], tmp_path)
    assert found["cpu"] > 0
    assert found["resident"] > 1e6
    with pytest.raises(RuntimeError, match="voxzoo nothing ended with 2"):
        process.command(["nothing"], tmp_path)


def test_bfloat16_is_measured_beside_float32(tmp_path):
    from benchmarks.scale import models

    assert models.in_bfloat16(1, tmp_path)()["slower"] > 0
