"""The kept history: what a line holds, what moved, and the table that is made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are run from the checkout and belong to no package

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.harness import history, page  # noqa: E402
from benchmarks.harness.machine import without_isa  # noqa: E402
from benchmarks.harness.options import Options  # noqa: E402


def _line(isa: str | None = None, date: str = "2026-11-01T00:00:00Z", threads: int = 2, **ratios: list[float]) -> dict:
    machine = {"cpu": "some CPU", "isa": isa, "capability": "AVX2" if isa else "AVX512", "cores": 2,
               "threads": threads, "gpu": None, "dtype": "float32"}  # fmt: skip
    rows = [
        {"path": path, "case": "x", "peer": "transformers", "least": 1.0, "wall": ratio, "cpu": [1.0, 1.0, 1.0],
         "limit": {"share": 0.5}, "difference": 1e-6}
        for path, ratio in ratios.items()
    ]  # fmt: skip
    return {"date": date, "commit": "abc", "machine": machine, "versions": {"torch": "2"}, "rounds": 3, "rows": rows}


def _row(**changes) -> dict:
    clocks = {"wall": 2.0, "cpu": 4.0}
    return {
        "path": "hubert", "case": "x", "peer": "transformers", "least": 1.0, "aim": 1.2, "amount": 10.0, "unit": "s",
        "seconds": dict.fromkeys(("peer", "ours"), clocks),
        "ratio": {clock: {"median": 2.0, "min": 1.9, "max": 2.1} for clock in clocks},
        "limit": {"flops": 100, "seconds": 1.0, "share": 0.4321987}, "difference": 1e-6,
        "memory_bytes": {"peer": 4.0, "ours": 2.0}, **changes,
    }  # fmt: skip


def test_a_run_is_appended_as_one_line(tmp_path):
    file = tmp_path / "history.jsonl"
    assert history.read(file) == []
    skipped = {"path": "hubert", "case": "x", "peer": "other", "aim": None, "unit": "s", "note": "no compiler"}
    for _ in range(2):
        history.append(file, history.line_of([_row(), skipped], Options(threads=2, rounds=3)))
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first.keys() >= {"date", "commit", "machine", "versions", "rounds"}
    assert first["machine"].keys() >= {"cpu", "capability", "cores", "threads", "isa"}
    assert first["versions"].keys() == {"torch", "transformers", "ctranslate2", "voxzoo"}
    assert first["rows"] == second["rows"]
    kept, without = first["rows"]
    assert kept["wall"] == [2.0, 1.9, 2.1]
    assert kept["limit"]["share"] == 0.4322
    assert kept["memory"] == {"peer": 4.0, "ours": 2.0}
    assert kept["rate"] == {"peer": 5.0, "ours": 5.0}
    assert without == {"path": "hubert", "case": "x", "peer": "other", "unit": "s", "note": "no compiler"}


def test_what_moved():
    lines = [
        _line(a=[2.0, 1.8, 2.2], b=[3.0, 2.9, 3.1], gone=[1.0, 1.0, 1.0]),
        _line(a=[2.1, 1.5, 2.2], b=[3.0, 2.9, 3.1]),
        _line(a=[1.6, 1.5, 1.7], b=[2.0, 1.9, 2.1], new=[1.0, 1.0, 1.0]),
    ]
    found = {move.key[0]: move for move in history.moves(lines)}
    a, b = found["a"], found["b"]
    assert (a.before, a.now, a.low, a.high) == (2.1, 1.6, 1.5, pytest.approx(2.31))
    assert not a.flagged  # an earlier round was as slow
    assert b.flagged
    assert b.change == pytest.approx(-1 / 3)
    assert found["new"].before is None
    assert not found["new"].flagged
    assert found["gone"].now is None
    assert not found["gone"].flagged
    # One round says nothing of the noise: a tenth is let pass.
    one = [_line(a=[2.0, 2.0, 2.0]), _line(a=[1.85, 1.85, 1.85])]
    assert not history.moves(one)[0].flagged
    one[1]["rows"][0]["wall"] = [1.7, 1.7, 1.7]
    assert history.moves(one)[0].flagged


def test_only_machines_of_one_kind_are_compared(tmp_path, capsys):
    file = tmp_path / "history.jsonl"
    for line in (_line(a=[4.0, 3.9, 4.1]), _line("avx2", a=[2.0, 1.9, 2.1]), _line("avx2", a=[1.0, 0.9, 1.1])):
        history.append(file, line)
    assert main(["history", "--file", str(file)]) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.splitlines()[0].startswith("some CPU (AVX512), 2 of 2 cores, float32: 1 run, ")
    assert "nothing to compare with yet" in first
    assert "a, x, transformers: 2.00 -> 1.00 (-50%); of the limit 0.50 -> 0.50  <-- outside 1.80 to 2.20" in second
    assert "1 of 1 moved beyond the noise" in second
    assert main(["history", "--json", "--file", str(file)]) == 0
    (_, (move,)) = json.loads(capsys.readouterr().out).values()
    assert move["flagged"]
    assert move["change"] == -0.5
    assert main(["history", "--file", str(tmp_path / "none.jsonl")]) == 0
    assert "no run kept yet" in capsys.readouterr().out


def test_table_of_both_kinds():
    lines = [
        _line(threads=1, a=[9.0, 9.0, 9.0]),  # another kind of run
        _line("avx2", a=[2.0, 1.9, 2.1]),
        _line(a=[7.0, 7.0, 7.0], b=[5.0, 4.9, 5.1]),
        _line(date="2026-11-02T00:00:00Z", a=[4.0, 3.9, 4.1], b=[3.0, 2.9, 3.1]),
        _line(date="2026-11-03T00:00:00Z", a=[8.0, 8.0, 8.0]),  # of one path alone
    ]
    table = page.render(lines).splitlines()
    assert table[0] == (
        "some CPU, 2 threads of 2 cores, float32; torch 2. AVX512: commit abc, 2026-11-02, 3 rounds; "
        "AVX2 (the same processor kept to it): commit abc, 2026-11-01, 3 rounds."
    )
    assert "faster, AVX512 (min - max) | faster, AVX2 (min - max)" in table[2]
    assert table[4].startswith(
        "| a | x | transformers | **4.00** (3.90 - 4.10) | **2.00** (1.90 - 2.10) | 1.0 | 0.50 |"
    )
    assert table[5].startswith("| b | x | transformers | **3.00** (2.90 - 3.10) |  | 1.0 | 0.50 |  |")
    assert len({line.count("|") for line in table[2:]}) == 1
    assert page.render([]).startswith("No run has been kept yet")


def test_the_table_stands_between_the_marks_of_a_page():
    text = f"before\n{page.BEGIN}\nold \\1\n{page.END}\nafter\n"
    assert page.replaced(text, "new \\1") == f"before\n{page.BEGIN}\nnew \\1\n{page.END}\nafter\n"
    with pytest.raises(ValueError, match="no place for the table"):
        page.replaced("nothing here", "new")


def test_the_page_holds_the_table_of_the_history():
    """No number in it is typed: `python -m benchmarks table --write`."""
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.replaced(text, page.render(history.read(history.FILE))) == text


def test_a_quick_run_is_not_kept():
    with pytest.raises(SystemExit, match="says nothing of speed"):
        main(["hubert", "--quick", "--save"])


def test_the_instructions_are_set_for_another_process(monkeypatch):
    from benchmarks.harness import machine

    called = []
    monkeypatch.setattr(
        machine.subprocess,
        "run",
        lambda command, env: called.append((command, env)) or type("Done", (), {"returncode": 7}),
    )
    assert main(["hubert", "--isa", "avx2", "--quick"]) == 7
    ((command, env),) = called
    assert command[1:] == ["-m", "benchmarks", "hubert", "--quick"]
    assert env["ATEN_CPU_CAPABILITY"] == "avx2"
    assert env["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert without_isa(["a", "--isa=avx2", "--out", "b"]) == ["a", "--out", "b"]
