"""Trainings as jobs of a cluster: those that can begin at once are one array of Slurm, through submitit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ..processes.forked import call


class Job:
    """What `processes.child.Child` is for a process, for a job of a cluster."""

    speaks = False  # what it says is in its log

    def __init__(self, name: str, job: Any) -> None:
        self.name = name
        self.started = time.monotonic()
        self.process: Any = None
        self._job = job

    @property
    def ended(self) -> bool:
        return self._job.done()

    @property
    def code(self) -> int:
        """What the command exited with; 1 where the job ended before it did."""
        try:
            return int(self._job.result())
        except Exception:  # submitit's own, and whatever the job itself raised
            return 1

    @property
    def why(self) -> str:
        """The last line of the job's log of errors, and where that is."""
        path = Path(str(self._job.paths.stderr))
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        said = [line for line in lines if line.startswith("voxzoo ")] or [line for line in lines if line.strip()]
        state = str(self._job.state)
        return f"{said[-1].strip() if said else f'job {self._job.job_id} ended as {state}'} ({path})"

    def stop(self, running: Any) -> None:
        """Cancel it: Slurm tells it to end, and what it trains is saved."""
        if not self._job.done():
            self._job.cancel()


class Cluster:
    """Begins jobs.

    Args:
        folder: for their logs.
        settings: of submitit's AutoExecutor, such as `slurm_partition`, `timeout_min`, `gpus_per_node`.
        kind: `slurm`; `local` for processes of this machine, `debug` for this process.
        jobs: how many of an array may run at a time.

    Raises:
        UserError: submitit is not installed, there is no such cluster, or it has no such setting.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], kind: str = "slurm", jobs: int = 1) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--cluster needs submitit: pip install 'voxzoo[slurm]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder=str(folder), cluster=kind)
            if kind == "slurm":
                self._executor.update_parameters(slurm_array_parallelism=jobs)
            self._executor.update_parameters(**settings)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"--cluster {kind}: {' '.join(str(error).split())}") from None

    def __call__(self, name: str, words: Sequence[str]) -> Job:
        """A job that runs `voxzoo WORDS` in this folder."""
        return Job(name, self._executor.submit(Call(), list(words), os.getcwd()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What begins inside is one array."""
        with self._executor.batch(allow_implicit_submissions=True):
            yield


class Call:
    """A call of the command in a job. One that Slurm preempts is queued again, and goes on from its last save."""

    def __call__(self, words: list[str], folder: str) -> int:
        os.chdir(folder)
        return call(words)

    def checkpoint(self, words: list[str], folder: str) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, words, folder)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Settings of `--cluster-option KEY=VALUE`, numbers as numbers.

    Raises:
        UserError: a word without a value.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UserError(f"--cluster-option {word}: expected KEY=VALUE, such as slurm_partition=gpu")
        found[key] = int(value) if value.lstrip("-").isdigit() else value
    return found
