"""A DataLoader that begins where training stands."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .batching import BatchSampler


class _Lazy(Iterator[Any]):
    """Asks for an iterator when the first batch is wanted."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._begin()
        return next(self._iterator)


class ResumableLoader(DataLoader):
    """DataLoader over a `BatchSampler`.

    Lightning makes the iterator before it has put its progress in order after a restart. So the position is asked for
    with the first batch, from the trainer's own count of finished batches, which no prefetching worker can shift.

    Args:
        dataset: maps an (epoch, index) to an utterance.
        sampler: the plan.
        position: () -> (epoch, batches done in it); None leaves the sampler where it is.
        options: for `DataLoader`.

    Attributes:
        restored: called with the state that a checkpoint holds, when it is resumed.
        begun: called when the first batch of an epoch is wanted, and it is known which that is.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampler: BatchSampler,
        position: Callable[[], tuple[int, int] | None] | None = None,
        options: dict[str, Any],
    ) -> None:
        self._plan, self._position = sampler, position
        self.restored: Callable[[dict[str, Any]], None] | None = None
        self.begun: Callable[[], None] | None = None
        # Its own generator: making an iterator draws nothing from the global one.
        generator = torch.Generator()
        super().__init__(dataset, batch_sampler=sampler, generator=generator, **options)

    def __iter__(self) -> Any:
        return _Lazy(self._start)

    def _start(self) -> Iterator[Any]:
        position = self._position() if self._position is not None else None
        if position is not None:
            self._plan.seek(*position)
        if self.begun is not None:
            self.begun()
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when training goes on, and how this epoch came to the present processes."""
        position = self._position() if self._position is not None else None
        return self._plan.state_dict(self._plan.epoch if position is None else position[0])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the run that wrote the checkpoint; warn where the order of batches is another."""
        now = self._plan
        if state.get("plan") != now.fingerprint or state.get("seed") != now.seed:
            warnings.warn(
                "the training data, its order or the batch budget changed since the checkpoint: the rest of this epoch"
                " may repeat or miss utterances",
                stacklevel=2,
            )
        if self.restored is not None:
            self.restored(state)
