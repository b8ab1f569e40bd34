"""Any content of a checkpoint is used, or refused with the file; nothing in it acts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from .attempts import STEPS, TEXT, Attempt, share
from .damage import CHANGES, CUTS, EDITS, changed, edited


@pytest.fixture(scope="module")
def content(fuzz_runs: dict[str, Path]) -> Any:
    return torch.load(fuzz_runs["text"] / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("hola\n")
    return path


TO = ("--task", "t2tt", "--from", "spa", "--to", "eng")


@given(changes=CHANGES)
def test_values(changes, content, sentence: Path, tmp_path: Path, attempt: Attempt):
    path = tmp_path / "odd.ckpt"
    torch.save(changed(content, changes), path)
    before = path.read_bytes()
    attempt("translate", path, sentence, *TO, names=("odd.ckpt",))
    assert [each.name for each in tmp_path.iterdir()] == ["odd.ckpt"]
    assert path.read_bytes() == before


@given(edits=EDITS, cut=CUTS)
def test_bytes(edits, cut, fuzz_runs, sentence: Path, tmp_path: Path, attempt: Attempt):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(edited((fuzz_runs["text"] / "checkpoints" / "last.ckpt").read_bytes(), edits, cut))
    attempt("translate", path, sentence, *TO, names=("odd.ckpt",))


@share(0.15)
@given(changes=CHANGES)
def test_values_in_a_run_that_goes_on(changes, content, fuzz_runs, tiny, tmp_path: Path, attempt: Attempt):
    run = tmp_path / "runs" / "text"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(fuzz_runs["text"], run)
    (run / "done.json").unlink()
    torch.save(changed(content, changes), run / "checkpoints" / "last.ckpt")
    words = [*tiny, *STEPS, *TEXT, f"root={run.parent}", "name=text", "trainer.max_steps=2"]
    attempt("train", *words, names=("last.ckpt", str(run)))
