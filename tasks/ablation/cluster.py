"""Trainings as jobs of a cluster: those that can begin at once are one array of Slurm, through submitit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ...components.lines import read_json
from ...components.whole import write_whole
from ..processes.console import say
from .costs import Cost
from .job import Call
from .keys import key_of

_DAYS = 7  # that a job of this machine may take; submitit's own default are two minutes


class Job:
    """What `processes.child.Child` is for a process, for a job of a cluster."""

    speaks = False  # what it says is in its log

    def __init__(self, name: str, job: Any) -> None:
        self.name = name
        self._job = job
        self._answer: dict[str, Any] | None = None
        self._over = False

    @property
    def number(self) -> str:
        """By which the cluster knows it."""
        return str(self._job.job_id)

    @property
    def ended(self) -> bool:
        self._over = self._over or self._job.done()
        return self._over

    @property
    def answer(self) -> dict[str, Any]:
        """What `Call` gave; of a job that ended before it did, that."""
        if self._answer is None:
            try:
                found = [dict(one) for one in self._job.results()]  # several where a training is of several tasks
                self._answer = next((one for one in found if one["code"]), found[0])
            except Exception:  # submitit's own, and whatever the job itself raised
                self._answer = {"code": 1, "why": self._end()}
        return self._answer

    @property
    def code(self) -> int:
        """What the command exited with."""
        return int(self.answer["code"])

    @property
    def why(self) -> str:
        """Why it failed, and where its log is."""
        return f"{self.answer['why']} ({self._job.paths.stderr})"

    @property
    def cost(self) -> Cost:
        """Of the command, without what it waited for; nothing is known of a job that was ended."""
        return Cost(**self.answer.get("cost", {}))

    def _end(self) -> str:
        path = Path(str(self._job.paths.stderr))
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"job {self.number} ended as {self._job.state}{f': {last}' if last else ''}"

    def stop(self, running: Iterable[Any]) -> None:
        """Cancel it: it is told to end, and what it trains is saved."""
        if not self._over:
            self._job.cancel(check=False)


class Cluster:
    """Begins jobs.

    Args:
        folder: for their logs.
        settings: of submitit's AutoExecutor, such as `slurm_partition`, `timeout_min`, `gpus_per_node`.
        kind: `slurm`; `local` for processes of this machine, which end with this one; `debug`: one behind the other,
            each when it is asked for.
        jobs: how many may run at a time.

    Attributes:
        at_a_time: how many may be begun; None where the cluster has them wait.

    Raises:
        UserError: submitit is not installed, there is no such cluster, it has no such setting, or Slurm is not told
            how long a job may take.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], kind: str = "slurm", jobs: int = 1) -> None:
        # The signal by which a job is told that its time is over: one that a training knows. Read when it is imported.
        os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
        try:
            import submitit
        except ImportError:
            raise UserError("--cluster needs submitit: pip install 'voxzoo[slurm]'") from None
        if kind == "slurm" and not {"timeout_min", "slurm_time"} & settings.keys():
            raise UserError(
                "--cluster slurm: say how many minutes a job may take, as --cluster-option timeout_min=240; one that "
                "takes longer is queued again, and goes on from its last save"
            )
        usual = {"slurm_array_parallelism": jobs} if kind == "slurm" else {"timeout_min": _DAYS * 24 * 60}
        try:
            self._executor = submitit.AutoExecutor(folder=str(folder), cluster=kind)
            self._executor.update_parameters(**{**usual, **settings})
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"--cluster {kind}: {' '.join(str(error).split())}") from None
        self.at_a_time = None if kind == "slurm" else jobs
        self._begun = folder / "begun.json" if kind == "slurm" else None
        self._jobs: dict[str, Job] = {}  # by what they run, since when they are begun together
        self._call = Call(os.getcwd(), os.getpid() if kind == "local" else None, 1 if kind == "slurm" else jobs)

    def __call__(self, name: str, words: Sequence[str]) -> Job:
        """A job that runs `voxzoo WORDS` in this folder: one that was begun before and has not ended, or a new one."""
        key = key_of(*words)
        old = self._before(key)
        if old is not None:
            say(f"[{name}] job {old.job_id} of before goes on")
            return Job(name, old)
        self._jobs[key] = Job(name, self._executor.submit(self._call, name, list(words)))
        return self._jobs[key]

    def _before(self, key: str) -> Any:
        """The job of a call that was begun by a process before this one, and has not ended."""
        number = self._known().get(key)
        if number is None:
            return None
        import submitit

        old = submitit.SlurmJob(self._executor.folder, number)
        return None if old.done() else old

    @contextmanager
    def together(self) -> Iterator[None]:
        """What begins inside is one array."""
        with self._executor.batch(allow_implicit_submissions=True):
            yield
        if self._begun is not None and self._jobs:  # they have their numbers now, and outlive this process
            numbers = {**self._known(), **{key: job.number for key, job in self._jobs.items()}}
            write_whole(self._begun, json.dumps(numbers, indent=1).encode())
        self._jobs.clear()

    def _known(self) -> dict[str, str]:
        return read_json(self._begun) if self._begun is not None and self._begun.is_file() else {}


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
