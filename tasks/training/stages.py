"""Several stages that build on each other, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...configs.compose import to_yaml
from ..processes.signals import EXIT_CODES, REQUEUED, Interrupted, child, heard
from ..runs.folder import is_done, is_trained, wait_for_result
from .settling import settle_config, take_languages


def train_stages(
    config: DictConfig, stages: dict[str, DictConfig], overrides: Sequence[str], config_dirs: Sequence[str]
) -> dict[str, Any]:
    """Run stages in processes of their own, side by side where `stage_jobs` and `after` allow."""
    names = list(stages)
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    settle_config(folder, to_yaml(config))
    after = {name: [n for n in config.stages[name].get("after") or () if n in names] for name in names}
    done = [name for name in names if _needs_no_process(stages[name])]
    waiting, running = [name for name in names if name not in done], {}
    # Processes that torchrun or srun started take each stage together, one after the other.
    together = launched_processes() > 1
    jobs = 1 if together else max(int(config.stage_jobs), 1)

    def stop(number: int, frame: Any) -> None:
        heard()
        for again in REQUEUED:  # as of the first: what comes behind it changes nothing, but Ctrl-C
            signal.signal(again, signal.SIG_IGN)
        raise Interrupted(number, None)

    handlers = {number: signal.signal(number, stop) for number in EXIT_CODES} if _in_main_thread() else {}
    try:
        while waiting or running:
            for name in [n for n in waiting if set(after[n]) <= set(done)][: jobs - len(running)]:
                waiting.remove(name)
                place = names.index(name) + 1
                running[name] = _Stage(name, overrides, config_dirs, jobs, place if together else 0)
                print(f"[{name}] begins: stage {place} of {len(names)}", file=sys.stderr, flush=True)
            if not running:
                raise UserError(f"stages {', '.join(waiting)} wait for each other: look at their `after`")
            for name in [n for n, stage in running.items() if stage.ended]:
                stage = running.pop(name)
                if stage.code:
                    raise StageFailed(name, stage.code, stage.last_line)
                done.append(name)
                print(f"[{name}] done in {time.monotonic() - stage.started:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.05)
    except BaseException:
        for stage in running.values():
            stage.stop()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    results = {name: wait_for_result(folder / "stages" / name) for name in names}
    return {"status": "ok", "run": str(folder), "seconds": round(time.monotonic() - started, 1), "stages": results}


def _needs_no_process(config: DictConfig) -> bool:
    """Whether a stage has ended, so that no process is needed to find out; refuses another config, as `_train_one`."""
    folder = Path(config.run_dir)
    if not is_done(folder):
        return False
    take_languages(config, OmegaConf.load(folder / "config.yaml"))
    settle_config(folder, to_yaml(config))
    return is_trained(folder)


def launched_processes() -> int:
    """How many processes torchrun or srun started this command as; 1 where neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("SLURM_NTASKS", 1)) if "SLURM_PROCID" in os.environ else 1


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class StageFailed(UserError):
    """A stage's process ended with an error, which it has printed itself."""

    def __init__(self, name: str, code: int, last_line: str) -> None:
        super().__init__(f"stage {name} stopped (exit {code}): {last_line or 'see the lines above'}")
        self.code = code


class _Stage:
    """A stage in its own process, one of up to `beside` at a time, which share the cores; its lines are passed on
    behind its name.

    With `meeting` above 0 it is one process of a stage that torchrun or srun started: the processes of each stage meet
    at a port of their own, since what the ones before said at theirs is still there.
    """

    def __init__(
        self, name: str, overrides: Sequence[str], config_dirs: Sequence[str], beside: int, meeting: int = 0
    ) -> None:
        self.name = name
        self.started = time.monotonic()
        self.last_line = ""
        command = [sys.executable, "-m", "voxzoo.tasks.commands.cli", "train", "--stage", name]
        for folder in config_dirs:
            command += ["--config-dir", folder]
        environment = {**os.environ, **child("stop"), "PYTHONUNBUFFERED": "1"}
        if beside > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // beside, 1)))
            # Threads that spin while they wait take the core from those they wait for: on two busy cores a step of the
            # quickstart took 12 s with two threads that spin, and 0.5 s with two that sleep.
            environment.setdefault("OMP_WAIT_POLICY", "passive")
        if meeting and "MASTER_PORT" in environment:
            environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + meeting)
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        # Its own process group: Ctrl-C reaches this process, which tells each stage once.
        self.process = subprocess.Popen(
            [*command, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        self.thread = threading.Thread(target=self._pass_on, daemon=True)
        self.thread.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self.last_line = line.strip()
                print(f"[{self.name}] {line.rstrip()}", file=sys.stderr, flush=True)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None and not self.thread.is_alive()

    @property
    def code(self) -> int:
        return self.process.returncode

    def stop(self) -> None:
        """Ask the stage to save and stop, and wait for it; Ctrl-C kills it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait()  # a large model takes minutes to write
            except BaseException:  # Ctrl-C, a second time
                self.process.kill()
        self.thread.join(5)
