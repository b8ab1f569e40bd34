"""What several test files share: the overrides of a tiny run, and `voxzoo` as a process of its own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

PARTS = ["frontend=tiny", "speech_encoder=tiny", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny"]


def logged(run: Path, name: str) -> list[float]:
    """A metric of a run at every step that logged it; logger=csv."""
    (path,) = run.rglob("metrics.csv")
    with path.open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


_MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_process_group_is_left():
    """Lightning leaves its process group open, and writes where processes meet into the environment: what a test starts
    later would all meet there."""
    _leave_the_group()
    yield
    _leave_the_group()


def _leave_the_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in _MEETING:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides: tiny parts on the tiny corpus, which is made once a session."""
    return [*PARTS, "data=tiny", f"cache_dir={tmp_path_factory.mktemp('corpora')}"]


@pytest.fixture(scope="session")
def voxzoo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command as a user does: voxzoo("train", ..., cwd=folder); `env` is set besides what is there."""

    def call(
        *words: object, cwd: Path, timeout: float = 120, env: Mapping[str, str] | None = None, **options
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voxzoo.tasks.commands.cli", *map(str, words)]
        kept = {name: value for name, value in os.environ.items() if name not in _MEETING}
        environment = {**kept, "OMP_NUM_THREADS": "1", **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, **options
        )

    return call
