"""The processes that a run starts on its own machine: they end together, and it is said why."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from .forked import is_own, start
from .signals import GRACE, PARENT, STOPPED, Interrupted, child


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, but the processes watch the one that starts them, and this one is not killed without a word."""

    forks = False  # whether the others may be forked

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        def begin(*args: Any, **kwargs: Any) -> Any:
            for observer in _observers():
                observer._terminate_all = self._end
            return function(*args, **kwargs)

        try:
            return super().launch(begin, *args, trainer=trainer, **kwargs)
        except Interrupted as stopped:
            if stopped.step is None:  # otherwise they are saving the same step
                self.kill(signal.SIGKILL)
            raise

    def _call_children_scripts(self) -> None:
        os.environ |= child("end")
        try:
            if self.forks and is_own():  # the others are the same call
                self._start_others()
            else:
                super()._call_children_scripts()
        finally:
            del os.environ[PARENT]

    def _start_others(self) -> None:
        self._check_can_spawn_children()
        place = self.cluster_environment
        os.environ |= {
            "MASTER_ADDR": place.main_address,
            "MASTER_PORT": str(place.main_port),
            "NODE_RANK": str(place.node_rank()),
            "LOCAL_RANK": str(place.local_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        ranks = range(1, self.num_processes)
        others = [{**os.environ, "LOCAL_RANK": str(rank)} for rank in ranks]
        how: Any = {"alone": False, "piped": False, "gpu": False}
        self.procs = [start(sys.argv[1:], environment, **how) for environment in others]  # pyright: ignore[reportAttributeAccessIssue]

    def _end(self) -> None:
        """End this process and all others after one of them; in the thread that watches them."""
        time.sleep(GRACE)  # it hears of it by the lost connection, unless it waits for that one to begin
        number, code = next((n, process.returncode) for n, process in enumerate(self.procs, 1) if process.returncode)
        how = f"signal {-code}: killed, or out of memory?" if code < 0 else f"exit {code}: its own lines say why"
        if code == STOPPED:
            how = "stopped by a signal"
        line = f"process {number} of this run has ended ({how}); the same command goes on from the last save"
        print(f"voxzoo train: {line}", file=sys.stderr, flush=True)
        self.kill(signal.SIGKILL)
        os._exit(STOPPED if code == STOPPED else 1)


def watch_processes(trainer: Trainer) -> None:
    """Put `Launcher` in the place of Lightning's where the trainer starts processes."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        own = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        # On the CPU alone, where counting GPUs spoils nothing, and for DDP: a forked process of FSDP2 has been seen to
        # end by a c10::Error in a thread when the run was stopped, in two of five runs.
        own.forks = isinstance(trainer.accelerator, CPUAccelerator) and isinstance(trainer.strategy, DDPStrategy)
        trainer.strategy._launcher = own


def let_processes_end() -> None:
    """Watch the processes no more: all of them have saved the same step, and one may end before this one."""
    for observer in _observers():
        observer._run = lambda: True


def _observers() -> list[_ChildProcessObserver]:
    return [thread for thread in threading.enumerate() if isinstance(thread, _ChildProcessObserver)]
