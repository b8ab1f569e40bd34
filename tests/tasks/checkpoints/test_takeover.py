"""An epoch that changes hands: other numbers of processes, other accumulation. Letters: W world size."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from voxzoo.components.errors import UserError
from voxzoo.datamodules import BatchSampler, SpeechTranslationData
from voxzoo.tasks.checkpoints.files import AtomicCheckpointIO, Checkpointer

ITEMS = 23


# The sampler alone


def ranks(world_size: int, state: dict[str, Any] | None, **options) -> list[BatchSampler]:
    samplers = [
        BatchSampler(seconds=[1.0] * ITEMS, batch_size=4, seed=3, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        if state is not None:
            sampler.load_state_dict(state)
    return samplers


def test_any_chain_of_world_sizes_takes_every_utterance_once():
    """Through two epochs, with 1 to 5 ranks stopped after any number of batches."""
    draw = random.Random(1)
    for _ in range(150):
        taken: Counter[tuple[int, int]] = Counter()
        state, epoch, done = None, 0, 0
        samplers = ranks(draw.choice([1, 2, 3, 5]), None)
        while epoch < 2:
            left = len(samplers[0]) - done
            stop = draw.choice([left, draw.randint(0, left)])
            iterators = []
            for sampler in samplers:
                sampler.seek(epoch, done)
                iterators.append(iter(sampler))
            for _, batches in zip(range(stop), zip(*iterators, strict=True), strict=False):
                taken.update(item for batch in batches for item in batch)
            done += stop
            old = len(samplers)
            if done == len(samplers[0]):
                epoch, done = epoch + 1, 0
                for sampler in samplers:
                    sampler.seek(epoch, done)
            state = json.loads(json.dumps(samplers[0].state_dict(epoch)))
            samplers = ranks(draw.choice([1, 2, 3, 5]), state)
            if done:
                begin = draw.randint(0, 9)
                ((left, _),) = {sampler.take_over(epoch, old, done, begin) for sampler in samplers}
                done = begin
                if left == 0:
                    epoch, done = epoch + 1, 0
                    for sampler in samplers:
                        sampler.seek(epoch, done)
        (carried,) = {sampler._takeover.carried if sampler._takeover else () for sampler in samplers}
        assert set(taken.values()) == {1}
        assert {*taken, *carried} == set(itertools.product(range(2), range(ITEMS)))


def test_what_is_too_little_to_go_round_comes_first_in_the_next_epoch():
    one = ranks(1, None)[0]
    one.seek(0, 0)
    batches = list(one)
    assert [len(batch) for batch in batches].count(4) == 5
    single = BatchSampler(seconds=[1.0] * 5, batch_size=1, world_size=1, rank=0)
    last = list(single)[-1]
    two = [BatchSampler(seconds=[1.0] * 5, batch_size=1, world_size=2, rank=rank) for rank in range(2)]
    for sampler in two:
        assert sampler.take_over(0, 1, 4, 4) == (0, 1)
        sampler.seek(1, 0)
    firsts = [list(sampler) for sampler in two]
    assert firsts[0][0] == last  # of epoch 0, with its number
    assert sorted(item for batches in firsts for batch in batches for item in batch) == [
        *last,
        *((1, index) for index in range(5)),
    ]
    for sampler in two:
        sampler.seek(2, 0)
        assert len(sampler) == 2  # as long as ever


def test_a_whole_epoch_is_still_refused_where_it_cannot_be_dealt():
    with pytest.raises(UserError, match="3 utterances cannot be dealt to 4 processes"):
        list(BatchSampler(seconds=[1.0] * 3, batch_size=1, world_size=4, rank=0))


# In Lightning's loops, each rank played by one process


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["voxzoo"] = {}  # what `read_checkpoint` knows its own by

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Killed(Exception):
    pass


class Log(Callback):
    """Notes the ids of every batch; dies before the batch that follows a step."""

    def __init__(self, stop: int | None) -> None:
        self.seen: list[str] = []
        self.stop = stop

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx) -> None:
        if trainer.global_step == self.stop:
            raise Killed
        self.seen += batch.ids


class Ranked(SpeechTranslationData):
    """One rank of several, without the others."""

    def __init__(self, place: tuple[int, int], **options) -> None:
        super().__init__(**options)
        self.place = place

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.batch_sampler._rank, loader.batch_sampler._world_size = self.place
        return loader


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "train.jsonl"
    rows = [
        {"id": f"u{i}", "src_text": "a", "tgt_text": "b", "src_lang": "spa", "tgt_lang": "eng"} for i in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Leg = tuple[int, int, int | None]
"""W, batches in a step, the step to die after."""


def fit(manifest: Path, folder: Path, legs: list[Leg], **options) -> list[list[str]]:
    """The ids that each leg saw, in order, over its ranks."""
    folder.mkdir(exist_ok=True)
    seen: list[list[str]] = []
    before = None
    for number, (world_size, accumulate, stop) in enumerate(legs):
        seen.append([])
        for rank in range(world_size):
            log = Log(stop)
            keeper = Checkpointer(folder=str(folder / f"{number}-{rank}"), every_steps=1, keep_best=0)
            data = Ranked(
                (rank, world_size), train=str(manifest), valid=str(manifest), tasks={"t2tt": True}, batch_size=4
            )
            data.needs = frozenset()
            trainer = Trainer(
                accelerator="cpu", logger=False, callbacks=[keeper, log], enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0, accumulate_grad_batches=accumulate,
                use_distributed_sampler=False, plugins=[AtomicCheckpointIO()], **options,
            )  # fmt: skip
            try:
                trainer.fit(Model(), datamodule=data, ckpt_path=before, weights_only=True)
            except Killed:
                pass
            else:
                stop = None  # the run has ended
            seen[-1] += log.seen
        if stop is None:
            break
        before = str(folder / f"{number}-0" / "last.ckpt")
    return seen


INTERVALS = [
    {"max_epochs": 2},
    {"max_epochs": 2, "val_check_interval": 0.5},
    {"max_epochs": -1, "max_steps": 9, "val_check_interval": 3, "check_val_every_n_epoch": None},
    {"max_epochs": -1, "max_steps": 9, "val_check_interval": 4, "check_val_every_n_epoch": None},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", INTERVALS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_killed_after_any_step_goes_on_with_the_next_batch(accumulate: int, options, manifest: Path, tmp_path: Path):
    (whole,) = fit(manifest, tmp_path / "whole", [(1, accumulate, None)], **options)
    steps = torch.load(tmp_path / "whole" / "0-0" / "last.ckpt", weights_only=True)["global_step"]
    for stop in range(1, steps):
        legs = fit(manifest, tmp_path / str(stop), [(1, accumulate, stop), (1, accumulate, None)], **options)
        assert len(legs) == 2
        assert legs[0] + legs[1] == whole, stop


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_an_epoch_that_changes_hands_takes_every_utterance_once(seed: int, manifest: Path, tmp_path: Path):
    draw = random.Random(seed)
    legs: list[Leg] = []
    stop = 0
    for _ in range(3):
        stop += draw.randint(1, 2)
        legs.append((draw.choice([1, 2, 3]), draw.choice([1, 2]), stop))
    legs.append((draw.choice([1, 2, 3]), 1, None))
    seen = Counter(name for leg in fit(manifest, tmp_path, legs, max_epochs=3) for name in leg)
    assert seen == Counter({f"u{i}": 3 for i in range(ITEMS)}), legs
