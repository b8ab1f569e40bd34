"""The base of all tasks: token-exact training, evaluation totals, and checkpoints that rebuild themselves.

Letters: B batch.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..components.errors import UserError, few
from ..components.languages import match
from ..components.layers.lora import hold_statistics
from ..components.roles import Frontend, Tokenizer
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Prediction, Statistic
from ..configs.optimisation import make_schedule
from ..configs.targets import class_of
from ..datamodules.collator import FROM_SPEECH, TASKS
from .checkpoints.files import misfit
from .checkpoints.mapped import materialise
from .checkpoints.references import ENTRY, leave_out
from .distributed.gradients import gradient_norm, parameter_groups, scale_gradients, unscaled
from .distributed.precision import faults_of_precision
from .distributed.running_statistics import RunningStatistics
from .distributed.strategies import FSDP2, cuts_weights, faults_of_strategy, is_flat, shard

FILES = "published/"
"""Begins the names of assets that are files of a published model."""


class Task(LightningModule, ABC):
    """What is trained. A task takes its parts as arguments, and is the only thing that logs.

    Gradients are of summed losses; before the optimizer steps they are divided by the count of the first loss, summed
    over ranks and accumulation steps, so that a step does not depend on how its batch was cut up. `loss_weights` scale
    each loss sum; a loss that counts something else than the first one is therefore weighted per unit of the first.

    Attributes:
        needs: the `Batch` fields the task reads in training.
        modes: the tasks it can serve (`s2tt asr t2tt s2st t2st`).
        roles: config keys of the parts it holds, in the order of the data flow.
    """

    needs: frozenset[str]
    modes: ClassVar[frozenset[str]]
    reads_speech: ClassVar[bool] = False
    """Whether it trains on speech, and so on none of `data.tasks` that have none."""
    roles: ClassVar[tuple[str, ...]]

    def __init__(self, *, loss_weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.loss_weights = dict(loss_weights or {})
        self.tokenizer: Tokenizer | None = None
        self.frontend: Frontend | None = None
        self.frozen: frozenset[str] = frozenset()
        self.taught_by: frozenset[str] = frozenset()  # fields that are read for a teacher alone
        self.goes_on = False  # whether a checkpoint is to fill it, which it has not yet
        self._still: frozenset[str] = frozenset()  # roles whose running statistics are held
        self.references: dict[str, Any] = {}  # frozen weights that its checkpoints leave to published folders
        self.files: dict[str, Tensor] = {}  # small files of the published model it was imported from
        self.config: dict[str, Any] = {}  # the resolved config, put in by whoever built the task
        self._make_optimizer: Callable[..., torch.optim.Optimizer] | None = None
        self._make_schedule: Callable[..., Any] | None = None
        self._count: Tensor | None = None
        self._window: dict[str, Loss | Statistic] = {}
        self._window_seconds: Tensor | float = 0.0
        self._window_started = 0.0
        self._totals: dict[str, Loss | Statistic] = {}
        self._grad_norm: Tensor | float = 0.0
        self._window_ids: list[str] = []  # of the utterances that the coming step is made of, on this rank
        self.skipped_steps = 0  # steps left out because their gradient was not finite, in the whole run
        self._skipped_in_a_row = 0
        self.latest: dict[str, float] = {}

    # What a task defines

    @abstractmethod
    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses and statistics (accuracies) of a batch; keys never depend on the batch. All losses, and they alone,
        are trained on and make up `train/loss` and `valid/loss`."""

    @abstractmethod
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        """Serve a batch: one prediction per row, in order."""

    def predict_several(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None, count: int = 1
    ) -> list[list[Prediction]]:
        """Up to `count` texts for each row, the best first. Raises UserError: this task gives one alone."""
        if count > 1:
            raise UserError(f"{type(self).__name__} gives one output for an input, not {count}")
        return [[prediction] for prediction in self.predict(batch, task=task, options=options)]

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The summed losses of a batch, the same keys on every rank at every step."""
        return self.measured(batch)[0]

    def measured(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """`measure`, in which nothing stands where it does not belong; zeros for a batch that only stands in.

        Raises:
            UserError: a statistic among the losses, a loss among the statistics, or one name for both.
        """
        losses, statistics = self.measure(batch)
        for place, values, kind, other in (
            ("losses (its first map)", losses, Loss, "Statistic, return it in the second map"),
            ("statistics (its second map)", statistics, Statistic, "Loss, return it in the first map"),
        ):
            for name, value in values.items():
                if not isinstance(value, kind):
                    found = type(value).__name__
                    advice = f"; to have a {other}" if found in ("Loss", "Statistic") else ""
                    raise UserError(
                        f"{type(self).__name__}.measure: {name!r} is a {found} among its {place}, which take a "
                        f"{kind.__name__}(total, count) each{advice}"
                    )
        for name in losses.keys() & statistics.keys():
            raise UserError(f"{type(self).__name__}.measure: {name!r} is a loss and a statistic; name one otherwise")
        return counted(batch, losses), counted(batch, statistics)

    @classmethod
    def faults(cls, config: DictConfig) -> list[tuple[str, str]]:
        """What `voxzoo check` cannot see in signatures: (key, message) each."""
        faults = faults_of_strategy(config) + faults_of_precision(config)
        faults += [
            (
                f"freeze.{role}",
                f"lora.{role} freezes what is below it; this would freeze LoRA too, so leave it out",
            )
            for role, frozen in (config.get("freeze") or {}).items()
            if frozen and OmegaConf.select(config, f"lora.{role}") is not None
        ]
        for name, asked in (OmegaConf.select(config, "data.tasks") or {}).items():
            if asked and cls.reads_speech and name in TASKS and name not in FROM_SPEECH:
                faults.append((f"data.tasks.{name}", f"{cls.__name__} trains on speech alone; set it to false"))
        if not cuts_weights(config):
            return faults
        faults += [
            (
                f"callbacks.{name}",
                f"{found.__name__} keeps the whole model on each process, which the strategy cuts up; take trainer=ddp",
            )
            for name, node in config.get("callbacks", {}).items()
            if (found := class_of(node, config)) is not None and issubclass(found, WeightAveraging)
        ]
        return faults

    @classmethod
    def remarks(cls, parameters: Mapping[str, int], config: DictConfig) -> list[str]:
        """Lines that `voxzoo check` adds to its table.

        Args:
            parameters: of each part, by role.
            config: composed.
        """
        teacher = OmegaConf.select(config, "task.teacher.run")
        return [] if teacher is None else [f"beside this: the weights of the teacher {teacher}, and what it computes"]

    # Parts

    def parts(self) -> dict[str, nn.Module]:
        """Role -> part, absent parts left out, in the order of the data flow."""
        found = {role: getattr(self, role, None) for role in self.roles}
        return {role: part for role, part in found.items() if isinstance(part, nn.Module)}

    @property
    def longest_text(self) -> int | None:
        """Most tokens of a target text, without those around it, that the text decoder has positions for; None: any."""
        most = getattr(getattr(self, "text_seq2seq", None), "max_positions", None)
        tokenizer = getattr(self, "tokenizer", None)
        return None if most is None or tokenizer is None else most - tokenizer.prefix_length

    @property
    def longest_seconds(self) -> float | None:
        """Longest speech that front end and encoder take; None: any, or this task reads none."""
        frontend, encoder = getattr(self, "frontend", None), getattr(self, "speech_encoder", None)
        longest = getattr(frontend, "longest_seconds", None)
        steps = getattr(encoder, "longest_input", None)
        if frontend is None or steps is None:
            return longest
        rate = frontend.sample_rate
        most = steps * rate if longest is None else int(longest * rate)  # a step is a second at most
        most = bisect_right(range(1, most + 1), steps, key=frontend.output_length)
        return most / rate

    def freeze_parts(self, roles: Iterable[str]) -> None:
        """Take roles out of training: no gradients, and evaluation mode whatever the task is in.

        Raises:
            UserError: a role that this task has no part for.
        """
        parts = self.parts()
        for role in roles:
            if role not in parts:
                raise UserError(f"freeze.{role}: {type(self).__name__} has no such part; it has: {', '.join(parts)}")
            parts[role].requires_grad_(False)
            parts[role].eval()
        self.frozen = frozenset({*self.frozen, *roles})

    def hold_statistics(self, roles: Iterable[str]) -> None:
        """Keep the running statistics of roles as they are: their weights stand still, though they train (LoRA)."""
        self._still = frozenset({*self._still, *roles})
        for role in self._still:
            hold_statistics(self.parts()[role])

    def train(self, mode: bool = True):
        super().train(mode)
        for role in self.frozen:
            self.parts()[role].eval()
        for role in self._still:
            hold_statistics(self.parts()[role])
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that it reads and writes; of a task without a tokenizer, what the task says."""
        tokenizer = getattr(self, "tokenizer", None)
        return () if tokenizer is None else tokenizer.languages

    def knows(self, lang: str) -> bool:
        """Whether it reads or writes a language, however its code is written."""
        tokenizer = getattr(self, "tokenizer", None)
        return match(lang, self.languages) is not None if tokenizer is None else tokenizer.knows(lang)

    # Training

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2) and not isinstance(self, FSDPModule):
            shard(self, strategy.device_mesh["data_parallel"], strategy.reshard_after_forward)
            materialise(self, strategy.root_device)  # what a checkpoint will fill

    def attach_optimizer(self, optimizer: Callable[..., Any], schedule: Callable[..., Any] | None) -> None:
        """Give the optimizer (called with the trainable parameters) and the schedule (called with the optimizer)."""
        self._make_optimizer, self._make_schedule = partial(unscaled, optimizer), schedule

    def configure_optimizers(self) -> Any:
        if self._make_optimizer is None:
            raise RuntimeError("attach_optimizer was not called before fit")
        optimizer = self._make_optimizer(parameter_groups(self))
        if self._make_schedule is None:
            return optimizer
        schedule = make_schedule(self._make_schedule, optimizer, self.total_steps())
        settings: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):  # stepped by `_step_plateau`; Lightning would do so between, too
            settings |= {"monitor": self._monitor, "frequency": sys.maxsize, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    @property
    def _monitor(self) -> str:
        return str((self.config.get("checkpoint") or {}).get("monitor", "valid/loss"))

    def _step_plateau(self, metrics: Mapping[str, float]) -> None:
        """Give a schedule that waits for plateaus what validation found, before a checkpoint keeps its state. Callbacks
        have logged theirs by now."""
        for one in [] if self.trainer.sanity_checking else self.trainer.lr_scheduler_configs:
            if isinstance(one.scheduler, ReduceLROnPlateau):
                known = {**self.trainer.callback_metrics, **metrics}
                if self._monitor not in known:
                    names = ", ".join(name for name in sorted(known) if name.startswith("valid/"))
                    raise UserError(
                        f"checkpoint.monitor={self._monitor}, for the schedule: validation measures {names}"
                    )
                # Of the first process, should others have logged another: rates that differ would part the weights.
                one.scheduler.step(self.trainer.strategy.broadcast(float(known[self._monitor])))

    def total_steps(self) -> int | None:
        """Steps of the whole run, for schedules; None where nothing ends it."""
        total = self.trainer.estimated_stepping_batches
        # Counting steps by epochs has made the loader; one that is made later is told where a checkpoint stood (under
        # FSDP2 there is none yet).
        self.trainer.fit_loop._combined_loader = None
        return int(total) if total != float("inf") else None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Randomness is a function of (seed, epoch, batch, rank): a resumed run draws what the uninterrupted one drew,
        # whatever validation, workers or logging drew in between.
        base = int(self.config.get("seed", 1))
        torch.manual_seed(hash((base, self.current_epoch, batch_idx, self.global_rank)) % (2**63))
        if not self._window_started:
            self._window_started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        norms = RunningStatistics(self) if self.trainer.world_size > 1 else None
        losses, statistics = self.measured(batch)
        if norms is not None:
            norms.merge(self.all_gather)  # pyright: ignore[reportArgumentType]
        primary = next(iter(losses.values()))
        count = primary.count.detach().float()
        self._count = count if self._count is None else self._count + count
        _add(self._window, {**losses, **statistics})
        if not batch.stands_in:
            self._window_ids.extend(batch.ids)
        if batch.seconds is not None and not batch.stands_in:
            # Kept as a tensor: reading it here would wait for the device at every step.
            self._window_seconds = self._window_seconds + batch.seconds.sum()
        # Lightning divides by the accumulation steps; the division that counts comes before the step.
        return self.weighted(losses) * self.trainer.accumulate_grad_batches

    def weighted(self, losses: Mapping[str, Loss]) -> Tensor:
        """() the weighted sum of loss totals."""
        terms = [self.loss_weights.get(name, 1.0) * value.total for name, value in losses.items()]
        return torch.stack([term.float() for term in terms]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self._count is not None
        world = self.trainer.world_size
        count = self._count
        if world > 1:
            count = self.all_gather(count).sum()  # pyright: ignore[reportAttributeAccessIssue]
        scale_gradients(self.parameters(), world / count.clamp(min=1))  # DDP and FSDP average them over ranks: undo it
        self._count = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all processes (or by value), and leave a step out whose gradient is not finite.

        Every process sees the same norm, so all of them leave the same step out, without a word between them.
        """
        parameters = [p for p in self.parameters() if p.grad is not None]
        self._grad_norm = norm = gradient_norm(parameters, flat=self.device if is_flat(self.trainer.strategy) else None)
        if not bool(torch.isfinite(norm)):
            self._skip_step(parameters)
        else:
            self._skipped_in_a_row = 0
            if gradient_clip_val and gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            elif gradient_clip_val:
                scale_gradients(parameters, (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))
        self._window_ids.clear()

    def _skip_step(self, parameters: list[nn.Parameter]) -> None:
        """Take the gradients away, so that the optimizer leaves parameters and its own state as they are."""
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        step, ids = self.trainer.global_step + 1, self._window_ids
        allowed = int(self.config.get("max_skipped_steps", 10))
        shown = f"{few(ids, 8)}" + (f" (process {self.global_rank})" if self.trainer.world_size > 1 else "")
        if self._skipped_in_a_row > allowed:
            raise UserError(
                f"step {step}: the gradient is not finite, nor was it in the {allowed} before (max_skipped_steps). "
                f"Utterances of the step: {shown}. Look at these, lower optim.lr, or train in 32-true"
            )
        rank_zero_warn(
            f"step {step} is left out ({self.skipped_steps} so far): its gradient is not finite; utterances: {shown}"
        )
        for parameter in parameters:
            parameter.grad = None

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        due = self.trainer.global_step % self.trainer.log_every_n_steps == 0  # pyright: ignore[reportAttributeAccessIssue]
        if due:
            self._log_window()

    def on_train_end(self) -> None:
        self._log_window()  # a run shorter than its interval has this one alone

    def _log_window(self) -> None:
        # `_count` is emptied by the optimizer's step: between steps of an accumulation there is nothing to say.
        if self._count is not None or not self._window:
            return
        metrics = self._drain_window()
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.trainer.global_step)

    def _drain_window(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._window_started, 1e-9)
        means = self._means(self._window)
        (seconds,) = self.over_ranks([torch.as_tensor(self._window_seconds, device=self.device)])
        metrics = {f"train/{name}": mean for name, mean in means.items()}
        metrics["train/loss"] = self._weighted_mean(_losses_among(means, self._window))
        metrics["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics["train/grad_norm"] = float(self._grad_norm)
        metrics["train/skipped_steps"] = float(self.skipped_steps)
        metrics["train/audio_seconds_per_second"] = seconds / elapsed
        self._window, self._window_seconds, self._window_started = {}, 0.0, time.perf_counter()
        self.latest = metrics
        return metrics

    def _means(self, sums: Mapping[str, Loss | Statistic]) -> dict[str, float]:
        """Sums over the ranks, divided once."""
        names = sorted(sums)
        over = self.over_ranks([*(sums[n].total for n in names), *(sums[n].count for n in names)])
        return {n: total / max(count, 1.0) for n, total, count in zip(names, over, over[len(names) :])}

    def over_ranks(self, values: list[Tensor]) -> list[float]:
        """Each () tensor summed over the ranks."""
        sums = torch.stack([value.float() for value in values])
        if self.trainer.world_size > 1:
            sums = self.all_gather(sums).sum(0)  # pyright: ignore[reportAttributeAccessIssue]
        return sums.tolist()

    def _weighted_mean(self, means: Mapping[str, float]) -> float:
        """Of the means of losses."""
        return sum(self.loss_weights.get(name, 1.0) * mean for name, mean in means.items())

    # Validation: sums over batches and ranks, divided once

    def on_validation_epoch_start(self) -> None:
        self._totals = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, statistics = self.measured(batch)
        _add(self._totals, {**losses, **statistics})

    def on_validation_epoch_end(self) -> None:
        if not self._totals:
            return
        means = self._means(self._totals)
        metrics = {f"valid/{n}": m for n, m in means.items()}
        metrics["valid/loss"] = self._weighted_mean(_losses_among(means, self._totals))
        self._step_plateau(metrics)
        # Lightning draws curves over `step` where it is given; its own count is one less than that of training.
        self.log_dict({**metrics, "step": float(self.trainer.global_step)}, rank_zero_only=False)
        self._window_started = 0.0  # the time validation took is not training time

    def on_validation_end(self) -> None:
        self._window_started = time.perf_counter()

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["voxzoo"] = {"config": self.config, "assets": self.assets(), "skipped_steps": self.skipped_steps}
        leave_out(checkpoint, self.references)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = int(checkpoint["voxzoo"].get("skipped_steps", 0))
        assets = checkpoint["voxzoo"].get("assets") or {}
        self.files = {name.removeprefix(FILES): value for name, value in assets.items() if name.startswith(FILES)}
        copied = (self.config.get("checkpoint") or {}).get("copy_frozen", False)
        self.references = {} if copied else dict(checkpoint.get(ENTRY) or {})
        # Sharded weights are loaded later, and by pieces.
        if not self.trainer.strategy.restore_checkpoint_after_setup:
            problem = misfit(self.state_dict(), checkpoint["state_dict"])
            if problem:
                raise UserError(f"{self.trainer.ckpt_path}: does not fit this config; {problem}")

    def assets(self) -> dict[str, Tensor]:
        """Files a checkpoint carries, as uint8 tensors, so that it loads with `weights_only=True` and stands alone."""
        files = {f"{FILES}{name}": content for name, content in self.files.items()}
        if self.tokenizer is None:
            return files
        return {"tokenizer": torch.frombuffer(bytearray(self.tokenizer.to_bytes()), dtype=torch.uint8), **files}

    @classmethod
    def from_checkpoint(cls, path: Any, *, allow: Iterable[str] = ()) -> Task:
        """Rebuild a task from a checkpoint file or a run folder, in evaluation mode.

        Args:
            path, allow: as for `load_run`.

        Raises:
            UserError: the path is not a run or a checkpoint, or holds another task than this class.
        """
        from .runs.run import load_run

        task = load_run(path, allow=allow).task
        if not isinstance(task, cls):
            raise UserError(f"{path} holds a {type(task).__name__}, not a {cls.__name__}")
        return task

    def collator(self) -> Any:
        """What turns a list of `datamodules.Utterance` into a batch for `predict`."""
        from ..datamodules import Collator

        return Collator(self.frontend, self.tokenizer, self.serving_needs())

    def serving_needs(self) -> frozenset[str]:
        """The `Batch` fields `predict` reads."""
        return frozenset(self.needs - {"target", "transcript", "units", "target_speech"} - self.taught_by)

    def pick_mode(self, task: str | None, batch: Batch) -> str:
        """The task to serve: what was asked for, what the batch says, or the only one there is.

        Raises:
            UserError: a task this model cannot do.
        """
        mode = task or (batch.task[0] if batch.task else sorted(self.modes)[0])
        if mode not in self.modes:
            raise UserError(f"--task {mode}: {type(self).__name__} can do {', '.join(sorted(self.modes))}")
        return mode


def _add(sums: dict[str, Loss | Statistic], values: Mapping[str, Loss | Statistic]) -> None:
    """Add detached values to running sums."""
    for name, value in values.items():
        kept: Any = type(value)(value.total.detach().float(), value.count.detach().float())
        sums[name] = sums[name] + kept if name in sums else kept


def counted(batch: Batch, values: dict[str, Any]) -> dict[str, Any]:
    """Sums of a batch; of one that only stands in, zeros that are still functions of what they were computed from, so
    that every parameter has a gradient."""
    if not batch.stands_in:
        return values
    return {name: type(value)(0 * value.total, 0 * value.count) for name, value in values.items()}


def _losses_among(means: Mapping[str, float], sums: Mapping[str, Loss | Statistic]) -> dict[str, float]:
    return {name: mean for name, mean in means.items() if isinstance(sums.get(name), Loss)}
