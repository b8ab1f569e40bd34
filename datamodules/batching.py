"""Which utterances form a batch, on which rank, in which order: a function of seed, epoch and world size alone.

Batches are planned for all ranks at once. Utterances are sorted into cells of nearly equal length, shuffled inside
their cell, and cut into batches under the budgets; the batches are shuffled and dealt to the ranks in turn. Cells keep
the number of batches the same in every epoch.

Where the number of ranks changes in the middle of an epoch, what is left of the plan of the ranks before is dealt to
the new ones, so that every utterance is taken once in the epoch.

Letters: N items, W world size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed
from torch.utils.data import Sampler

from ..components.errors import UserError

_SHORTEST, _GROWTH = 0.1, 1.04
"""Upper ends of the cells: 0.1 s x 1.04^k, so that padding inside a cell is at most 4 %."""

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
        name: of the split, for messages.

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
        name: str = "",
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
        return self._to_multiple(self._cut_batches(epoch), self.world_size)

    def _cut_batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, before they are dealt."""
        if not self.shuffle:
            order = np.lexsort(self._keys)
            return [order[begin:end][::-1].tolist() for begin, end in self._bounds][::-1]
        # RandomState: its stream is frozen over numpy releases, so a resumed run sees the same order.
        rng = np.random.RandomState([self.seed & 0xFFFFFFFF, epoch])
        order = np.lexsort((rng.random_sample(len(self._keys[0])), *self._keys))
        batches = [order[begin:end].tolist() for begin, end in self._bounds]
        return [batches[place] for place in rng.permutation(len(batches))]

    # Another number of ranks in the middle of an epoch

    def _rest(self, takeover: Takeover, world_size: int) -> tuple[list[list[int]], list[int]]:
        """What the ranks before left of an epoch, dealt to `world_size` ranks; and items too few to go round.

        Carried items are numbered from N on.
        """
        total = len(self._keys[0])
        batches = [[total + place] for place in range(len(takeover.carried))] + self._cut_batches(takeover.epoch)
        ranks = [*takeover.taken, (world_size, 0)]
        spare: list[int] = []
        for place, (count, done) in enumerate(ranks):
            # The first ranks planned the epoch as a whole; a rest may be too small to be dealt.
            batches = self._to_multiple(batches, count, spare if place else None, takeover.carried)[count * done :]
            if place + 1 < len(ranks):
                batches += [[index] for index in spare]
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
        total = len(self._keys[0])
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
        batches: list[list[int]],
        count: int,
        spare: list[int] | None = None,
        carried: Sequence[Item] = (),
    ) -> list[list[int]]:
        """Split (or join) from the end until `count` divides the number of batches.

        Args:
            batches: changed in place.
            count: ranks.
            spare: gets the items that cannot be dealt in equal counts; None refuses them.
            carried: what the items from N on are.
        """
        place = len(batches) - 1
        while len(batches) % count and place >= 0:
            size = len(batches[place])
            if size > 1:
                batches.append(batches[place][size // 2 :])
                batches[place] = batches[place][: size // 2]
            place -= 1
        if len(batches) % count and any(len(batch) > 1 for batch in batches):
            return self._to_multiple(batches, count, spare, carried)
        total, groups = len(self._keys[0]), self._keys[2]

        def group(batch: list[int]) -> int:
            return groups[batch[0] if batch[0] < total else carried[batch[0] - total][1]]

        while len(batches) % count:
            single = batches.pop()
            partner = next((batch for batch in reversed(batches) if group(batch) == group(single)), None)
            if partner is not None and len(batches) >= count:
                partner.extend(single)
            elif spare is not None:
                spare.extend(single)
            else:
                what = f"{self.name}: {total}" if self.name else f"{total}"
                raise UserError(
                    f"{what} utterances cannot be dealt to {count} processes in equal counts;"
                    " use fewer processes or more utterances"
                )
        return batches

    def __len__(self) -> int:
        """Batches of each rank in the epoch; of one taken over, with those that count as done."""
        count = self.world_size
        known = self._takeover
        key = (count, known)
        if key not in self._counts:
            batches = self.plan(0) if known is None else self._rest(known, count)[0]
            self._counts[key] = len(batches) // count
        return self._counts[key] + (0 if known is None else known.begin)

    @property
    def fingerprint(self) -> str:
        """Names the items and the cuts: equal where `plan` is."""
        content = b"".join(np.ascontiguousarray(key).tobytes() for key in (*self._keys, np.asarray(self._bounds)))
        return hashlib.sha256(content).hexdigest()[:16]

    def __iter__(self) -> Iterator[list[Item]]:
        known = self._takeover if self._takeover is not None else Takeover(self.epoch)
        mine = self._rest(known, self.world_size)[0][self.rank :: self.world_size]
        return iter(
            [[self._item(known, index) for index in batch] for batch in mine[max(self.start - known.begin, 0) :]]
        )


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
