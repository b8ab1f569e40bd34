"""Training on a manifest with broken rows: two processes, two workers each, killed in the middle."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from broken import WAYS, write_broken
from conftest import PARTS
from test_kill import Runs

FIFTEEN = dict.fromkeys([way for way in WAYS if way not in ("empty", "folder", "no window")], 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """270 good rows and 30 that are broken in 15 ways."""
    assert len(FIFTEEN) == 15
    path, broken = write_broken(tmp_path_factory.mktemp("corpus"), 270, FIFTEEN)
    write_broken(path.parent, 10, {"nan": 1, "no number": 1}, name="valid")
    return path, broken


def words(path: Path) -> list[str]:
    data = ["data=manifest", f"data.train={path}", f"data.valid={path.parent}/valid.jsonl", "data.num_workers=2"]
    return [*PARTS, *data, f"cache_dir={path.parent}/cache", "tokenizer.vocab_size=60"]


@pytest.mark.slow
def test_skip_trains_on_the_good_rows_and_names_the_others_once(popen, corpus, tmp_path: Path):
    path, broken = corpus
    runs = Runs(tmp_path, words(path))
    skip = "data.on_error=skip"
    code, said = runs.run("whole", "ddp", "none 0 0 0", skip)
    assert code == 0, said
    trained = [note for note in runs.notes("whole") if "step" in note and note["epoch"] == 0]
    ids = [name for note in trained for name in note["ids"]]
    assert len(ids) == len(set(ids)) == 270
    assert not set(ids) & set(broken)
    each = [sum(note["rank"] == rank for note in trained) for rank in range(2)]
    assert each[0] == each[1]
    assert [said.count(f"left out {name}:") for name in broken] == [1] * 30, said
    assert "32 rows that cannot be read are left out of this run" in said  # two of validation
    assert json.loads((tmp_path / "whole" / "done.json").read_text())["skipped_rows"] == 32

    code, first = runs.run("killed", "ddp", f"step -1 9 {int(signal.SIGKILL)}", skip)
    assert code != 0
    code, rest = runs.run("killed", "ddp", "none 0 0 0", skip, "data.num_workers=1")
    assert code == 0, rest
    assert [(first + rest).count(f"left out {name}:") for name in broken] == [1] * 30, first + rest
    record = [json.loads(line) for line in (tmp_path / "killed" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in record if row["split"] == "train") == sorted(broken)
    runs.same_end("killed", "whole")


@pytest.mark.slow
def test_stop_says_one_line(popen, corpus, tmp_path: Path):
    folder, _ = corpus[0].parent, write_broken(tmp_path, 60, {"nan": 2, "cut mp3": 2})
    runs = Runs(tmp_path, words(folder))
    code, said = runs.run("stopped", "ddp", "none 0 0 0", f"data.train={tmp_path}/train.jsonl", "data.valid=null")
    assert code == 1
    lines = [line for line in said.splitlines() if line.startswith("voxzoo train:")]
    assert any("train-" in line for line in lines), said
    assert "Traceback" not in said
    assert "this should not happen" not in said
    lines = [line for line in lines if "another process" not in line]
    assert 1 <= len(lines) <= 2, said  # each process may meet one of its own
