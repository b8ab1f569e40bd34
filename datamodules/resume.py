"""Where training stands, by the trainer's own count, and how it goes on there after a restart.

Letters: W world size.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ..components.errors import printable
from .batching import BatchSampler

_log = logging.getLogger(__name__)


def position(trainer: Trainer | None) -> tuple[int, int] | None:
    """(epoch, batches done in it) by the trainer's count; None outside of `fit`."""
    if trainer is None or trainer.state.fn != "fit":
        return None
    loop = trainer.fit_loop
    epoch = int(vars(loop.epoch_progress.current)["processed"]) - (not _in_epoch(loop))
    return epoch, loop.epoch_loop.batch_progress.current.ready


def restore(trainer: Trainer | None, state: dict[str, Any], sampler: BatchSampler) -> None:
    """Put the restored progress in order before training goes on.

    After a change of the world size (or of the batches in a step) the rest of this epoch is dealt anew: every
    utterance is taken once. A checkpoint of an epoch's end begins the next epoch: Lightning (2.6) would take one
    batch more of the finished epoch, or skip the next one, when validation is counted in steps.
    """
    if trainer is None:
        return
    loop = trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    batch: dict[str, int] = vars(progress.current)
    old, new = int(state.get("world_size", sampler.world_size)), sampler.world_size
    running = _in_epoch(loop)
    epoch = int(vars(loop.epoch_progress.current)["processed"]) - (not running)
    done, step = batch["processed"], trainer.accumulate_grad_batches
    sampler.load_state_dict(state)
    ended = progress.is_last_batch or not running
    if ended:
        sampler.seek(epoch + 1, 0, old)
    elif old != new or done % step:
        begin = math.ceil(done * old / (new * step)) * step  # a step begins with the first batch of the new deal
        left, over = sampler.take_over(epoch, old, done, begin)
        late = f"; {over} utterance{'' if over == 1 else 's'} too few to go round, taken in the next epoch"
        say(
            f"resuming on {_processes(new)} a run of {_processes(old)} at batch {done} of the epoch: the rest of it"
            f" is dealt anew, {left} batch{'' if left == 1 else 'es'} to each{late if over else ''}"
        )
        for name in batch:
            batch[name] += begin - done
        ended = left == 0
        if ended:
            sampler.seek(epoch + 1, 0)
    if ended:
        if vars(progress.total)["completed"] < vars(progress.total)["processed"]:
            vars(progress.total)["completed"] = vars(progress.total)["processed"]
            loop.epoch_loop._batches_that_stepped += 1
        progress.reset_on_run()
        for count in (vars(loop.epoch_progress.total), vars(loop.epoch_progress.current)):
            count.update(dict.fromkeys(count, count["processed"] + running))
    _follow_length(trainer)


def _follow_length(trainer: Trainer) -> None:
    """Let the trainer ask the sampler how long an epoch is: one that was taken over is not as long as others."""
    loader = trainer.fit_loop._combined_loader
    if loader is not None and trainer.limit_train_batches == 1.0:
        loader.limits = None


def follow_epoch(trainer: Trainer | None, sampler: BatchSampler) -> None:
    """Let the trainer know how long the epoch is that begins."""
    if trainer is None or trainer.state.fn != "fit":
        return
    loop = trainer.fit_loop
    if loop._combined_loader is None or loop._combined_loader.limits is not None:
        return
    loop.max_batches = len(sampler)
    if isinstance(trainer.val_check_interval, float):
        trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))


def _in_epoch(loop: Any) -> bool:
    """Whether Lightning's fit loop is between the beginning and the end of an epoch."""
    count = vars(loop.epoch_progress.total)
    return count["started"] > count["processed"]


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


@rank_zero_only
def say(line: str) -> None:
    """Warn, once for all ranks."""
    _log.warning(printable(line))
