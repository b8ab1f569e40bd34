"""Two networks that learn against each other, in turns. Letters: B batch, N samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..components.errors import UserError
from ..components.roles import Discriminator
from ..components.types import Batch, Loss, Reconstruction, Statistic
from ..configs.optimisation import make_schedule
from ..configs.targets import class_of
from .distributed.gradients import parameter_groups
from .distributed.precision import precision_name
from .task import Task, _add

_WHOLE = (DDPStrategy, SingleDeviceStrategy)  # strategies that keep each network whole
_WHY = (
    "two optimizers take turns over two networks, and strategies that cut into shards know one. Take trainer=cpu, gpu "
    "or ddp: both networks are small"
)


class TwoNetworks(Task):
    """What tasks with a discriminator share: one optimizer for each network, gradients summed over processes here and
    divided by the frames of the step, each network clipped by its own norm, a step counted once.

    Lightning's manual optimisation: its count of steps is that of the network that makes samples (`generator`).

    Attributes:
        generator: role of the network that makes samples.
        discriminator: what it learns against; None: nothing, it learns on its own losses.
        discriminator_lr: learning rate of the discriminator; None: that of `optim`.
    """

    generator: ClassVar[str]
    instead: ClassVar[str] = "leave it out"
    """What to do in place of freezing one."""
    discriminator: Discriminator | None
    discriminator_lr: float | None

    def start_turns(self, discriminator: Discriminator | None, discriminator_lr: float | None) -> None:
        """Called once by `__init__`."""
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
        faults = [] if whole else [("trainer.strategy", f"{name} cannot train {cls.__name__}: {_WHY}")]
        precision = precision_name(OmegaConf.select(config, "trainer.precision"))
        if precision in ("bf16-true", "16-true"):
            faults.append(("trainer.precision", f"{precision} rounds the networks; take bf16-mixed"))
        schedule = class_of(config.get("schedule"), config)
        if schedule is not None and issubclass(schedule, ReduceLROnPlateau):
            faults.append(("schedule", f"ReduceLROnPlateau steers one optimizer by validation; {cls.__name__} has two"))
        for role in (cls.generator, "discriminator"):
            if OmegaConf.select(config, f"freeze.{role}"):
                faults.append((f"freeze.{role}", f"{cls.__name__} trains both; {cls.instead}"))
        return faults

    # Training

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, _WHOLE):
            raise UserError(f"trainer.strategy: {type(strategy).__name__} cannot train {type(self).__name__}: {_WHY}")
        # Set here, behind Lightning's check of the trainer: it refuses to clip or to accumulate where the optimisation
        # is manual, but here both are done, by the trainer's own settings.
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        if self._make_optimizer is None:
            raise RuntimeError("attach_optimizer was not called before fit")
        rate = {} if self.discriminator_lr is None else {"lr": self.discriminator_lr}
        optimizers = [self._make_optimizer(parameter_groups(getattr(self, self.generator)))]
        if self.discriminator is not None:
            optimizers.append(self._make_optimizer(parameter_groups(self.discriminator), **rate))
        if self._make_schedule is None:
            return optimizers
        steps = self.total_steps()
        schedules = [make_schedule(self._make_schedule, optimizer, steps) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

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
        optimizers: Any = self.optimizers()
        optimizer = optimizers[number] if isinstance(optimizers, list) else optimizers
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
        of_generator = optimizer is self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(self._total.clamp(min=1))
        left_out = self.skipped_steps > self._skips[0]  # the half before
        self.skipped_steps, self._skipped_in_a_row = self._skips
        trainer = self.trainer
        self.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        if not of_generator:
            self._norm_of_discriminator = self._grad_norm
        elif left_out:  # a step counts once, whichever of its halves was left out
            self.skipped_steps, self._skipped_in_a_row = (number + 1 for number in self._skips)

    def _step_schedules(self) -> None:
        """At the end of a step."""
        self._count = None
        schedules: Any = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()

    def _drain_window(self) -> dict[str, float]:
        metrics = super()._drain_window()
        if self.discriminator is not None:
            metrics["train/lr_discriminator"] = self.trainer.optimizers[1].param_groups[0]["lr"]
            metrics["train/grad_norm_discriminator"] = float(self._norm_of_discriminator)
        return metrics

    def _weighted_mean(self, means: Mapping[str, float]) -> float:
        opponent = ("adversarial", "feature_matching", "discriminator")
        return super()._weighted_mean({name: mean for name, mean in means.items() if name not in opponent})


@contextmanager
def held_still(network: nn.Module) -> Iterator[None]:
    """No gradients for a network's parameters, though they flow through it."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
