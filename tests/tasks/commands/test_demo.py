"""What `make demo` does and says, with the engines replaced: they are tested elsewhere, and take minutes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from voxzoo.components.errors import UserError
from voxzoo.tasks.commands.demo import PLAN, main
from voxzoo.tasks.processes.signals import Interrupted
from voxzoo.tasks.serving import evaluation, translator
from voxzoo.tasks.training import train


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Each engine notes what it was asked, and answers as it would."""
    made: list[tuple[Any, ...]] = []
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # put back behind the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def trained(words: list[str]) -> dict[str, Any]:
        made.append(("train", words, os.environ["OMP_NUM_THREADS"]))
        return {"seconds": 400.0, "run": str(tmp_path / "quickstart")}

    def evaluated(run: Path, split: str, **options: Any) -> dict[str, Any]:
        made.append(("evaluate", run, split, options))
        lines = [{"source_audio": f"{n}.wav", "reference": f"r{n}", "hypothesis": f"h{n}"} for n in range(7)]
        path = tmp_path / f"{split}.hypotheses.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        speech = {"asr_bleu": 60.0, "asr_bleu_ceiling": 80.0, "asr_bleu_resynthesis": 72.0}
        answer = {"num_utterances": options.get("limit", 300), "bleu": 93.4, "hypotheses": str(path)}
        return answer | (speech if options["task"] == "s2st" else {})

    def translated(run: Path, inputs: list[str], mode: str, to: str, *, out: Path):
        made.append(("translate", run, inputs, mode, to))
        yield from ({"input": name, "audio": str(out / f"{name}.eng.wav")} for name in inputs)

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(evaluation, "evaluate_run", evaluated)
    monkeypatch.setattr(translator, "translate", translated)
    return made


def test_the_demo_says_what_it_will_do_and_what_came_of_it(
    calls: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "quickstart"
    assert main(["--root", str(tmp_path), "--spoken", "50", "seed=2"]) == 0
    inputs = [f"{n}.wav" for n in range(5)]
    text = {"task": "s2tt", "out": run / "evaluation" / "text"}
    two = [f"stages.second_pass.set.trainer.{key}" for key in ("devices=2", "accumulate_grad_batches=1")]
    assert calls == [
        ("train", ["experiment=quickstart", f"root={tmp_path}", "stage_jobs=2", *two, "seed=2"], "1"),
        ("evaluate", run, "test_seen", text),
        ("evaluate", run, "test_unseen", text),
        ("evaluate", run, "test_unseen", {"task": "s2st", "limit": 50, "quality": "none"}),
        ("translate", run, inputs, "s2st", "eng"),
    ]
    said = capsys.readouterr()
    before, _, behind = said.err.partition("$ voxzoo train")
    assert all(word in before for row in PLAN for word in row)  # the plan comes before the first command
    assert "OMP_NUM_THREADS" not in os.environ  # the recogniser takes all cores
    assert behind.count("$ voxzoo ") == 4
    assert behind.count("minutes in all") == 5
    assert "60.0  (75 % of the ceiling)" in said.out
    assert "reference   r4" in said.out
    assert str(run / "translated" / "4.wav.eng.wav") in said.out


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("no such key"), 1, "demo: no such key"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (Interrupted(signal.SIGTERM, 3), 75, "stopped by SIGTERM at step 3"),
    ],
)
def test_the_demo_stops_where_a_command_does(
    calls, tmp_path: Path, monkeypatch, capsys, error: BaseException, status: int, words: str
):
    def failing(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(train, "train", failing)
    assert main(["--root", str(tmp_path)]) == status
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert calls == []


def test_a_clip_that_cannot_be_translated_fails_the_demo(calls, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(translator, "translate", lambda *_, **__: iter([{"input": "0.wav", "error": "is empty"}]))
    assert main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "demo: 0.wav: is empty"
