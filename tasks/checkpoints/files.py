"""Checkpoints: atomic files, the last and the best ones, and a clean stop on a signal."""

from __future__ import annotations

import json
import math
import re
import signal
import threading
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils import _pytree as pytree

from ...components.errors import UserError, faults_of, few
from ...components.lines import read_json
from ...components.sums import require_archive_sums
from ...components.whole import link_whole, remove_unfinished, whole_file
from ...configs.foreign import require_plain
from ..processes.launcher import let_processes_end
from ..processes.signals import EXIT_CODES, Interrupted, heard
from .references import fill_in
from .shards import SHARDS, read_shards, remove_unused


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name beside the target, syncs, renames: a checkpoint is whole or absent."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        remove_unused(Path(path).parent)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return in_memory(read_checkpoint(Path(path), verify=True))


# What torch's writers of archives say in their several words.
_DISK_FULL = ("PytorchStreamWriter", "write", "inline_container", "unexpected pos", "No space left")


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a binary file that appears whole as `path` (`whole_file`), and is on the disk then.

    Raises:
        UserError: the disk is full or not writable; what stood at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(path, sync=True) as file:
            write(file)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its archive writer.
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _DISK_FULL):
            raise
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "could not be written (is the disk full?)"
        )
        raise UserError(
            f"{path}: {reason}; the previous checkpoint is untouched. Free some space and run the same command again"
        ) from error


def write_unstepped(task: LightningModule, path: Path) -> None:
    """Write the checkpoint of a task without gradient steps, which no trainer saves.

    Raises:
        UserError: as `write_atomically`.
    """
    content: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    write_atomically(path, lambda file: torch.save(content, file))


def read_checkpoint(path: Path, *, whole: bool = True, states: bool = True, verify: bool = False) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`: nothing in it is executed.

    Tensors stay in the mapped file until they are written to, which changes the memory of this process alone:
    processes share what they only read. The file may be replaced meanwhile (`write_atomically` does so), but not
    written into.

    Args:
        path: the file. Where it cannot be mapped it is read.
        whole: where it is in shards, read these too: into memory.
        states: of shards those of optimizers too, which takes twice the memory of the weights again.
        verify: compare the sums of all of the file and its shards, not of the first quarter of a gigabyte alone
            (`require_archive_sums`).

    Raises:
        UserError: not a checkpoint, cut off, damaged, or not one of voxzoo's.
    """
    try:
        require_archive_sums(path, whole=verify)
        content = _load(path)
    except UserError:
        raise
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({_first_line(error)}); is it whole?") from None
    except Exception as error:  # pickle.UnpicklingError: something that would run code, or no pickle at all
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f", such as {name[1]}" if name else ""
        raise UserError(
            f"{path}: refused, it is no checkpoint or holds more than tensors and plain values{found}"
        ) from None
    if not isinstance(content, dict) or "voxzoo" not in content or "state_dict" not in content:
        raise UserError(f"{path}: a checkpoint, but not one that `voxzoo train` wrote (no voxzoo entry)")
    _require_form(content, path)
    require_plain(content["voxzoo"].get("config"), path)
    with faults_of(path):
        _require_stored(content, path)
        fill_in(content, path)
        return read_shards(content, path, states=states, verify=verify) if whole and SHARDS in content else content


def _require_form(content: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose entries are not of the kinds that are written."""
    own = content["voxzoo"]
    assets = own.get("assets") if isinstance(own, dict) else None
    faults = {
        "state_dict": _kinds_fault(content["state_dict"], object if SHARDS in content else torch.Tensor),
        "voxzoo": None if isinstance(own, dict) else f"is a {type(own).__name__}, not a map",
        "voxzoo.config": isinstance(own, dict) and own.get("config") and _kinds_fault(own["config"], object),
        "voxzoo.assets": assets and _kinds_fault(assets, torch.Tensor),
    }
    for key, fault in faults.items():
        if fault:
            raise UserError(f"{path}: damaged: its {key} {fault}; take another checkpoint of the run")


def _kinds_fault(found: Any, kind: type) -> str | None:
    if not isinstance(found, Mapping):
        return f"is a {type(found).__name__}, not a map"
    odd = next((key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, kind))), None)
    return None if odd is None else f"holds {str(odd)[:80]!r}: {type(found[odd]).__name__}"


def _require_stored(content: dict[str, Any], path: Path) -> None:
    """Refuse tensors of more numbers than are stored for them, such as one zero that is expanded to 30 GB.

    Raises:
        UserError: names the first.
    """
    assets = content["voxzoo"].get("assets")
    for name, group in (("state_dict", content["state_dict"]), ("voxzoo.assets", assets)):
        for key, value in group.items() if isinstance(group, dict) else ():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
                continue
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(
                    f"{path}: {name}.{str(key)[:80]} says {value.numel():,} numbers, of which "
                    f"{value.untyped_storage().nbytes() // value.element_size():,} are stored: refused"
                )


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
    # Torch's format before 1.6, or a file system that maps nothing.
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def faults_of_resuming(path: str | None) -> Iterator[None]:
    """While a training goes on from a checkpoint: what Lightning, an optimizer or a callback has against a state in it
    names the file. None: it goes on from none.

    Raises:
        UserError: one line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        places = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if path is None or not any(place.endswith("checkpoint_connector.py") for place in places):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{path}: holds a state that no training can go on from ({reason}); put another checkpoint of the run in "
            "its place, or take its weights alone by init="
        ) from error


def in_memory(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for a training that goes on: all but its weights, which are copied anyway, out of the mapped file.
    States of an optimizer that stayed there would keep the file on the disk, under no name, until the training ends."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    return {
        name: entry if name == "state_dict" else pytree.tree_map(copied, entry) for name, entry in checkpoint.items()
    }


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def misfit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """What keeps `weights` from being loaded into a module whose state is `own`; "" where they fit."""
    wrong = [k for k, v in weights.items() if k in own and own[k].shape != v.shape]
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if not (wrong or missing or unexpected):
        return ""
    shapes = [f"{k} is {tuple(weights[k].shape)} there, {tuple(own[k].shape)} here" for k in wrong]
    return f"other shapes: {few(shapes, 3)}; missing: {few(missing)}; unexpected: {few(unexpected)}"


class Checkpointer(Checkpoint):
    """Saves `last.ckpt` every so many steps and after each validation, and keeps the best ones.

    Where a validation is due, the step is saved after it: a run killed during a validation repeats it, so that the best
    checkpoint of a resumed run is that of an uninterrupted one. On SIGINT, SIGTERM or SIGUSR1 the current step is
    finished and saved, then `Interrupted` is raised (amid a validation the step before it is saved, and the validation
    is repeated); Ctrl-C behind it stops at once, any other signal behind the first changes nothing.

    Args:
        folder: where the files go.
        every_steps: steps between saves of `last.ckpt`.
        keep_best: how many best checkpoints to keep by `monitor`; 0 keeps none.
        monitor: a validation metric.
        mode: whether less or more of it is better.
        copy_frozen: here for the schema: `references` acts on it.
    """

    def __init__(
        self,
        *,
        folder: str,
        every_steps: int = 200,
        keep_best: int = 1,
        monitor: str = "valid/loss",
        mode: Literal["min", "max"] = "min",
        copy_frozen: bool = False,
    ) -> None:
        if every_steps < 1:
            raise UserError(f"checkpoint.every_steps={every_steps}: expected at least 1")
        self.folder = Path(folder)
        self.every_steps = every_steps
        self.keep_best = keep_best
        self.monitor = monitor
        self.mode = mode
        self.copy_frozen = copy_frozen
        self.best: dict[str, float] = {}
        self._saved = -1  # the step that `last` holds, once this process has saved it
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = _ranking(state_dict["best"], f"{self.last}: its list of the best checkpoints")

    # Signals

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_unfinished(self.folder)
        # From here on, though the first step, which will be saved, may be minutes away.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
            for number in self._handlers:
                signal.signal(number, self._note_signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In a trainer of someone's own, behind Lightning, which put its own in between: that one tells the other
        # processes by a collective, from within the handler, where they may be in the middle of another.
        for number in self._handlers:
            signal.signal(number, self._note_signal)
        if trainer.is_global_zero and trainer.global_step:
            self._settle_ranking(trainer.global_step)

    def _settle_ranking(self, step: int) -> None:
        """Finish what a validation before `last.ckpt` was killed in the middle of: the names behind the ranking.

        `last.ckpt` is written first and knows the ranking; its other name, the list and the removal of what fell out
        follow one by one."""
        own = f"step{step:08d}.ckpt"
        if own in self.best and self.last.exists() and not (self.folder / own).exists():
            link_whole(self.last, self.folder / own)
        ranking = self.folder / "best.json"
        if self.best or ranking.exists():
            self._write_ranking()
        for path in self.folder.glob("step*.ckpt"):
            number = _STEP.fullmatch(path.name)
            if number and int(number[1]) <= step and path.name not in self.best:
                path.unlink(missing_ok=True)

    def _write_ranking(self) -> None:
        write_atomically(self.folder / "best.json", lambda file: file.write(json.dumps(self.best, indent=1).encode()))

    def _note_signal(self, number: int, frame: Any) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def _stopping(self, trainer: Trainer) -> bool:
        """Whether any process was told to stop: saving is done together, so all must stop at the same step."""
        if trainer.world_size > 1:
            told = torch.tensor(self._signal, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)  # the strategy's has a barrier too
            self._signal = int(told)
        return bool(self._signal)

    def _stop(self, trainer: Trainer) -> NoReturn:
        let_processes_end()
        heard()
        raise Interrupted(self._signal, trainer.global_step)

    def restore_handlers(self) -> None:
        """Give the signals back to whom they belonged to before the fit."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore_handlers()

    # Saving

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients of a step half gathered are in no checkpoint: stop and save between steps only.
        if trainer.fit_loop._should_accumulate() or self._validation_due(trainer):
            return
        if self._stopping(trainer):
            _save(trainer, self.last)
            self._stop(trainer)
        # The last step too, here: at the end of the training its epoch counts as read, and a longer run that goes on
        # would leave out the rest of it; and averaged weights stand in the place of the model's.
        ends = trainer.global_step == trainer.max_steps or (
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        if trainer.global_step % self.every_steps == 0 or ends:
            self._save_last(trainer)

    def _validation_due(self, trainer: Trainer) -> bool:
        fetcher = trainer.fit_loop._data_fetcher
        return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and self._stopping(trainer):
            self._save_before_validation(trainer)
            self._stop(trainer)

    def _save_before_validation(self, trainer: Trainer) -> None:
        """Save the step that this validation follows, in such a way that a run that goes on begins with all of it."""
        loop = trainer.fit_loop
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        # There is no such way within an accumulated step, between validations that are counted in epochs, and while the
        # model has averaged weights for the validation: the run goes on from the last save, and ends the same.
        if loop._should_accumulate() or (trainer.check_val_every_n_epoch or 1) > 1 or averages:
            return
        progress = loop.epoch_loop.val_loop.batch_progress
        progress.reset()
        vars(progress.total).update(ready=1, started=1)  # by which Lightning knows a validation that was cut off
        _save(trainer, self.last)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        name = f"step{trainer.global_step:08d}.ckpt"
        removed = self._rank(name, trainer.callback_metrics.get(self.monitor))
        # Amid a step that is accumulated, half of its gradients would be lost: these are weights to use, not a point to
        # go on from. A run that is killed goes on from the step before, and comes by here again.
        whole = not trainer.fit_loop._should_accumulate()
        if whole:
            self._save_last(trainer)
        elif name in self.best:
            _save(trainer, self.folder / name)
        with _all_hear(trainer):
            if trainer.is_global_zero:
                if whole and name in self.best:
                    link_whole(self.last, self.folder / name)
                self._write_ranking()
                for stale in removed:
                    (self.folder / stale).unlink(missing_ok=True)
        if self.keep_best > 0 and self.monitor not in trainer.callback_metrics:
            known = ", ".join(name for name in sorted(trainer.callback_metrics) if name.startswith("valid/"))
            raise UserError(f"checkpoint.monitor={self.monitor}: validation measures {known}")

    def _rank(self, name: str, score: Any) -> list[str]:
        """Enter a checkpoint among the best; return the names that fall out."""
        if self.keep_best <= 0 or score is None or not math.isfinite(float(score)):
            return []  # a number that is none compares with nothing, and would stay for good
        self.best[name] = float(score)
        ordered = sorted(self.best, key=self.best.__getitem__, reverse=self.mode == "max")
        self.best = {kept: self.best[kept] for kept in ordered[: self.keep_best]}
        return ordered[self.keep_best :]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        _save(trainer, self.last)
        self._saved = trainer.global_step


def _save(trainer: Trainer, path: Path) -> None:
    """`trainer.save_checkpoint`, but what keeps the first process from writing ends all of them."""
    content = trainer._checkpoint_connector.dump_checkpoint(False)
    with _all_hear(trainer):
        trainer.strategy.save_checkpoint(content, path)


@contextmanager
def _all_hear(trainer: Trainer) -> Iterator[None]:
    """Raise on all processes what the first one raises inside: alone it would leave the others waiting for it."""
    problem = ""
    try:
        yield
    except (UserError, OSError) as error:
        problem = str(error)
    if trainer.world_size > 1:
        problem = trainer.strategy.broadcast(problem)
    if problem:
        raise UserError(problem)


_STEP = re.compile(r"step(\d{8,})\.ckpt")
_BARE = re.compile(r"[A-Za-z0-9][\w-]*\.ckpt", re.ASCII)  # of an imported run too


def _ranking(content: Any, where: str, names: re.Pattern[str] = _STEP) -> dict[str, float]:
    """Names of checkpoints and their scores, as a file says them. What falls out is deleted, so that a name is a name.

    Args:
        content, where: what was read, and the file.
        names: what they look like.

    Raises:
        UserError: something else.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} is {type(content).__name__}; expected names of checkpoints and their scores")
    for name, score in content.items():
        if not isinstance(name, str) or not names.fullmatch(name):
            raise UserError(f"{where} names {str(name)[:80]!r}; expected files of its folder: step00000500.ckpt")
        if not isinstance(score, int | float) or isinstance(score, bool):
            raise UserError(f"{where} gives {name} the score {str(score)[:80]!r}; expected a number")
    return dict(content)


def pick_checkpoint(folder: Path, advice: str = "train it first with `voxzoo train`") -> Path:
    """The best checkpoint of a folder, else the last.

    Raises:
        UserError: there is none.
    """
    ranking = folder / "best.json"
    if ranking.exists():
        leave = "; delete it to take the last checkpoint, or give a checkpoint itself"
        for name in _ranking(read_json(ranking, advice=leave), str(ranking), _BARE):
            if (folder / name).is_file():
                return folder / name
    if (folder / "last.ckpt").exists():
        return folder / "last.ckpt"
    raise UserError(f"{folder.parent}: there is no checkpoint; {advice}")
