"""Training of a unit vocoder against discriminators. Letters: B batch, U units, N samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..components.errors import UserError
from ..components.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, mean_score
from ..components.roles import Discriminator, UnitExtractor, UnitVocoder
from ..components.types import Batch, Loss, Reconstruction, Statistic
from ..configs.optimisation import make_schedule
from ..configs.targets import class_of
from .distributed.gradients import parameter_groups
from .distributed.precision import precision_name
from .task import _add, counted
from .unit_vocoder import UnitVocoderTask

_WEIGHTS = {"mel": 45.0, "feature_matching": 2.0}
_WHOLE = (DDPStrategy, SingleDeviceStrategy)  # strategies that keep each network whole
_WHY = (
    "two optimizers take turns over two networks, and strategies that cut into shards know one. Take trainer=cpu, gpu "
    "or ddp: both networks are small"
)


class GanVocoder(UnitVocoderTask):
    """Units to waveform, against discriminators: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646, section 2.4).

    A step updates the discriminator, then the vocoder against the updated one, as in the paper. With
    `accumulate_grad_batches` the vocoder's half waits for the last batch of the step and makes its crops once more (by
    the same seeds), so that a step over accumulated batches is the step over as many processes.

    The vocoder minimises `mel` x 45 + `feature_matching` x 2 + `adversarial` + its other losses, the discriminator
    `discriminator`. All but `duration` count mel frames of the crops (`components/losses/adversarial.py`).
    `valid/loss` and `train/loss` sum the vocoder's own losses alone: what an opponent says is no measure of progress.

    Lightning's manual optimisation: its count of steps is the vocoder's, gradients are summed over processes here.
    `trainer.gradient_clip_val` clips each network by its own norm; a half of a step whose gradient is not finite is
    left out.

    Args:
        vocoder: what learns and serves; one that learns samples (not Griffin-Lim).
        discriminator: what it learns against.
        unit_extractor, vocoder_languages, speaker: see `UnitVocoderTask`.
        discriminator_lr: learning rate of the discriminator; null: that of `optim`, whose other settings both share.
        loss_weights: weights by name, in place of those above.
    """

    roles = ("vocoder", "discriminator", "unit_extractor")

    def __init__(
        self,
        *,
        vocoder: UnitVocoder,
        discriminator: Discriminator,
        unit_extractor: UnitExtractor | None = None,
        discriminator_lr: float | None = None,
        loss_weights: Mapping[str, float] | None = None,
        vocoder_languages: Sequence[str] = (),
        speaker: int | None = None,
    ) -> None:
        super().__init__(
            vocoder=vocoder,
            unit_extractor=unit_extractor,
            loss_weights={**_WEIGHTS, **(loss_weights or {})},
            vocoder_languages=vocoder_languages,
            speaker=speaker,
        )
        if not vocoder.learns_samples:
            raise UserError(
                f"vocoder: {type(vocoder).__name__} makes no samples that a discriminator could train; take "
                "vocoder=istft or a CodeHiFiGAN, or task=unit_vocoder for this one"
            )
        self.discriminator = discriminator
        self.discriminator_lr = discriminator_lr
        self._held: list[tuple[Batch, int]] = []  # batches of the coming step, and the seed of each
        self._total = torch.ones(())  # frames of the step, over all processes
        self._norm_of_discriminator: Tensor | float = 0.0
        self._skips = (0, 0)  # skipped steps, and how many in a row, before this step

    @classmethod
    def faults(cls, config: DictConfig) -> list[tuple[str, str]]:
        """What `voxzoo check` cannot see in signatures: (key, message) each."""
        strategy: Any = OmegaConf.select(config, "trainer.strategy")
        if isinstance(strategy, DictConfig):
            found, name = class_of(strategy, config), str(strategy.get("_target_"))
            whole = found is None or issubclass(found, _WHOLE)
        else:
            name = str(strategy or "auto")
            whole = name == "auto" or name.startswith(("ddp", "single"))
        faults = [] if whole else [("trainer.strategy", f"{name} cannot train GanVocoder: {_WHY}")]
        precision = precision_name(OmegaConf.select(config, "trainer.precision"))
        if precision in ("bf16-true", "16-true"):
            faults.append(("trainer.precision", f"{precision} rounds the networks; take bf16-mixed"))
        schedule = class_of(config.get("schedule"), config)
        if schedule is not None and issubclass(schedule, ReduceLROnPlateau):
            faults.append(("schedule", "ReduceLROnPlateau steers one optimizer by validation; GanVocoder has two"))
        for role in ("vocoder", "discriminator"):
            if OmegaConf.select(config, f"freeze.{role}"):
                faults.append((f"freeze.{role}", "GanVocoder trains both; task=unit_vocoder trains a vocoder alone"))
        return faults

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses of both networks, and as statistics the mean scores of speech and of the vocoder's samples. Each loss
        has a gradient for its own network alone."""
        made = self._reconstruct(batch)
        judged, scores = self._judge(made)
        return {**self._generate(made), **judged}, scores

    def _reconstruct(self, batch: Batch) -> Reconstruction:
        units, speech = self.pairs(batch)
        return self.vocoder.reconstruct(units, speech, **self.told(batch, units.device))

    def _judge(self, made: Reconstruction) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """The discriminator's loss, and mean scores."""
        real = self.discriminator(made.target)
        ours = self.discriminator(made.samples.with_data(made.samples.data.detach()))
        scores = {"score_real": mean_score(real, made.frames), "score_made": mean_score(ours, made.frames)}
        return {"discriminator": discriminator_loss(real, ours, made.frames)}, scores

    def _generate(self, made: Reconstruction) -> dict[str, Loss]:
        """The vocoder's losses."""
        with _held_still(self.discriminator):
            with torch.no_grad():
                real = self.discriminator(made.target)
            ours = self.discriminator(made.samples)
        return {
            **made.losses,
            "adversarial": generator_loss(ours, made.frames),
            "feature_matching": feature_matching_loss(real, ours, made.frames),
        }

    # Training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, _WHOLE):
            raise UserError(f"trainer.strategy: {type(strategy).__name__} cannot train GanVocoder: {_WHY}")
        # Set here, behind Lightning's check of the trainer: it refuses to clip or to accumulate where the optimisation
        # is manual, but here both are done, by the trainer's own settings.
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        if self._make_optimizer is None:
            raise RuntimeError("attach_optimizer was not called before fit")
        rate = {} if self.discriminator_lr is None else {"lr": self.discriminator_lr}
        optimizers = [
            self._make_optimizer(parameter_groups(self.vocoder)),
            self._make_optimizer(parameter_groups(self.discriminator), **rate),
        ]
        if self._make_schedule is None:
            return optimizers
        steps = self.total_steps()
        schedules = [make_schedule(self._make_schedule, optimizer, steps) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        last = not self.trainer.fit_loop._should_accumulate()
        self._held.append((batch, torch.initial_seed()))  # set by `on_train_batch_start`
        alone = last and len(self._held) == 1  # the usual step: what is made for one half serves the other
        with self._unsynchronised():
            with torch.set_grad_enabled(alone):
                made = self._reconstruct(batch)
            judged, scores = (counted(batch, values) for values in self._judge(made))
            self.manual_backward(self.weighted(judged))
            self._note(batch, {**judged, **scores}, made)
            if not last:
                return
            self._skips = (self.skipped_steps, self._skipped_in_a_row)
            ids = list(self._window_ids)
            self._step(self.discriminator, 1)
            self.discriminator.advance()
            self._window_ids = ids
            torch.clear_autocast_cache()  # casts that were made without gradients; torch before 2.11 would take them
            for held, seed in self._held:
                if not alone:
                    torch.manual_seed(seed)
                    made = self._reconstruct(held)
                losses = counted(held, self._generate(made))
                self.manual_backward(self.weighted(losses))
                _add(self._window, losses)
            self._held.clear()
            self._step(self.vocoder, 0)
        self._count = None
        schedules: Any = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()

    def _note(self, batch: Batch, values: Mapping[str, Loss | Statistic], made: Reconstruction) -> None:
        """Add a batch to what the step divides by and what is logged."""
        count = 0 if batch.stands_in else made.frames.sum()
        count = torch.as_tensor(count, device=made.samples.device).float()
        self._count = count if self._count is None else self._count + count
        _add(self._window, values)
        if batch.stands_in:
            return
        self._window_ids.extend(batch.ids)
        if batch.seconds is not None:
            self._window_seconds = self._window_seconds + batch.seconds.sum()

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """DDP's reducer waits for a gradient of every parameter at each backward pass; here each pass is for one of the
        networks, and `_sum_over_processes` does its work."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _step(self, network: nn.Module, number: int) -> None:
        """Update a network by its gradients, of all processes and batches of the step."""
        self._sum_over_processes([p for p in network.parameters() if p.requires_grad])
        optimizer: Any = self.optimizers()[number]  # pyright: ignore[reportIndexIssue]
        if number == 0:
            optimizer.step()
        else:
            # Past Lightning's wrapper, which counts each call as a step of the run.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        optimizer.zero_grad()

    def _sum_over_processes(self, parameters: list[nn.Parameter]) -> None:
        """Sum gradients and the step's frames over the processes, all in one message.

        A parameter without a gradient on any process has none behind it either, as on one process.
        """
        assert self._count is not None
        self._total = self._count
        if self.trainer.world_size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([p.grad is not None for p in parameters], device=self.device)
        message = torch.cat([*(g.flatten().float() for g in gradients), there.float(), self._count[None]])
        total = self.trainer.strategy.reduce(message, reduce_op="sum")
        assert isinstance(total, Tensor)
        *sums, there, frames = total.split([*(p.numel() for p in parameters), len(parameters), 1])
        self._total = frames[0]
        for parameter, gradient, one in zip(parameters, sums, there.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if one else None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide by the frames of the step, clip or leave out: the other network has no gradient now."""
        of_vocoder = optimizer is self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(self._total.clamp(min=1))
        left_out = self.skipped_steps > self._skips[0]  # the half before
        self.skipped_steps, self._skipped_in_a_row = self._skips
        trainer = self.trainer
        self.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        if not of_vocoder:
            self._norm_of_discriminator = self._grad_norm
        elif left_out:  # a step counts once, whichever of its halves was left out
            self.skipped_steps, self._skipped_in_a_row = (number + 1 for number in self._skips)

    def _drain_window(self) -> dict[str, float]:
        metrics = super()._drain_window()
        metrics["train/lr_discriminator"] = self.trainer.optimizers[1].param_groups[0]["lr"]
        metrics["train/grad_norm_discriminator"] = float(self._norm_of_discriminator)
        return metrics

    def _weighted_mean(self, means: Mapping[str, float]) -> float:
        opponent = ("adversarial", "feature_matching", "discriminator")
        return super()._weighted_mean({name: mean for name, mean in means.items() if name not in opponent})


@contextmanager
def _held_still(network: nn.Module) -> Iterator[None]:
    """No gradients for a network's parameters, though they flow through it."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
