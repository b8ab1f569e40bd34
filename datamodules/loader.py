"""A DataLoader that begins where training stands."""

from __future__ import annotations

import atexit
import errno
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..components.errors import UserError, few
from .batching import BatchSampler


@dataclass(frozen=True)
class _Failure:
    """What a data worker sends instead of a batch: torch would show its traceback, many lines for a missing file."""

    line: str
    is_ours: bool
    trace: str


@dataclass(frozen=True)
class _Partial:
    """A batch of the rows that could be read, and (id, reason) of the others."""

    batch: Any
    skipped: tuple[tuple[str, str], ...]

    def pin_memory(self, device: Any = None) -> _Partial:
        """As `Batch.pin_memory`, for DataLoader."""
        return replace(self, batch=self.batch.pin_memory())


_NOT_OF_A_ROW = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the system lacks: the next row would fail as well."""

_TRIES = 1000
"""Rows that are tried for one that can be read, before it is their folder that is gone."""


@dataclass(frozen=True)
class _Skipping:
    """A collate function that leaves out rows which cannot be read or collated.

    What it gives is a function of the rows and their files alone: the same on every process that reads them, with any
    number of workers and after a restart. A batch of which nothing is left is replaced by one row that can be read,
    which counts for nothing.

    Args:
        collate: rows to a batch.
        dataset: to look for such a row in.
    """

    collate: Callable[[list[Any]], Any]
    dataset: Dataset[Any]

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collate(rows)
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_OF_A_ROW:
                raise
            return self._without_faulty(rows, error)

    def _without_faulty(self, rows: list[Any], error: Exception) -> _Partial:
        good, skipped = [], []
        for row in rows:
            reason = self._fault_of(row)
            if reason is None:
                good.append(row)
            else:
                skipped.append((str(row.id), reason))
        if not skipped:
            raise error  # of the batch, not of a row
        batch = self.collate(good) if good else replace(self._readable(rows[0].task, skipped), stands_in=True)
        return _Partial(batch, tuple(skipped))

    def _fault_of(self, row: Any) -> str | None:
        try:
            self.collate([row])
        except Exception as error:
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            return kind + " ".join(str(error).split())
        return None

    def _readable(self, task: str, skipped: list[tuple[str, str]]) -> Any:
        """A batch of the first row that can be read and is asked for the same. Raises UserError where none of the first
        rows can."""
        asked = 0
        for index in range(len(self.dataset)):  # pyright: ignore[reportArgumentType]
            row = self.dataset[0, index]
            if row.task != task:
                continue
            if self._fault_of(row) is None:
                return self.collate([row])
            asked += 1
            if asked == _TRIES:
                break
        name, reason = skipped[0]
        raise UserError(
            f"none of the first {asked} rows can be read, so that data.on_error=skip would leave out all; is their "
            f"folder there? {name}: {reason}"
        )


@dataclass(frozen=True)
class _Guarded:
    """A collate function whose errors are values."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collate(rows)
        except (ValueError, OSError) as error:
            return _Failure(_one_line(error, rows), True, "")
        except Exception as error:
            return _Failure(f"{type(error).__name__}: {_one_line(error, rows)}", False, traceback.format_exc())


def _one_line(error: Exception, rows: Sequence[Any]) -> str:
    text = " ".join(str(error).split())
    ids = [str(row.id) for row in rows if hasattr(row, "id")]
    return text if not ids or any(name in text for name in ids) else f"{text} (in the batch of {few(ids)})"


_OPEN: weakref.WeakSet[_Lazy] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Workers ignore the signal by which Python ends them with their process, and it would wait for ever for those of a
    loader that an error left in the middle."""
    for iterator in list(_OPEN):
        iterator.close()


class _Lazy(Iterator[Any]):
    """Asks for an iterator when the first batch is wanted; raises what a worker could not do."""

    def __init__(
        self,
        begin: Callable[[], Iterator[Any]],
        skipped: Callable[[str, str], None] | None,
        closed: Callable[[], None],
    ) -> None:
        self._begin, self._skipped, self._closed = begin, skipped, closed
        self._iterator: Iterator[Any] | None = None
        _OPEN.add(self)

    def close(self) -> None:
        """Let its workers end; a loader that keeps them begins with others."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
            self._closed()

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._begin()
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads data was killed ({' '.join(str(error).split())}): out of memory? Fewer of them "
                "(data.num_workers) or smaller batches need less; the same command goes on from the last save"
            ) from None
        if isinstance(batch, _Failure):
            self.close()
            if batch.is_ours:
                raise UserError(batch.line)
            raise RuntimeError(f"{batch.line}\n{batch.trace}")
        if isinstance(batch, _Partial):
            assert self._skipped is not None
            for name, reason in batch.skipped:
                self._skipped(name, reason)
            return batch.batch
        return batch


class ResumableLoader(DataLoader):
    """DataLoader over a `BatchSampler`.

    Lightning makes the iterator before it has put its progress in order after a restart. So the position is asked for
    with the first batch, from the trainer's own count of finished batches, which no prefetching worker can shift.

    Args:
        dataset: maps an (epoch, index) to an utterance.
        sampler: the plan.
        position: () -> (epoch, batches done in it); None leaves the sampler where it is.
        skipped: called with the id of each row that cannot be read and the reason; it is left out of its batch. None:
            such a row is an error.
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
        skipped: Callable[[str, str], None] | None = None,
        options: dict[str, Any],
    ) -> None:
        self._plan, self._position, self._skipped = sampler, position, skipped
        self.restored: Callable[[dict[str, Any]], None] | None = None
        self.begun: Callable[[], None] | None = None
        # Its own generator: making an iterator draws nothing from the global one.
        generator = torch.Generator()
        if skipped is not None:
            options = {**options, "collate_fn": _Skipping(options["collate_fn"], dataset)}
        if options.get("num_workers") and "collate_fn" in options:
            options = {**options, "collate_fn": _Guarded(options["collate_fn"])}
        super().__init__(dataset, batch_sampler=sampler, generator=generator, **options)

    def __iter__(self) -> Any:
        return _Lazy(self._start, self._skipped, self._forget)

    def _forget(self) -> None:
        self._iterator = None

    def _start(self) -> Iterator[Any]:
        position = self._position() if self._position is not None else None
        if position is not None:
            self._plan.seek(*position)
        if self.begun is not None:
            self.begun()
        iterator = super().__iter__()
        for worker in getattr(iterator, "_workers", ()):
            # An iterator that the garbage collector finds in a circle, behind an error say, has no way left to tell its
            # workers, and ends them by the signal that they ignore.
            worker.terminate = worker.kill
        return iterator

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
