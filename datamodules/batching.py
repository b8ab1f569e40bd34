"""Which utterances form a batch, on which rank, in which order: a function of seed, epoch and world size alone.

Batches are planned for all ranks at once. Utterances are sorted into cells of nearly equal length, shuffled inside
their cell, and cut into batches under the budgets; the batches are shuffled and dealt to the ranks in turn. Cells keep
the number of batches the same in every epoch.

Letters: N items, W world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch.distributed
from torch.utils.data import Sampler

from ..components.errors import UserError

_SHORTEST, _GROWTH = 0.1, 1.04
"""Upper ends of the cells: 0.1 s x 1.04^k, so that padding inside a cell is at most 4 %."""

Item = tuple[int, int]
"""(epoch, index): the epoch travels with the index, because workers may outlive an epoch."""


class BatchSampler(Sampler[list[Item]]):
    """Lists of (epoch, index), budgeted by padded length and dealt to ranks in equal counts.

    No item is lost or repeated: where the number of batches is no multiple of the world size, the last batches are
    split in two (and joined, where there is nothing left to split).

    Args:
        seconds: length of each item in seconds, 0 for text.
        tokens: tokens of each item, or None where they are not counted.
        groups: label of each item; a batch holds items of one label.
        batch_seconds: most padded seconds in a batch: longest item x items.
        batch_tokens: most padded tokens in a batch.
        batch_size: most items in a batch.
        shuffle: False keeps one order for all epochs, longest first.
        seed: of the order.
        rank, world_size: taken from torch.distributed when first needed, if None.

    Attributes:
        oversized: indices of items that exceed a budget alone; each is a batch of its own.

    Raises:
        UserError: no budget is given, there are no items, or fewer than ranks.
    """

    def __init__(
        self,
        *,
        seconds: Sequence[float],
        tokens: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
        batch_seconds: float | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_seconds is None and batch_tokens is None and batch_size is None:
            raise UserError("a batch needs a budget: set batch_seconds, batch_tokens or batch_size")
        for name, value in (
            ("batch_seconds", batch_seconds),
            ("batch_tokens", batch_tokens),
            ("batch_size", batch_size),
        ):
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: expected more than 0")
        if batch_tokens is not None and tokens is None:
            raise UserError("batch_tokens needs the number of tokens of each item: give the data a tokenizer")
        if len(seconds) == 0:
            raise UserError("there are no utterances to make batches of")
        self.shuffle, self.seed = shuffle, seed
        self.epoch, self.start = 0, 0
        self._rank, self._world_size = rank, world_size
        length = np.asarray(seconds, np.float64)
        text = np.zeros(len(length)) if tokens is None else np.asarray(tokens, np.float64)
        group = (
            np.zeros(len(length), np.int64) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        )
        over = np.zeros(len(length), bool)
        if batch_seconds is not None:
            over |= length > batch_seconds
        if batch_tokens is not None:
            over |= text > batch_tokens
        self.oversized: list[int] = np.flatnonzero(over).tolist()
        if shuffle:
            cell = np.ceil(np.log(np.maximum(length, _SHORTEST) / _SHORTEST) / np.log(_GROWTH) - 1e-9)
            # Oversized and nearly oversized items keep their own length, so that a cell's end never breaks the budget.
            end = np.minimum(_SHORTEST * _GROWTH**cell, batch_seconds or np.inf)
            length = np.where(length > end, length, np.where(length > 0, end, 0))
            if batch_tokens is not None:
                step = np.ceil(np.log(np.maximum(text, 1)) / np.log(1.1) - 1e-9)
                end = np.minimum(np.floor(1.1**step), batch_tokens)
                text = np.maximum(text, end)
            else:
                text = np.zeros(len(length))
        self._keys = (text, length, group)
        order = np.lexsort(self._keys)
        self._bounds = _cut(length[order], text[order], group[order], batch_seconds, batch_tokens, batch_size)
        self._counts: dict[int, int] = {}

    @property
    def rank(self) -> int:
        if self._rank is not None:
            return self._rank
        return torch.distributed.get_rank() if _is_distributed() else 0

    @property
    def world_size(self) -> int:
        if self._world_size is not None:
            return self._world_size
        return torch.distributed.get_world_size() if _is_distributed() else 1

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch` at its first batch."""
        self.seek(epoch, 0)

    def seek(self, epoch: int, batches_done: int) -> None:
        """Let the next iterator begin at batch `batches_done` (of this rank) of `epoch`; skipping costs nothing."""
        self.epoch, self.start = epoch, batches_done

    def plan(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch over all ranks: rank r of W takes every W-th, from the r-th on."""
        if self.shuffle:
            # RandomState: its stream is frozen over numpy releases, so a resumed run sees the same order.
            rng = np.random.RandomState([self.seed & 0xFFFFFFFF, epoch])
            order = np.lexsort((rng.random_sample(len(self._keys[0])), *self._keys))
            batches = [order[begin:end].tolist() for begin, end in self._bounds]
            batches = [batches[place] for place in rng.permutation(len(batches))]
        else:
            order = np.lexsort(self._keys)
            batches = [order[begin:end][::-1].tolist() for begin, end in self._bounds][::-1]
        return self._to_multiple(batches, self.world_size)

    def _to_multiple(self, batches: list[list[int]], count: int) -> list[list[int]]:
        """Split (or join) from the end until `count` divides the number of batches."""
        place = len(batches) - 1
        while len(batches) % count and place >= 0:
            size = len(batches[place])
            if size > 1:
                batches.append(batches[place][size // 2 :])
                batches[place] = batches[place][: size // 2]
            place -= 1
        if len(batches) % count and any(len(batch) > 1 for batch in batches):
            return self._to_multiple(batches, count)
        group = self._keys[2]
        while len(batches) % count:
            single = batches.pop()
            partner = next((batch for batch in reversed(batches) if group[batch[0]] == group[single[0]]), None)
            if partner is None or len(batches) < count:
                raise UserError(
                    f"{len(self._keys[0])} utterances cannot be dealt to {count} processes in equal counts;"
                    " use fewer processes or more utterances"
                )
            partner.extend(single)
        return batches

    def __len__(self) -> int:
        """Batches of each rank in an epoch."""
        count = self.world_size
        if count not in self._counts:
            self._counts[count] = len(self.plan(0)) // count
        return self._counts[count]

    @property
    def fingerprint(self) -> str:
        """Names the items and the cuts: equal where `plan` is."""
        content = b"".join(np.ascontiguousarray(key).tobytes() for key in (*self._keys, np.asarray(self._bounds)))
        return hashlib.sha256(content).hexdigest()[:16]

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, start = self.epoch, self.start
        mine = self.plan(epoch)[self.rank :: self.world_size]
        return iter([[(epoch, index) for index in batch] for batch in mine[start:]])


def _cut(
    seconds: np.ndarray, tokens: np.ndarray, group: np.ndarray, max_seconds: float | None, max_tokens: float | None,
    max_size: int | None,
) -> list[tuple[int, int]]:  # fmt: skip
    """Cut sorted items into runs whose padded size keeps the budgets."""
    limit_seconds, limit_tokens = max_seconds or np.inf, max_tokens or np.inf
    limit_size = max_size or len(seconds)
    bounds = []
    begin, longest, most = 0, 0.0, 0.0
    for place, (length, count, label) in enumerate(zip(seconds.tolist(), tokens.tolist(), group.tolist())):
        size = place - begin + 1
        new_longest, new_most = max(longest, length), max(most, count)
        full = size > limit_size or size * new_longest > limit_seconds * (1 + 1e-9) or size * new_most > limit_tokens
        if place > begin and (full or label != group[begin]):
            bounds.append((begin, place))
            begin, new_longest, new_most = place, length, count
        longest, most = new_longest, new_most
    bounds.append((begin, len(seconds)))
    return bounds


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
