"""From a config to a trained run: one task, or several stages that build on each other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...components.errors import UserError
from ...components.layers.blocks import unfound_blocks
from ...components.roles import DataModule, Tokenizer
from ...components.tokenizer import train_sentencepiece
from ...components.tokenizer.vocabulary import lost_texts
from ...configs.build import build
from ...configs.check import require_valid
from ...configs.compose import compose, origins, to_yaml
from ...configs.optimisation import factory
from ...configs.origins import Origins
from ...configs.stages import active_stages
from ...configs.targets import allow_list, class_of
from ...datamodules.units import Units
from ...datamodules.utterances import UtteranceData
from ..checkpoints.files import AtomicCheckpointIO, Checkpointer, faults_of_resuming, write_atomically
from ..checkpoints.mapped import mapped_parts, materialise
from ..distributed.devices import choose_kernels
from ..distributed.precision import precision_settings, slow_line
from ..distributed.strategies import cuts_weights, loads_by_shards
from ..planning.shapes import trace
from ..processes.console import quiet_libraries, say
from ..processes.forked import has_imported, one_thread
from ..processes.launcher import watch_processes
from ..processes.signals import stopped_at_once, watch_parent
from ..runs.assembly import assemble, set_up
from ..runs.folder import is_trained, pid_lock, require_no_way_out, result_of, turns, wait_for_result
from ..runs.initial import load_parts, load_pretrained, published_references
from ..runs.joined import attach_runs, attach_teacher
from ..runs.lora import lora_lines
from ..runs.run import load_run
from ..runs.source import files_of_source, take_tokenizer
from ..task import Task
from .curve import Curve
from .examples import Examples
from .progress import RunProgress
from .settling import SKIPPED, forget_failed_start, refuse_another, settle_config
from .stages import train_stages
from .throughput import Throughput


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
    has_imported()
    watch_parent()
    config = _compose(overrides, stage, config_dirs)
    names = active_stages(config)
    _require_closed(config)
    if names:
        stages = {name: _compose(overrides, name, config_dirs) for name in names}
        try:
            for name, one in stages.items():  # every stage's faults before the first stage runs
                _vouch(one, overrides, name, config_dirs)
            return train_stages(config, stages, overrides, config_dirs)
        finally:
            _sound.clear()
    if to_yaml(config) not in _sound:
        _require_sound(config, origins(overrides, stage=stage, config_dirs=config_dirs))
    return _train_one(config)


def _require_closed(config: DictConfig) -> None:
    """Refuse links out of a run; of a stage, also those of the run that it belongs to: its own folder may be one."""
    for folder in dict.fromkeys((Path(config.stage_dir).parent, Path(config.run_dir))):
        require_no_way_out(folder)


def checked(overrides: Sequence[str], *, stage: str | None = None, config_dirs: Sequence[str] = ()) -> DictConfig:
    """Compose a config and refuse what `voxzoo check` refuses. A process that is forked from this one to train it does
    not look again.

    Raises:
        UserError: its faults.
    """
    config = _compose(overrides, stage, config_dirs)
    _vouch(config, overrides, stage, config_dirs)
    return config


def _vouch(config: DictConfig, overrides: Sequence[str], stage: str | None, config_dirs: Sequence[str]) -> None:
    _require_sound(config, origins(overrides, stage=stage, config_dirs=config_dirs))
    _sound.add(to_yaml(config))


_sound: set[str] = set()  # configs found sound by the process that this one was forked from to train a stage
_noted: set[str] = set()  # what was said by then


def _compose(overrides: Sequence[str], stage: str | None, config_dirs: Sequence[str]) -> DictConfig:
    """`compose`, which says once what was left out."""

    def note(line: str) -> None:
        if line not in _noted:
            _noted.add(line)
            say(line)

    return compose(overrides, stage=stage, config_dirs=config_dirs, note=note)


def _require_sound(config: DictConfig, origins: Origins) -> None:
    """Refuse what `voxzoo check` refuses, before data is read or a vocabulary trained.

    What a part says itself counts, and so do parts that do not fit each other; that a part of someone's own cannot run
    without content does not.

    Raises:
        UserError: the faults.
    """
    require_valid(config, origins, inputs=True)
    with one_thread():
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
    config = _compose(overrides, stage, config_dirs)
    if active_stages(config):
        raise UserError(f"these are several trainings: choose one, stage={' or '.join(active_stages(config))}")
    _require_sound(config, origins(overrides, stage=stage, config_dirs=config_dirs))
    folder = Path(config.run_dir)
    _require_closed(config)
    refuse_another(folder, config)
    data = _settle(config, folder)
    torch.manual_seed(config.seed)
    return build_for_training(config, folder, empty=False), data  # who fits it may not load what the folder holds


# One task


def _train_one(config: DictConfig) -> dict[str, Any]:
    quiet_libraries()
    folder = Path(config.run_dir)
    if config.get("threads"):
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    first = not getattr(rank_zero_only, "rank", 0)  # of the processes of one run, the one that writes
    refuse_another(folder, config)
    with pid_lock(folder) if first else nullcontext():
        data = _settle(config, folder)
        if is_trained(folder):
            return {"status": "ok", "run": str(folder), **result_of(folder)}
        torch.manual_seed(config.seed)
        task = build_for_training(config, folder)
        _require_units(task, data)
        if hasattr(task, "run_once"):  # a task without gradient steps, such as fitting units: one process does it
            if not first:
                return {"status": "ok", "run": str(folder), **wait_for_result(folder)}
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
    data = prepare_data(config, lambda: turns(folder), folder / SKIPPED)
    with turns(folder):
        settle_config(folder, to_yaml(config))
    return data


def prepare_data(
    config: DictConfig, turn: Callable[[], AbstractContextManager] = nullcontext, skipped: Path | None = None
) -> Any:
    """Build the DataModule of a config; make the corpus and train the tokenizer where they are missing.

    Fills in `tokenizer.languages` from the data where the config leaves it empty. Only SentencePiece models are
    trained, and only inside the run folder: a tokenizer of another kind brings its file and its languages.

    Args:
        config: composed; changed as said.
        turn: what to write in: one process at a time. Manifests are read outside, by all processes at once.
        skipped: the file that keeps which rows `data.on_error=skip` leaves out.

    Raises:
        UserError: a file that is missing and is not trained here.
    """
    allowed = allow_list(config)
    data = build(config.data, allowed=allowed, wanted=DataModule, tokenizer=None)
    if skipped is not None and isinstance(data, UtteranceData) and data.on_error == "skip":
        data.skipped.keep(skipped)
    with turn():
        data.prepare_data()
    if "tokenizer" in config.task:
        trainable = _is_trainable(config.tokenizer)
        if trainable and not config.tokenizer.languages:
            config.tokenizer.languages = list(data.languages())
        with turn():
            take_tokenizer(config)
        if trainable:
            with turn():
                _train_vocabulary(config, data, Path(config.tokenizer.model))
        data.tokenizer = build(config.tokenizer, allowed=allowed, wanted=Tokenizer)
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

    def said(used: int, total: int) -> None:
        some = "" if used == total else f"{used:,} of {total:,} "
        say(f"tokenizer: trained on {some or 'the '}texts of the training data: {model}")

    train_sentencepiece(
        data.texts("train"),
        model,
        vocab_size=config.tokenizer.vocab_size,
        num_languages=languages,
        normalisation=config.tokenizer.get("normalisation", "identity"),
        report=said,
    )
    total, lost, examples = lost_texts(data.texts("train"), model)
    if lost:
        shown = "; ".join(f"{text[:60]!r} comes back as {again[:60]!r}" for text, again in examples)
        say(f"tokenizer: {lost:,} of {total:,} texts do not come back from their ids: {shown}")


def _is_trainable(tokenizer: DictConfig) -> bool:
    """Whether a missing vocabulary may be trained: SentencePiece, and not a published one (`train: false`)."""
    return str(tokenizer._target_).endswith(".SentencePieceTokenizer") and tokenizer.get("train", True)


def build_for_training(config: DictConfig, folder: Path, *, empty: bool = True) -> Task:
    """Build the task, load `init`, apply `freeze`, attach optimizer and schedule.

    Args:
        empty: where the folder holds a checkpoint, initialise nothing: the trainer fills all from there.
    """
    allowed = allow_list(config)
    # A task without gradient steps begins anew.
    steps = not hasattr(class_of(config.task, config), "run_once")
    fresh = not (steps and (folder / "checkpoints" / "last.ckpt").exists())
    mapped = mapped_parts(config, allowed, in_file=cuts_weights(config)) if fresh else {}
    parts = {role: part for role, (part, _) in mapped.items()}
    task = assemble(config, allowed, weights="drawn" if fresh or not empty else "empty", parts=parts)
    task.goes_on = not fresh and empty
    if not fresh and not loads_by_shards(config):
        materialise(task, torch.device("cpu"))
    if fresh:  # a run that goes on has all weights of its own
        for line in load_pretrained(task, config, {role: loaded for role, (_, loaded) in mapped.items()}):
            say(f"pretrained {line}")
        init = config.init if isinstance(config.init, str) else dict(config.init)
        for line in load_parts(task, init, folder, config.get("from")):
            say(f"init {line}")
        attach_runs(task, folder, lambda place: load_run(place, allow=config.allow).task)
        task.files = task.files or files_of_source(config)
    attach_teacher(task, folder, lambda place: load_run(place, allow=config.allow).task)
    for line in lora_lines(task):
        say(f"lora {line}")
    set_up(task, config)
    for line in unfound_blocks(task.parts(), config, cut=loads_by_shards(config)):  # pyright: ignore[reportArgumentType]
        say(line)
    if fresh and not config.checkpoint.copy_frozen:
        task.references = published_references(task, config)
        for name, reference in task.references.items():
            count, source = len(reference["tensors"]), reference["source"]
            say(f"checkpoints leave {count} frozen tensors of {name} to {source} (sha256 {reference['sha256'][:12]})")
    task.attach_optimizer(factory(config.optim, allowed, Optimizer), factory(config.schedule, allowed, LRScheduler))
    return task


def _require_units(task: Task, data: Any) -> None:
    """Refuse units that a part of the task does not know: they are those of another extractor."""
    units = data.read_units() if "units" in task.needs else None
    if not isinstance(units, Units):
        return
    unit, name = units.highest()
    for role, part in task.parts().items():
        known = getattr(part, "num_units", None)
        if isinstance(known, int) and unit >= known:
            raise UserError(
                f"data.units={data.units_path}: {name!r} has unit {unit}, but {role}.num_units is {known}: these are "
                "units of another extractor; extract those that the vocoder speaks, or train parts of as many units"
            )


def _fit(config: DictConfig, task: Task, data: Any, folder: Path) -> dict[str, Any]:
    allowed = allow_list(config)
    choose_kernels()
    keeper = Checkpointer(folder=str(folder / "checkpoints"), **OmegaConf.to_container(config.checkpoint))  # pyright: ignore[reportCallIssue]
    speed, curve = Throughput(), Curve()
    own = build(config.callbacks, allowed=allowed, wanted=Callback)
    callbacks = [Examples(), keeper, RunProgress(), speed, curve, *own.values()]
    precision = precision_settings(config.trainer.get("precision"))
    settings = config.trainer.copy()
    settings.use_distributed_sampler = False  # the data module deals the batches
    if isinstance(settings.get("val_check_interval"), int):  # Lightning counts batches
        settings.val_check_interval *= settings.get("accumulate_grad_batches") or 1
    trainer = build(
        settings,
        allowed=allowed,
        wanted=Trainer,
        logger=build(config.logger, allowed=allowed, wanted=Logger) or False,
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
    kind = "cpu" if isinstance(trainer.accelerator, CPUAccelerator) else "gpu"
    if line := slow_line(config.trainer.get("precision"), kind, "trainer.precision="):
        say(line)
    resume = str(keeper.last) if keeper.last.exists() else None
    if resume:
        say(f"resuming from {resume}")
        _count_left_out(data)
    try:
        with faults_of_resuming(resume):
            trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        # Lightning exits with 1 where a second Ctrl-C leaves no time to save.
        raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
    finally:
        keeper.restore_handlers()  # once more: Lightning's teardown puts back those it found while training
    _require_learned(task, trainer.global_step, folder)
    left_out = _count_left_out(data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "step"}
    return {
        "task": type(task).__name__,
        "steps": trainer.global_step,
        "trainable": counts[0],
        "parameters": counts[1],
        "audio_seconds": round(speed.heard, 1),
        "metrics": metrics,
        "validations": curve.points,
        "throughput": speed.figures,
        **({} if left_out is None else {"skipped_rows": left_out}),
    }


def _count_left_out(data: Any) -> int | None:
    """Says how many rows `data.on_error=skip` has left out of the run so far; None where it leaves out none."""
    if not isinstance(data, UtteranceData) or data.on_error != "skip":
        return None
    count = data.skipped.count()
    if count:
        rows = "1 row that cannot be read is" if count == 1 else f"{count} rows that cannot be read are"
        say(f"{rows} left out of this run: {data.skipped.path}")
    return count


def _require_learned(task: Task, steps: int, folder: Path) -> None:
    """Refuse to call a run done that has left out each of its steps."""
    if task.skipped_steps and task.skipped_steps >= steps:
        raise UserError(
            f"{folder}: all {steps} steps were left out, for no gradient was finite: nothing was learned. A part of "
            "one's own is asked by `voxzoo check --parts`; else lower optim.lr or train in 32-true. Delete the folder, "
            "or choose another name=, to begin anew"
        )
