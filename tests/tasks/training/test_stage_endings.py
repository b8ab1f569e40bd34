"""What is said of a stage whose process ended without success."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from voxzoo.configs.compose import compose
from voxzoo.tasks.processes import child
from voxzoo.tasks.training import stages


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("kill -KILL $$", "stage only was killed by SIGKILL (out of memory?); the same command goes on from"),
        ("kill -TERM $$", "stage only was killed by SIGTERM; the same command goes on from"),
        (
            "echo voxzoo train: 2 faults:; echo '  a: b'; echo noise; exit 1",
            "stage only stopped (exit 1): 2 faults:\n  a: b",
        ),
        ("exit 3", "stage only stopped (exit 3): step 4/9"),
    ],
)
def test_a_stage_that_was_killed_does_not_quote_its_progress(
    script: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def started(words, environment):
        shell = ["sh", "-c", f"echo step 4/9; {script}"]
        return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)

    monkeypatch.setattr(child, "start", started)
    words = [f"root={tmp_path}", "+stages.only.choose.task=speech_to_text"]
    with pytest.raises(stages.StageFailed) as error:
        stages.train_stages(compose(words), {"only": compose(words, stage="only")}, words, [])
    assert str(error.value).startswith(expected)
    assert "killed" not in expected or "step 4" not in str(error.value)
