"""From a config to a trained run: one task, or several stages that build on each other."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ..components.errors import UserError
from ..components.tokenizer import train_sentencepiece
from ..configs.build import build
from ..configs.check import require_valid
from ..configs.compose import compose, to_yaml
from ..configs.targets import allow_list
from .blocks import set_up_blocks
from .checkpoints import AtomicCheckpointIO, Checkpointer, pick_checkpoint, write_atomically
from .examples import Examples
from .launcher import watch_processes
from .lora import lora_lines
from .mapped import empty_parts, mapped_parts
from .precision import precision_settings
from .progress import RunProgress
from .run import (
    active_stages,
    build_task,
    choose_kernels,
    forget_failed_start,
    is_done,
    load_parts,
    load_pretrained,
    pid_lock,
    published_references,
    settle_config,
    take_languages,
    turns,
)
from .shapes import trace
from .signals import EXIT_CODES, REQUEUED, Interrupted, child, heard, stopped_at_once, watch_parent
from .strategies import cuts_weights, loads_by_shards
from .task import Task


@stopped_at_once()
def train(overrides: Sequence[str], *, stage: str | None = None, config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """Train, or go on training, the run that the overrides describe. Returns what `voxzoo train --json` prints.

    Args:
        overrides: as on the command line, for instance `["experiment=quickstart", "adaptor=stack"]`.
        stage: train this stage alone.
        config_dirs: further folders of YAML groups.

    Raises:
        UserError: a faulty config, data that cannot be read, a folder that holds another run.
    """
    config = compose(overrides, stage=stage, config_dirs=config_dirs)
    names = active_stages(config)
    if names:
        stages = {name: compose(overrides, stage=name, config_dirs=config_dirs) for name in names}
        for one in stages.values():  # every stage's faults before the first stage runs
            _require_sound(one)
        return _train_stages(config, stages, overrides, config_dirs)
    _require_sound(config)
    return _train_one(config)


def _require_sound(config: DictConfig) -> None:
    """Refuse what `voxzoo check` refuses, before data is read or a vocabulary trained.

    What a part says itself counts, and so do parts that do not fit each other; that a part of someone's own cannot run
    without content does not.

    Raises:
        UserError: the faults.
    """
    require_valid(config)
    try:
        trace(config, serving=False)
    except UserError as error:
        if error.__cause__ is None or isinstance(error.__cause__, ValueError):
            raise


def prepare(
    overrides: Sequence[str], *, stage: str | None = None, config_dirs: Sequence[str] = ()
) -> tuple[Task, LightningDataModule]:
    """The task and the data that the overrides describe, for a `lightning.Trainer` of your own.

    As `train` has them: the vocabulary trained where there is none, weights of published models and other runs loaded,
    parts frozen, optimizer and schedule attached. Checkpoints that such a trainer writes are read by `load_run`.

    Args:
        overrides, stage, config_dirs: as for `train`.

    Raises:
        UserError: a faulty config, one of several stages, data that cannot be read, a folder that holds another run.
    """
    config = compose(overrides, stage=stage, config_dirs=config_dirs)
    if active_stages(config):
        raise UserError(f"these are several trainings: choose one, stage={' or '.join(active_stages(config))}")
    _require_sound(config)
    folder = Path(config.run_dir)
    data = _settle(config, folder)
    torch.manual_seed(config.seed)
    return build_for_training(config, folder), data


# One task


def _train_one(config: DictConfig) -> dict[str, Any]:
    quiet_libraries()
    watch_parent()
    folder = Path(config.run_dir)
    if config.get("threads"):
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    first = not getattr(rank_zero_only, "rank", 0)  # of the processes of one run, the one that writes
    with pid_lock(folder) if first else nullcontext():
        data = _settle(config, folder)
        if _is_trained(folder):
            return {"status": "ok", "run": str(folder), **_result(folder)}
        torch.manual_seed(config.seed)
        task = build_for_training(config, folder)
        if hasattr(task, "run_once"):  # a task without gradient steps, such as fitting units: one process does it
            if not first:
                return {"status": "ok", "run": str(folder), **_wait_for_result(folder)}
            result = task.run_once(data, folder)  # pyright: ignore[reportCallIssue]
        else:
            result = _fit(config, task, data, folder)
        result["seconds"] = round(time.monotonic() - started, 1)
        if first:
            write_atomically(folder / "done.json", lambda file: file.write(json.dumps(result, indent=1).encode()))
    return {"status": "ok", "run": str(folder), **result}


def _settle(config: DictConfig, folder: Path) -> Any:
    """The data of a run, and its folder with config and vocabulary; processes of one run write one at a time."""
    with turns(folder):
        forget_failed_start(folder, config)
    data = prepare_data(config, lambda: turns(folder))
    with turns(folder):
        settle_config(folder, to_yaml(config))
    return data


def _is_trained(folder: Path) -> bool:
    """Whether a run has ended and its checkpoint is there; says so.

    Raises:
        UserError: it has ended, and its checkpoint is gone.
    """
    if not is_done(folder):
        return False
    pick_checkpoint(folder / "checkpoints", advice=f"delete {folder / 'done.json'} and train it again")
    say(f"{folder}: already trained")
    return True


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "done.json").read_text())


def _wait_for_result(folder: Path) -> dict[str, Any]:
    """What the first process of this run writes when it is done."""
    while not is_done(folder):
        time.sleep(0.2)
    return _result(folder)


def prepare_data(config: DictConfig, turn: Callable[[], AbstractContextManager] = nullcontext) -> Any:
    """Build the DataModule of a config; make the corpus and train the tokenizer where they are missing.

    Fills in `tokenizer.languages` from the data where the config leaves it empty. Only SentencePiece models are
    trained, and only inside the run folder: a tokenizer of another kind brings its file and its languages.

    Args:
        config: composed; changed as said.
        turn: what to write in: one process at a time. Manifests are read outside, by all processes at once.

    Raises:
        UserError: a file that is missing and is not trained here.
    """
    allowed = allow_list(config)
    data = build(config.data, allowed=allowed, tokenizer=None)
    with turn():
        data.prepare_data()
    if "tokenizer" in config.task:
        trainable = _is_trainable(config.tokenizer)
        if trainable and not config.tokenizer.languages:
            config.tokenizer.languages = list(data.languages())
        model = Path(config.tokenizer.model)
        if trainable:
            with turn():
                _train_vocabulary(config, data, model)
        data.tokenizer = build(config.tokenizer, allowed=allowed)
    return data


def _train_vocabulary(config: DictConfig, data: Any, model: Path) -> None:
    """Train a SentencePiece model on the texts of the training data where there is none."""
    if model.exists():
        return
    run = Path(config.stage_dir).parent
    if not model.is_relative_to(run):
        raise UserError(
            f"tokenizer.model={model}: no such file; correct the path, or leave it out and a vocabulary is "
            f"trained on the texts of the data, inside the run folder {run}"
        )
    languages = len(config.tokenizer.languages)
    train_sentencepiece(data.texts("train"), model, vocab_size=config.tokenizer.vocab_size, num_languages=languages)
    say(f"tokenizer: trained on the texts of the training data: {model}")


def _is_trainable(tokenizer: DictConfig) -> bool:
    """Whether a missing vocabulary may be trained: SentencePiece, and not a published one (`train: false`)."""
    return str(tokenizer._target_).endswith(".SentencePieceTokenizer") and tokenizer.get("train", True)


def build_for_training(config: DictConfig, folder: Path) -> Task:
    """Build the task, load `init`, apply `freeze`, attach optimizer and schedule."""
    allowed = allow_list(config)
    fresh = not (folder / "checkpoints" / "last.ckpt").exists()
    mapped = mapped_parts(config, allowed, in_file=cuts_weights(config)) if fresh else {}
    parts = {role: part for role, (part, _) in mapped.items()}
    if not fresh and loads_by_shards(config):
        parts = empty_parts(config, allowed)
    task = build_task(config, {}, allowed, parts=parts)
    if fresh:  # a run that goes on has all weights of its own
        for line in load_pretrained(task, config, {role: loaded for role, (_, loaded) in mapped.items()}):
            say(f"pretrained {line}")
        for line in load_parts(task, dict(config.init), folder):
            say(f"init {line}")
    for line in lora_lines(task):
        say(f"lora {line}")
    task.freeze_parts([str(role) for role, frozen in config.freeze.items() if frozen])
    if fresh and not config.checkpoint.copy_frozen:
        task.references = published_references(task, config)
        for name, reference in task.references.items():
            count, source = len(reference["tensors"]), reference["source"]
            say(f"checkpoints leave {count} frozen tensors of {name} to {source} (sha256 {reference['sha256'][:12]})")
    set_up_blocks(task.parts(), config)
    task.attach_optimizer(build(config.optim, allowed=allowed), build(config.schedule, allowed=allowed))
    return task


def _fit(config: DictConfig, task: Task, data: Any, folder: Path) -> dict[str, Any]:
    allowed = allow_list(config)
    choose_kernels()
    keeper = Checkpointer(folder=str(folder / "checkpoints"), **OmegaConf.to_container(config.checkpoint))  # pyright: ignore[reportCallIssue]
    callbacks = [Examples(), keeper, RunProgress(), *build(config.callbacks, allowed=allowed).values()]
    precision = precision_settings(config.trainer.get("precision"))
    settings = config.trainer.copy()
    settings.use_distributed_sampler = False  # the data module deals the batches
    if isinstance(settings.get("val_check_interval"), int):  # Lightning counts batches
        settings.val_check_interval *= settings.get("accumulate_grad_batches") or 1
    trainer = build(
        settings,
        allowed=allowed,
        logger=build(config.logger, allowed=allowed) or False,
        callbacks=callbacks,
        default_root_dir=str(folder),
        **{**precision, "plugins": [AtomicCheckpointIO(), *precision["plugins"]]},
    )
    # Lightning's own handlers end a run that has not begun with exit 0, and tell other processes by a collective; it
    # also asks all of them at each batch what these handlers have heard.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    watch_processes(trainer)
    counts = [sum(p.numel() for p in task.parameters() if p.requires_grad), sum(p.numel() for p in task.parameters())]
    say(f"{type(task).__name__}: {counts[0]:,} of {counts[1]:,} parameters learn; run folder {folder}")
    resume = str(keeper.last) if keeper.last.exists() else None
    if resume:
        say(f"resuming from {resume}")
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    finally:
        keeper.restore_handlers()  # once more: Lightning's teardown puts back those it found while training
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "step"}
    return {"task": type(task).__name__, "steps": trainer.global_step, "trainable": counts[0], "metrics": metrics}


# Stages


def _train_stages(
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
                running[name] = _Stage(name, overrides, config_dirs, jobs, names.index(name) + 1 if together else 0)
            if not running:
                raise UserError(f"stages {', '.join(waiting)} wait for each other: look at their `after`")
            for name in [n for n, stage in running.items() if stage.ended]:
                stage = running.pop(name)
                if stage.code:
                    raise StageFailed(name, stage.code, stage.last_line)
                done.append(name)
            time.sleep(0.05)
    except BaseException:
        for stage in running.values():
            stage.stop()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    results = {name: _wait_for_result(folder / "stages" / name) for name in names}
    return {"status": "ok", "run": str(folder), "seconds": round(time.monotonic() - started, 1), "stages": results}


def _needs_no_process(config: DictConfig) -> bool:
    """Whether a stage has ended, so that no process is needed to find out; refuses another config, as `_train_one`."""
    folder = Path(config.run_dir)
    if not is_done(folder):
        return False
    take_languages(config, OmegaConf.load(folder / "config.yaml"))
    settle_config(folder, to_yaml(config))
    return _is_trained(folder)


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
    """A stage in its own process, one of up to `beside` at a time; its lines are passed on behind its name.

    With `meeting` above 0 it is one process of a stage that torchrun or srun started: the processes of each stage meet
    at a port of their own, since what the ones before said at theirs is still there.
    """

    def __init__(
        self, name: str, overrides: Sequence[str], config_dirs: Sequence[str], beside: int, meeting: int = 0
    ) -> None:
        self.name = name
        self.last_line = ""
        command = [sys.executable, "-m", "voxzoo.tasks.cli", "train", "--stage", name]
        for folder in config_dirs:
            command += ["--config-dir", folder]
        environment = {**os.environ, **child("stop"), "PYTHONUNBUFFERED": "1"}
        if beside > 1:
            # Threads of one stage would wait for those of another, or of any other program: on two busy cores, two
            # threads were ten times slower than one.
            environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // beside, 1)))
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


@rank_zero_only
def say(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Lightning's advice on things decided here is noise to the user."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*dataloader is not resumable.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*Trying to infer the `batch_size`.*",
        ".*in eval mode at the start of training.*",
        ".*smaller than the logging interval.*",  # steps are counted over epochs
        ".*sync_dist=True.*",  # the sums are gathered before they are divided
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message=message)
