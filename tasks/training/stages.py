"""Several stages that build on each other, each in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ...components.errors import UserError
from ...components.online import is_online
from ...configs.compose import to_yaml
from ...configs.yaml_files import load_map
from ..processes.child import Child, killed_by, pass_on, stopped_together
from ..processes.signals import child
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
    waiting = [name for name in names if name not in done]
    running: dict[str, Child] = {}
    together, jobs = launched_processes() > 1, stages_at_a_time(config)

    with stopped_together(running):
        while waiting or running:
            for name in [n for n in waiting if set(after[n]) <= set(done)][: jobs - len(running)]:
                waiting.remove(name)
                place = names.index(name) + 1
                running[name] = start_stage(name, overrides, config_dirs, jobs, place if together else 0)
                print(f"[{name}] begins: stage {place} of {len(names)}", file=sys.stderr, flush=True)
            if not running:
                raise UserError(f"stages {', '.join(waiting)} wait for each other: look at their `after`")
            for name in [n for n, stage in running.items() if stage.ended]:
                stage = running.pop(name)
                if stage.code:
                    raise StageFailed(name, stage.code, stage.reason)
                done.append(name)
                print(f"[{name}] done in {time.monotonic() - stage.started:.0f} s", file=sys.stderr, flush=True)
            pass_on(running.values(), 0.05)
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


def start_stage(
    name: str, overrides: Sequence[str], config_dirs: Sequence[str], beside: int, meeting: int = 0
) -> Child:
    """Train a stage in its own process, one of up to `beside` at a time, which share the cores.

    With `meeting` above 0 it is one process of a stage that torchrun or srun started: the processes of each stage meet
    at a port of their own, since what the ones before said at theirs is still there.
    """
    words = ["train", "--stage", name, *(["--online"] if is_online() else [])]
    for folder in config_dirs:
        words += ["--config-dir", folder]
    environment = {**environment_of_stage(beside), **child("stop"), "PYTHONUNBUFFERED": "1"}
    if meeting and "MASTER_PORT" in environment:
        environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + meeting)
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return Child(name, [*words, *overrides], environment)


class StageFailed(UserError):
    """A stage's process ended with an error, which it has printed itself."""

    def __init__(self, name: str, code: int, reason: str) -> None:
        if code < 0:  # what it said last has nothing to do with it
            super().__init__(
                f"stage {name} was {killed_by(code)}; the same command goes on from the last save of this stage"
            )
        else:
            super().__init__(f"stage {name} stopped (exit {code}): {reason or 'see the lines above'}")
        self.code = code
