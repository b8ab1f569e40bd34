"""The benchmarks run, compare before they time, and report. Nothing here looks at how fast anything is."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import pytest
import torch

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are run from the checkout and belong to no package

from benchmarks import __main__ as every  # noqa: E402
from benchmarks import harness  # noqa: E402
from benchmarks.harness import (  # noqa: E402
    Case,
    Options,
    Other,
    Unequal,
    difference,
    measure,
    report,
)
from benchmarks.harness.case import equal_share  # noqa: E402

QUICK = Options(threads=1, rounds=1, quick=True)


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _count(calls: list[str], name: str, value: float):
    def run() -> torch.Tensor:
        calls.append(name)
        return torch.full((3,), value)

    return run


@pytest.mark.parametrize(
    "path", [path if path == "speech_encoder" else pytest.param(path, marks=pytest.mark.slow) for path in every.PATHS]
)
def test_path(path, tmp_path, capsys):
    module = importlib.import_module(f"benchmarks.{path}")
    out = tmp_path / "result.json"
    assert harness.main(path, module.cases, ["--quick", "--threads", "1", "--rounds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["environment"].keys() >= {"torch", "transformers", "cpu", "threads", "device", "dtype"}
    assert found["results"]
    printed = capsys.readouterr().out
    for result in found["results"]:
        assert result["path"] == path
        if result["peer"] == "transformers":
            assert 0 <= result["difference"] <= result["tolerance"] == 1e-4
        elif result["peer"] == "CTranslate2":
            assert result["equal"] == 1
        assert result["limit"]["flops"] > 0
        assert result["limit"]["share"] > 0
        for clock in ("wall", "cpu"):
            ratio = result["ratio"][clock]
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] < math.inf
            assert result["seconds"]["peer"][clock] > 0
        assert len(result["rounds"]) == 1
        assert f"| {path.replace('_', ' ')} | {result['case']} | {result['peer']} |" in printed


class _Here:
    """In the place of a process pool: each path in this process, which has imported everything."""

    asked: ClassVar[list[dict]] = []

    def __init__(self, processes: int, **settings) -> None:
        self.asked.append({"processes": processes, **settings})

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_) -> None: ...

    def submit(self, run, *arguments) -> Future:
        future: Future = Future()
        future.set_result(run(*arguments))
        return future


@pytest.mark.slow
def test_all_in_one_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(every, "ProcessPoolExecutor", _Here)
    out = tmp_path / "results" / "all.json"
    arguments = ["--quick", "--threads", "1", "--rounds", "2", "--no-others", "--out", str(out), "text_beam", "hubert"]
    assert every.main(arguments) == 0
    # A process for each path, which is a new one.
    assert len(_Here.asked) == 2
    assert all(asked["mp_context"].get_start_method() == "spawn" for asked in _Here.asked)
    assert all(asked["processes"] == 1 for asked in _Here.asked)
    found = json.loads(out.read_text())
    assert [result["path"] for result in found["results"]] == ["text_beam", "hubert"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(SystemExit):
        every.main(["nothing"])


@pytest.mark.slow
def test_command():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.text_beam", "--quick", "--threads", "1", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "| text beam |" in done.stdout


def test_unequal_outputs_are_refused_before_any_timing(capsys):
    calls: list[str] = []
    case = Case("wrong", _count(calls, "peer", 1.0), _count(calls, "ours", 1.1), 1.0)
    with pytest.raises(Unequal, match=r"wrong: outputs differ by 0\.1, allowed 0\.0001"):
        measure("path", case, QUICK)
    assert sorted(calls) == ["ours", "peer"]
    assert harness.main("path", lambda options: iter([case]), ["--quick"]) == 1


def test_a_path_that_is_killed_does_not_take_the_others_along(capsys):
    """An address that is none, read in the process of the path."""
    results, errors, killed = every.run_all([1], 1, run=ctypes.string_at)  # pyright: ignore[reportArgumentType]
    assert (results, killed) == ([], 1)
    assert errors == ["1: its process was killed: out of memory, or one of the peers crashed"]
    assert every.run_all([b"ab"], 1, run=ctypes.string_at)[0] == list(b"a")  # pyright: ignore[reportArgumentType]
    assert "killed" in capsys.readouterr().err


def test_a_wrong_weight_is_noticed():
    from benchmarks import speech_encoder
    from benchmarks.models import TINY

    models = speech_encoder.models(QUICK, **TINY)
    case = speech_encoder.case("x", models, QUICK, [1.5])
    assert difference(case.peer(), case.ours()) < 1e-4
    with torch.no_grad():
        models[1][0].layers[0].attention.distance.copy_(models[1][0].layers[0].attention.distance.roll(1, 0))
    with pytest.raises(Unequal):
        measure("speech_encoder", case, QUICK)


@pytest.mark.slow
def test_rounds_are_interleaved_and_alternate():
    calls: list[str] = []
    other = Other(_count(calls, "other", 1.0))
    case = Case("x", _count(calls, "peer", 1.0), _count(calls, "ours", 1.0), 1.0, memory=False, others={"other": other})
    result = measure("path", case, dataclasses.replace(QUICK, rounds=3))
    turn = ["peer", "other", "ours"]
    # First compared, then three turns, then once more for the products.
    assert sorted(calls[:3]) == sorted(turn)
    assert calls[3:] == [*turn, *turn[::-1], *turn, "ours"]
    result.rounds = [
        {"transformers": {"wall": peer, "cpu": 1.0}, "other": {"wall": 3.0, "cpu": 1.0},
         "voxzoo": {"wall": 1.0, "cpu": 2.0}}
        for peer in (4.0, 2.0, 9.0)
    ]  # fmt: skip
    assert result.ratio("wall") == {"median": 4.0, "min": 2.0, "max": 9.0}
    assert result.ratio("cpu")["median"] == 0.5
    rows = result.rows()
    assert [(row["peer"], row["ratio"]["wall"]["median"]) for row in rows] == [("transformers", 4.0), ("other", 3.0)]


def test_another_peer_must_give_the_same_unless_it_has_fewer_bits():
    def case(other: Other) -> Case:
        same = _count([], "x", 1.0)
        return Case("x", same, same, 1.0, memory=False, others={"other": other})

    wrong = _count([], "other", 2.0)
    with pytest.raises(Unequal, match=r"outputs of other differ by 1, allowed 0\.0001"):
        measure("path", case(Other(wrong)), QUICK)
    (_, row) = measure("path", case(Other(lambda: [torch.tensor(1.5)] * 3, exact=False)), QUICK).rows()
    assert row["equal"] == pytest.approx(2 / 3)
    (_, row) = measure("path", case(Other(None, note="no compiler")), QUICK).rows()
    assert "ratio" not in row
    assert "not run: no compiler" in report.table([row], QUICK)


def test_equal_share():
    assert equal_share([[1, 2], [3]], [[1, 2], [4]]) == 0.5
    assert equal_share([[1]], [[1], [2]]) == 0
    assert equal_share([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 3.0])]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.5),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), math.inf),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0]), math.inf),
        (torch.tensor([1.0]), torch.tensor([math.nan]), math.inf),
        ([torch.zeros(2), 3], [torch.zeros(2), 3], 0.0),
        ([1.0], [1.0, 2.0], math.inf),
        (["a"], ["b"], math.inf),
        (1.0, math.nan, math.inf),
    ],
)
def test_difference(one, other, expected):
    assert difference(one, other) == expected


@pytest.mark.slow
def test_memory_is_measured_by_a_process_of_its_own(monkeypatch):
    from benchmarks.harness import compare, memory

    monkeypatch.chdir(ROOT)
    found = memory.measure_apart("text_beam", QUICK)
    assert all(growth[side] >= 0 for growth in found.values() for side in ("peer", "ours"))
    monkeypatch.setattr(compare, "measure_apart", lambda path, options: {"x": {"peer": 8.0, "ours": 2.0}})
    case = Case("x", _count([], "peer", 1.0), _count([], "ours", 1.0), 1.0)
    (result,) = harness.run("path", lambda options: iter([case]), Options(threads=1, rounds=1))
    assert result["memory_ratio"] == 0.25


def _growth(code: str) -> int:
    """What a fresh process prints whose blocks are mapped one by one, as those that measure memory are."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    lines = f"import torch\nfrom benchmarks.harness.growth import peak_growth\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_holes_of_the_heap_are_not_counted_where_blocks_are_mapped():
    """What ran before leaves nothing behind: the peak of a run is what was alive at one time."""
    before = "kept = []\nfor _ in range(40): torch.ones(2_000_000); kept.append(torch.ones(60_000))\n"
    assert 15e6 < _growth(before + "print(peak_growth(lambda: [torch.ones(2_000_000) for _ in range(2)][:0]))") < 19e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_peak_growth_sees_what_was_freed_again():
    assert (
        30e6 < _growth("print(peak_growth(lambda: (torch.ones(8_000_000).sum(), torch.ones(4_000_000).sum())))") < 45e6
    )
    assert _growth("print(peak_growth(lambda: None))") < 3e6
