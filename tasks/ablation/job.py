"""What runs in a job of a cluster: a call of the command. Imports no torch, which the command does itself."""

from __future__ import annotations

import os
import signal
from typing import Any

from ..processes.child import Child, pass_on
from ..processes.signals import child
from ..training.sharing import environment_of_stage
from .costs import cost_of_child


class Call:
    """A call of the command in a job. One that is told to make room is queued again, and goes on from its last save.

    Args:
        folder: where it runs.
        owner: a process of this machine without which it ends.
        beside: how many share this machine.
    """

    def __init__(self, folder: str, owner: int | None, beside: int) -> None:
        self.folder, self.owner, self.beside = folder, owner, beside

    def __call__(self, name: str, words: list[str]) -> dict[str, Any]:
        """Its exit code (`code`), why it failed (`why`), and what it took (`cost`)."""
        os.chdir(self.folder)
        environment = {**environment_of_stage(self.beside), **child("stop"), "PYTHONUNBUFFERED": "1"}
        one = Child(name, words, environment)
        try:
            while not one.ended:
                pass_on([one], 0.5)
                if self.owner is not None and not os.path.exists(f"/proc/{self.owner}"):
                    raise KeyboardInterrupt
        except BaseException:
            # It saves, and ends. Slurm may have told it too: a second time changes nothing, but with Ctrl-C it would.
            one.process.send_signal(signal.SIGTERM)
            while not one.ended:
                pass_on([one], 0.5)
            raise
        return {"code": one.code, "why": one.why if one.code else "", "cost": vars(cost_of_child(one, alone=True))}

    def checkpoint(self, name: str, words: list[str]) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, name, words)
