"""A rank of several, played by one process in Lightning's loops: what it reads, and goes on with after a stop.

Letters: W world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from ..components.roles import DataModule
from ..components.types import Batch
from .loader import ResumableLoader


@dataclass(frozen=True)
class Read:
    """What one step took.

    Attributes:
        epoch: in which.
        rows: (task, id) of each row.
    """

    epoch: int
    rows: tuple[tuple[str, str], ...]


def read_epochs(
    data: DataModule,
    rank: int,
    world_size: int,
    epochs: int,
    *,
    stop: tuple[int, Path] | None = None,
    resume: Path | None = None,
) -> list[Read]:
    """What a rank trains on.

    Args:
        data: asked for nothing yet.
        rank: of `world_size`.
        epochs: how many in all, those before a stop included.
        stop: after so many steps a checkpoint is written there, and nothing more is read.
        resume: a checkpoint to go on from.
    """
    module = _Reader(data)
    callbacks: list[Callback] = [] if stop is None else [_Stop(*stop)]
    with _played(rank, world_size) as strategy, suppress(_Stopped):
        trainer = _trainer(strategy, max_epochs=epochs, limit_val_batches=0, callbacks=callbacks)
        trainer.fit(module, datamodule=_light(data), ckpt_path=resume, weights_only=True)
    return module.seen


def read_valid(data: DataModule, rank: int, world_size: int) -> list[Read]:
    """What a rank validates on."""
    module = _Reader(data)
    with _played(rank, world_size) as strategy:
        _trainer(strategy).validate(module, datamodule=_light(data), verbose=False)
    return module.seen


def first_batches(data: DataModule, count: int) -> Iterator[Batch]:
    """The first batches of training on one rank, whole."""
    return islice(iter(data.train_dataloader()), count)


@contextmanager
def _played(rank: int, world_size: int) -> Iterator[SingleDeviceStrategy]:
    """A process group without others: what asks for ranks is told these, and what is exchanged is dropped."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    strategy.global_rank, strategy.world_size = rank, world_size
    if world_size > 1:
        torch.distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield strategy
    finally:
        if world_size > 1:
            torch.distributed.destroy_process_group()


def _trainer(strategy: SingleDeviceStrategy, **options: Any) -> Trainer:
    return Trainer(
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )


def _light(data: DataModule) -> DataModule:
    """The same, whose loaders say which rows they take and read no audio, where they are those of `UtteranceData`."""

    def lightly(make: Any) -> Any:
        def loader() -> Any:
            made = make()
            if isinstance(made, ResumableLoader):
                made.collate_fn = _bare
            return made

        return loader

    for name in ("train_dataloader", "val_dataloader"):
        setattr(data, name, lightly(getattr(data, name)))
    # It is prepared: Lightning would let the ranks that are not there wait.
    data.prepare_data = MethodType(LightningDataModule.prepare_data, data)
    return data


def _bare(utterances: list[Any]) -> Batch:
    return Batch(ids=tuple(item.id for item in utterances), task=tuple(item.task for item in utterances))


class _Reader(LightningModule):
    """Notes what it is given."""

    longest_seconds = None

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.needs = data.needs
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Read] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.validation_step(batch, batch_idx)
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.append(Read(self.current_epoch, tuple(zip(batch.task, batch.ids))))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class _Stopped(Exception):
    pass


class _Stop(Callback):
    """Writes a checkpoint after a step, and ends training as a kill would."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise _Stopped
