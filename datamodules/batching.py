"""Which utterances form a batch, on which rank, in which order: a function of seed, epoch and world size alone.

Batches are planned for all ranks at once. Utterances are sorted into cells of nearly equal length, shuffled inside
their cell, and cut into batches under the budgets; the batches are shuffled and dealt to the ranks in turn. Cells keep
the number of batches the same in every epoch.

A mixture takes a fixed number of utterances of each group an epoch (`mixing`): the cells and batches are then those of
places, each with room for whatever utterance an epoch takes there.

Where the number of ranks changes in the middle of an epoch, what is left of the plan of the ranks before is dealt to
the new ones, so that every utterance is taken once in the epoch.

Letters: N items, W world size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed
from torch.utils.data import Sampler

from ..components.errors import UserError
from .mixing import Draw, Mixture

_SHORTEST, _GROWTH = 0.1, 1.04
"""Upper ends of the cells: 0.1 s x 1.04^k, so that padding inside a cell is at most 4 %."""

_BLOCK = 65536  # items that are looked at together

Item = tuple[int, int]
"""(epoch, index): the epoch travels with the index, because workers may outlive an epoch."""


@dataclass(frozen=True)
class Takeover:
    """How an epoch came to the ranks that work on it, where they did not begin it as it was planned.

    Attributes:
        epoch: the epoch.
        taken: (W, batches each rank took) of the ranks before, in order.
        carried: items of earlier epochs that are taken in this one, before all others: too few to go round at its end.
        begin: what the present ranks count as done before their first batch.
    """

    epoch: int
    taken: tuple[tuple[int, int], ...] = ()
    carried: tuple[Item, ...] = ()
    begin: int = 0


class BatchSampler(Sampler[list[Item]]):
    """Lists of (epoch, index), budgeted by padded length and dealt to ranks in equal counts.

    No item is lost, and none repeated but by a mixture: where the number of batches is no multiple of the world size,
    the last batches are split in two (and joined, where there is nothing left to split).

    Args:
        seconds: length of each item in seconds, 0 for text.
        tokens: tokens of each item, or None where they are not counted.
        groups: label of each item, or its number where labels are sorted; a batch holds items of one label.
        batch_seconds: most padded seconds in a batch: longest item x items.
        batch_tokens: most padded tokens in a batch.
        batch_size: most items in a batch.
        shuffle: False keeps one order for all epochs, longest first.
        seed: of the order.
        rank, world_size: taken from torch.distributed when first needed, if None.
        name: of the split, for messages.
        mixture: how many items of each group an epoch takes; None: each item once.

    Attributes:
        oversized: indices of items that exceed a budget alone; each is a batch of its own.
        fingerprint: names the items and the cuts: equal where `plan` is.

    Raises:
        UserError: no budget is given, there are no items, or fewer than ranks.
    """

    def __init__(
        self,
        *,
        seconds: Sequence[float] | np.ndarray,
        tokens: Sequence[int] | np.ndarray | None = None,
        groups: Sequence[str] | np.ndarray | None = None,
        batch_seconds: float | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        name: str = "",
        mixture: Mixture | None = None,
    ) -> None:
        if batch_seconds is None and batch_tokens is None and batch_size is None:
            raise UserError("a batch needs a budget: set batch_seconds, batch_tokens or batch_size")
        for budget, value in (
            ("batch_seconds", batch_seconds),
            ("batch_tokens", batch_tokens),
            ("batch_size", batch_size),
        ):
            if value is not None and value <= 0:
                raise UserError(f"{budget}={value}: expected more than 0")
        if batch_tokens is not None and tokens is None:
            raise UserError("batch_tokens needs the number of tokens of each item: give the data a tokenizer")
        if len(seconds) == 0:
            raise UserError("there are no utterances to make batches of")
        self.shuffle, self.seed = shuffle, seed
        self.epoch, self.start = 0, 0
        self.name = name
        self._rank, self._world_size = rank, world_size
        length = np.array(seconds, np.float64)
        text = np.zeros(len(length)) if tokens is None else np.array(tokens, np.float64)
        labels = np.zeros(len(length), np.uint8) if groups is None else np.asarray(groups)
        group = np.searchsorted(np.unique(labels), labels)
        over = np.zeros(len(length), bool)
        if batch_seconds is not None:
            over |= length > batch_seconds
        if batch_tokens is not None:
            over |= text > batch_tokens
        self.oversized: list[int] = np.flatnonzero(over).tolist()
        if shuffle:
            for part in _parts(len(length)):
                length[part] = _cell_ends(length[part], batch_seconds)
                text[part] = 0 if batch_tokens is None else _step_ends(text[part], batch_tokens)
        self._total, self._groups = len(length), group.astype(np.int32)
        self._draw = None if mixture is None else Draw(mixture, group, length, text, seed)
        if self._draw is not None:
            length, text, group = self._draw.length, self._draw.text, self._draw.group
        order = np.lexsort((text, length, group))
        self._bounds = _cut(order, length, text, group, batch_seconds, batch_tokens, batch_size)
        drawn = () if self._draw is None else self._draw.content()
        self.fingerprint = _fingerprint(text, length, group, self._bounds, *drawn)
        self._cells = _ranks((text, length, group), order)
        self._counts: dict[tuple[int, Takeover | None], int] = {}
        self._takeover: Takeover | None = None

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

    def seek(self, epoch: int, batches_done: int, world_size: int | None = None) -> None:
        """Let the next iterator begin at batch `batches_done` (of this rank) of `epoch`; skipping costs nothing.

        Args:
            epoch: where to.
            batches_done: where to.
            world_size: of the ranks that ended the epoch before; None: the present ones.
        """
        if self._takeover is not None and self._takeover.epoch != epoch:
            self._takeover = self._next_takeover(epoch, world_size or self.world_size)
        self.epoch, self.start = epoch, batches_done

    def plan(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch over all ranks: rank r of W takes every W-th, from the r-th on."""
        return list(self._to_multiple(self._cut_batches(epoch), self.world_size))

    def _cut_batches(self, epoch: int) -> _Batches:
        """The batches of an epoch, before they are dealt."""
        begin, end = self._bounds.T
        taken = None if self._draw is None else self._draw.taken(epoch)
        if not self.shuffle:
            order = np.argsort(self._cells, kind="stable")[::-1].astype(np.int32)
            items = order if taken is None else taken[order]
            return _Batches(items, len(order) - end[::-1], len(order) - begin[::-1])
        # RandomState: its stream is frozen over numpy releases, so a resumed run sees the same order.
        rng = np.random.RandomState([self.seed & 0xFFFFFFFF, epoch])
        order = np.lexsort((rng.random_sample(len(self._cells)), self._cells)).astype(np.int32)
        places = rng.permutation(len(begin))
        return _Batches(order if taken is None else taken[order], begin[places], end[places])

    # Another number of ranks in the middle of an epoch

    def _rest(self, takeover: Takeover, world_size: int) -> tuple[_Batches, list[int]]:
        """What the ranks before left of an epoch, dealt to `world_size` ranks; and items too few to go round.

        Carried items are numbered from N on.
        """
        total = self._total
        carried = [[total + place] for place in range(len(takeover.carried))]
        batches = self._cut_batches(takeover.epoch).joined(carried, before=True)
        ranks = [*takeover.taken, (world_size, 0)]
        spare: list[int] = []
        for place, (count, done) in enumerate(ranks):
            # The first ranks planned the epoch as a whole; a rest may be too small to be dealt.
            batches = self._to_multiple(batches, count, spare if place else None, takeover.carried).rest(count * done)
            if place + 1 < len(ranks):
                batches = batches.joined([[index] for index in spare])
                spare = []
        return batches, spare

    def take_over(self, epoch: int, world_size: int, done: int, begin: int) -> tuple[int, int]:
        """Deal what is left of `epoch` to the present ranks.

        Args:
            epoch: the epoch.
            world_size: the number of ranks before.
            done: batches of the epoch that each of them had done, as they counted.
            begin: what the present ranks shall count as done.

        Returns:
            Batches that are left for each of the present ranks, and the number of utterances that are too few to go
            round and are taken in the next epoch.
        """
        before = self._takeover or Takeover(epoch)
        taken = (*before.taken, (world_size, done - before.begin))
        self._takeover = Takeover(epoch, taken, before.carried, begin)
        batches, spare = self._rest(self._takeover, self.world_size)
        return len(batches) // self.world_size, len(spare)

    def _next_takeover(self, epoch: int, world_size: int) -> Takeover | None:
        """Of the epoch after one that was taken over: what was too little to go round comes along."""
        before = self._takeover
        if before is None or epoch != before.epoch + 1 or not before.taken:
            return None
        _, spare = self._rest(before, world_size)
        items = tuple(self._item(before, index) for index in spare)
        return Takeover(epoch, carried=items) if items else None

    def _item(self, takeover: Takeover, index: int) -> Item:
        total = self._total
        return (takeover.epoch, index) if index < total else takeover.carried[index - total]

    def state_dict(self, epoch: int) -> dict[str, Any]:
        """The plan, and how `epoch` came to the present ranks."""
        state: dict[str, Any] = {"seed": self.seed, "world_size": self.world_size, "plan": self.fingerprint}
        known = self._takeover
        if known is not None and known.epoch == epoch:
            state["takeover"] = {
                "epoch": epoch,
                "taken": [list(pair) for pair in known.taken],
                "carried": [list(item) for item in known.carried],
                "begin": known.begin,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the epoch of a `state_dict` over as the ranks that wrote it had it."""
        known = state.get("takeover")
        self._takeover = None
        if known is not None:
            taken = tuple((int(count), int(done)) for count, done in known["taken"])
            carried = tuple((int(epoch), int(index)) for epoch, index in known["carried"])
            self._takeover = Takeover(int(known["epoch"]), taken, carried, int(known["begin"]))

    def _to_multiple(
        self,
        batches: _Batches,
        count: int,
        spare: list[int] | None = None,
        carried: Sequence[Item] = (),
    ) -> _Batches:
        """Split (or join) from the end until `count` divides the number of batches.

        Args:
            batches: of the epoch, or what is left of it.
            count: ranks.
            spare: gets the items that cannot be dealt in equal counts; None refuses them.
            carried: what the items from N on are.
        """
        while len(batches) % count and (large := batches.last_large(-len(batches) % count)).size:
            batches = batches.halved(large)
        if not len(batches) % count:
            return batches
        # Each batch is one item: as many are left as do not go round.
        total, groups = self._total, self._groups

        def group(batch: list[int]) -> int:
            return groups[batch[0] if batch[0] < total else carried[batch[0] - total][1]]

        listed = list(batches)
        while len(listed) % count:
            single = listed.pop()
            partner = next((batch for batch in reversed(listed) if group(batch) == group(single)), None)
            if partner is not None and len(listed) >= count:
                partner.extend(single)
            elif spare is not None:
                spare.extend(single)
            else:
                what = f"{self.name}: {total}" if self.name else f"{total}"
                raise UserError(
                    f"{what} utterances cannot be dealt to {count} processes in equal counts;"
                    " use fewer processes or more utterances"
                )
        return _Batches.of(listed)

    def __len__(self) -> int:
        """Batches of each rank in the epoch; of one taken over, with those that count as done."""
        count = self.world_size
        known = self._takeover
        key = (count, known)
        if key not in self._counts:
            batches = self._rest(Takeover(0) if known is None else known, count)[0]
            self._counts[key] = len(batches) // count
        return self._counts[key] + (0 if known is None else known.begin)

    def __iter__(self) -> Iterator[list[Item]]:
        known = self._takeover if self._takeover is not None else Takeover(self.epoch)
        world_size = self.world_size
        batches = self._rest(known, world_size)[0]
        first = self.rank + max(self.start - known.begin, 0) * world_size
        mine = range(first, len(batches), world_size)
        # One at a time: a million pairs weigh more than all else.
        return ([self._item(known, index) for index in batches[place]] for place in mine)


class _Batches(Sequence[list[int]]):
    """Batches as runs of items.

    Args:
        items: (n,) items.
        begin, end: (batches,) the run of each batch.
    """

    def __init__(self, items: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        self._items, self._begin, self._end = items, begin, end

    @classmethod
    def of(cls, batches: Sequence[list[int]]) -> _Batches:
        """From lists."""
        end = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        items = np.array([index for batch in batches for index in batch], np.int64)
        return cls(items, np.concatenate([[0], end[:-1]]).astype(np.int64) if len(end) else end, end)

    def __len__(self) -> int:
        return len(self._begin)

    def __getitem__(self, place: int) -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._items[self._begin[place] : self._end[place]].tolist()

    def rest(self, done: int) -> _Batches:
        """Without the first `done` batches."""
        return _Batches(self._items, self._begin[done:], self._end[done:])

    def joined(self, others: Sequence[list[int]], before: bool = False) -> _Batches:
        """With `others` behind these, or before them."""
        if not others:
            return self
        first, second = _Batches.of(others), self
        if not before:
            first, second = second, first
        count = len(first._items)
        return _Batches(
            np.concatenate([first._items, second._items]),
            np.concatenate([first._begin, second._begin + count]),
            np.concatenate([first._end, second._end + count]),
        )

    def last_large(self, count: int) -> np.ndarray:
        """Places of the last batches of more than one item, at most `count`, from the end."""
        return np.flatnonzero(self._end - self._begin > 1)[::-1][:count]

    def halved(self, places: np.ndarray) -> _Batches:
        """The batches of `places` are cut in two; the second halves go to the end, in the order of `places`."""
        middle = self._begin[places] + (self._end[places] - self._begin[places]) // 2
        end = self._end.copy()
        end[places] = middle
        return _Batches(self._items, np.concatenate([self._begin, middle]), np.concatenate([end, self._end[places]]))


def _parts(count: int) -> Iterator[slice]:
    """Items a block at a time: what is computed of them weighs little beside them."""
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def _cell_ends(length: np.ndarray, batch_seconds: float | None) -> np.ndarray:
    """(n,) seconds -> (n,) upper ends of their cells. Oversized and nearly oversized items keep their own length, so
    that a cell's end never breaks the budget."""
    cell = np.ceil(np.log(np.maximum(length, _SHORTEST) / _SHORTEST) / np.log(_GROWTH) - 1e-9)
    end = np.minimum(_SHORTEST * _GROWTH**cell, batch_seconds or np.inf)
    return np.where(length > end, length, np.where(length > 0, end, 0))


def _step_ends(tokens: np.ndarray, batch_tokens: int) -> np.ndarray:
    step = np.ceil(np.log(np.maximum(tokens, 1)) / np.log(1.1) - 1e-9)
    return np.maximum(tokens, np.minimum(np.floor(1.1**step), batch_tokens))


def _cut(
    order: np.ndarray, seconds: np.ndarray, tokens: np.ndarray, group: np.ndarray, max_seconds: float | None,
    max_tokens: float | None, max_size: int | None,
) -> np.ndarray:  # fmt: skip
    """Cut items in order into runs whose padded size keeps the budgets: (batches, 2), where each begins and ends."""
    limit_seconds, limit_tokens = max_seconds or np.inf, max_tokens or np.inf
    limit_size = max_size or len(order)
    cuts = array("q", [0])
    begin, longest, most = 0, 0.0, 0.0
    place, first = -1, int(group[order[0]])
    for part in _parts(len(order)):
        some = order[part]
        for length, count, label in zip(seconds[some].tolist(), tokens[some].tolist(), group[some].tolist()):
            place += 1
            size = place - begin + 1
            new_longest, new_most = max(longest, length), max(most, count)
            full = (
                size > limit_size or size * new_longest > limit_seconds * (1 + 1e-9) or size * new_most > limit_tokens
            )
            if place > begin and (full or label != first):
                cuts.append(place)
                begin, new_longest, new_most, first = place, length, count, label
            longest, most = new_longest, new_most
    ends = np.array([*cuts[1:], len(order)], np.int64)
    return np.stack([np.array(cuts, np.int64), ends], 1)


def _fingerprint(*content: np.ndarray) -> str:
    found = hashlib.sha256()
    for one in content:
        found.update(np.ascontiguousarray(one).data)
    return found.hexdigest()[:16]


def _ranks(keys: tuple[np.ndarray, ...], order: np.ndarray) -> np.ndarray:
    """(N,) int32: one number in place of several keys that `order` sorts by."""
    ranks = np.empty(len(order), np.int32)
    rank, before = 0, order[:1]
    for part in _parts(len(order)):
        some = np.concatenate([before, order[part]])
        new = np.zeros(len(some) - 1, bool)
        for key in keys:
            new |= np.diff(key[some]) != 0
        ranks[some[1:]] = rank + np.cumsum(new)
        rank, before = int(ranks[some[-1]]), some[-1:]
    return ranks


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
