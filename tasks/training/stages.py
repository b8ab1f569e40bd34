"""Several stages that build on each other, each in a process of its own."""

from __future__ import annotations

import codecs
import io
import locale
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ...components.errors import UserError
from ...configs.compose import to_yaml
from ...configs.yaml_files import load_map
from ..processes.forked import start
from ..processes.signals import EXIT_CODES, REQUEUED, Interrupted, child, heard
from ..runs.folder import is_done, is_trained, wait_for_result
from .settling import DAMAGED, settle_config, take_languages
from .sharing import environment_of_stage, launched_processes, stages_at_a_time


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
    together, jobs = launched_processes() > 1, stages_at_a_time(config)

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
                    raise StageFailed(name, stage.code, stage.reason)
                done.append(name)
                print(f"[{name}] done in {time.monotonic() - stage.started:.0f} s", file=sys.stderr, flush=True)
            _pass_on(running.values(), 0.05)
    except BaseException:
        for stage in running.values():
            stage.stop(running.values())
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
    take_languages(config, load_map(folder / "config.yaml", DAMAGED))
    settle_config(folder, to_yaml(config))
    return is_trained(folder)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_ERROR = "voxzoo train: "  # begins what a command says when it fails


class StageFailed(UserError):
    """A stage's process ended with an error, which it has printed itself."""

    def __init__(self, name: str, code: int, reason: str) -> None:
        if code < 0:  # what it said last has nothing to do with it
            by = signal.Signals(-code).name
            often = " (out of memory?)" if by == "SIGKILL" else ""
            super().__init__(
                f"stage {name} was killed by {by}{often}; the same command goes on from the last save of this stage"
            )
        else:
            super().__init__(f"stage {name} stopped (exit {code}): {reason or 'see the lines above'}")
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
        self.reason = ""  # the error that it has printed, else its last line
        self.speaks = True
        self._has_said_why = False
        self._begun = ""  # a line that has no end yet
        decoder = codecs.getincrementaldecoder(locale.getencoding())("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        words = ["train", "--stage", name]
        for folder in config_dirs:
            words += ["--config-dir", folder]
        environment = {**environment_of_stage(beside), **child("stop"), "PYTHONUNBUFFERED": "1"}
        if meeting and "MASTER_PORT" in environment:
            environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + meeting)
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        # Its own process group: Ctrl-C reaches this process, which tells each stage once.
        self.process = start([*words, *overrides], environment)

    def fileno(self) -> int:
        """Of what it says."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def pass_on(self) -> None:
        """Pass on what it has said by now; waits where there is nothing."""
        content = os.read(self.fileno(), 1 << 16)
        self.speaks = bool(content)
        *lines, self._begun = (self._begun + self._decoder.decode(content, not content)).split("\n")
        for line in lines if self.speaks else [*lines, self._begun]:
            if line.strip():
                self._note(line.rstrip())
                with suppress(OSError):  # nobody listens any more: it trains on
                    print(f"[{self.name}] {line.rstrip()}", file=sys.stderr, flush=True)

    def _note(self, line: str) -> None:
        if line.startswith(_ERROR):
            self.reason = line.removeprefix(_ERROR)
            self._has_said_why = True
        elif not self._has_said_why:
            self.reason = line.strip()
        elif line.startswith("  "):  # an error of several lines, such as the faults of a config
            self.reason += f"\n{line}"

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None and not self.speaks

    @property
    def code(self) -> int:
        assert self.process.returncode is not None
        return self.process.returncode

    def stop(self, running: Iterable[_Stage]) -> None:
        """Ask the stage to save and stop, and wait for it while all are heard; Ctrl-C kills it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                while self.process.poll() is None:  # a large model takes minutes to write
                    _pass_on(running, 0.05)
            except BaseException:  # Ctrl-C, a second time
                self.process.kill()
        until = time.monotonic() + 5
        while self.speaks and time.monotonic() < until:
            _pass_on([self], 0.05)


def _pass_on(stages: Iterable[_Stage], seconds: float) -> None:
    """Pass on what stages say, and wait for it no longer than that."""
    speaking = [stage for stage in stages if stage.speaks]
    if not speaking:
        time.sleep(seconds)
        return
    for stage in select.select(speaking, [], [], seconds)[0]:
        stage.pass_on()
