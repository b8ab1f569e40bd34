"""What several test files share: the overrides of a tiny run, and `voxzoo` as a process of its own."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import forkserver
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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all workers of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny(shared: Path) -> list[str]:
    """Overrides: tiny parts on the tiny corpus, which is made once a session."""
    return [*PARTS, "data=tiny", f"cache_dir={shared / 'corpora'}"]


@pytest.fixture(scope="session")
def popen(shared: Path) -> Callable[..., subprocess.Popen]:
    """`subprocess.Popen` for `[*forkserver.COMMAND, *words]`, from a process that has imported everything."""
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    os.environ[forkserver.WHERE] = forkserver.start(shared, owner)
    return forkserver.popen


@pytest.fixture(scope="session")
def voxzoo(popen: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command as a user does: voxzoo("train", ..., cwd=folder); `env` is set besides what is there."""

    def call(
        *words: object,
        cwd: Path,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        command = [*forkserver.COMMAND, *map(str, words)]
        kept = {name: value for name, value in os.environ.items() if name not in _MEETING}
        environment = {**kept, "OMP_NUM_THREADS": "1", **(env or {})}
        with popen(
            command, cwd=cwd, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                said = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, *said)

    return call
