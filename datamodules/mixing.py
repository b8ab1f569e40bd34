"""Shares of the training data: more of what is small, less of what is large, exactly and again after a restart.

An epoch takes a fixed number of utterances of each group. Of a group whose utterances are sorted by length they are
taken at equal distances, from a beginning that moves from epoch to epoch by the golden ratio: each has the same part in
the long run, all are taken in turn, and the lengths of an epoch are those of the group. So every epoch has room for its
utterances in the same batches, and what it takes is a function of the seed and the epoch alone.

Letters: N items, S strata (a group in one task), M items of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath
from typing import Literal

import numpy as np

from ..components.errors import UserError, few

MixBy = Literal["languages", "src_lang", "tgt_lang", "speaker", "manifest", "task"]
_GOLDEN = (math.sqrt(5) - 1) / 2
_NAMED = 12


@dataclass(frozen=True)
class Mixture:
    """What an epoch takes.

    Attributes:
        labels: (N,) number of the group of each item.
        names: of the groups, sorted.
        sizes: (groups,) items in each.
        counts: (groups,) items that an epoch takes of each.
        shares: (groups,) what was asked for: of utterances, or of hours.
        hours: (groups,) of source speech.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray
    counts: np.ndarray
    shares: np.ndarray
    hours: np.ndarray

    def line(self) -> str:
        """Shares and how often an epoch takes an utterance, the largest groups first."""
        order = np.argsort(-self.shares, kind="stable")
        words = [
            f"{self.names[g] or '(none)'} {self.shares[g]:.1%} ({self.counts[g] / self.sizes[g]:.2f} times)"
            for g in order
        ]
        return f"{self.counts.sum():,} utterances an epoch: {few(words, _NAMED)}"


class Mix:
    """What share of the training data each group has.

    Args:
        by: what makes a group: `languages` (source and target), `src_lang`, `tgt_lang`, `speaker`, `manifest`, `task`;
            None takes each utterance once an epoch.
        temperature: a group of n has a share as n to the power of 1/temperature: 1 leaves all as they are, `inf` makes
            them equal.
        weights: group -> its share, of all weights together, in place of the temperature; 0 leaves it out. A manifest
            is named as it is given, by its file name, or without its ending.
        count: what shares are of, and groups are measured in: utterances, or hours of source speech.
        size: utterances of an epoch; None: as many as there are.

    Raises:
        UserError: contradictory settings; later, groups that are not there.
    """

    def __init__(
        self,
        *,
        by: MixBy | None = None,
        temperature: float = 1.0,
        weights: dict[str, float] | None = None,
        count: Literal["utterances", "hours"] = "utterances",
        size: int | None = None,
    ) -> None:
        if by is None and (weights or temperature != 1 or size is not None):
            raise UserError(
                "data.mix.by=null: weights, temperature and size are of groups; say by what, such as languages"
            )
        if weights and temperature != 1:
            raise UserError(f"data.mix.temperature={temperature}: of temperature and weights one alone says the shares")
        if not temperature > 0:
            raise UserError(f"data.mix.temperature={temperature}: expected more than 0, inf for equal shares")
        wrong = next((name for name, weight in (weights or {}).items() if not 0 <= weight < math.inf), None)
        if weights and (wrong is not None or not any(weights.values())):
            raise UserError(f"data.mix.weights={weights}: expected numbers from 0, and one above it")
        if size is not None and size < 1:
            raise UserError(f"data.mix.size={size}: expected utterances of an epoch, or null for as many as there are")
        self.by: MixBy | None = by
        self.temperature, self.weights, self.count, self.size = temperature, dict(weights or {}), count, size

    def mixture(self, labels: np.ndarray, names: Sequence[str], seconds: np.ndarray) -> Mixture:
        """What an epoch takes of N items.

        Args:
            labels: (N,) number of the group of each.
            names: of the groups, sorted.
            seconds: (N,) of each, 0 for text.
        """
        sizes = np.bincount(labels, minlength=len(names))
        hours = np.bincount(labels, seconds, len(names)) / 3600
        measure = hours if self.count == "hours" else sizes
        if not measure.all():
            name = names[int(np.argmin(measure))]
            raise UserError(f"data.mix.count=hours: the group {name!r} has no speech; count utterances")
        shares = self._shares(names, measure)
        each = shares * sizes / hours if self.count == "hours" else shares
        total = self.size or int(sizes[shares > 0].sum())
        if total < (shares > 0).sum():
            raise UserError(f"data.mix.size={total}: there are {(shares > 0).sum()} groups, which all take part")
        return Mixture(labels, tuple(names), sizes, apportioned(total, each, least=1), shares, hours)

    def _shares(self, names: Sequence[str], measure: np.ndarray) -> np.ndarray:
        if not self.weights:
            found = (measure / measure.sum()) ** (1 / self.temperature)
            return found / found.sum()
        keys = {self._group(key, names): weight for key, weight in self.weights.items()}
        lacking = [name or "(none)" for name in names if name not in keys]
        if lacking:
            raise UserError(f"data.mix.weights says nothing of {few(lacking)}; 0 leaves a group out")
        found = np.array([keys[name] for name in names], np.float64)
        return found / found.sum()

    def _group(self, key: str, names: Sequence[str]) -> str:
        if key in names:
            return key
        found = []
        if self.by == "manifest":
            found = [name for name in names if key in (PurePath(name).name, PurePath(name).stem)]
        if len(found) != 1:
            near = get_close_matches(key, names, n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            why = "is the name of several" if found else "there is no such group"
            raise UserError(
                f"data.mix.weights.{key}: {why}{meant} There are {few([name or '(none)' for name in names], 10)}"
            )
        return found[0]


def apportioned(total: int, shares: np.ndarray, least: int = 0) -> np.ndarray:
    """(k,) whole numbers that make `total` and are as near to `shares` of it as they can be (the largest remainders get
    what is left); those of a share above 0 are at least `least`."""
    exact = total * shares / shares.sum()
    found = np.floor(exact).astype(np.int64)
    order = np.argsort(found - exact, kind="stable")
    found[order[: total - int(found.sum())]] += 1
    for place in np.flatnonzero((shares > 0) & (found < least)):
        found[np.argmax(found)] -= least - found[place]
        found[place] = least
    return found


class Draw:
    """Which items each epoch takes, and the sizes that have room for those of any epoch.

    Args:
        mixture: of N items.
        group: (N,) label of each item; a batch holds items of one.
        length, text: (N,) by which items are sorted.
        seed: of the order of equal items, and of where the first epoch begins.

    Attributes:
        length, text, group: (M,) of each place in an epoch: no item that is ever taken there is larger.
    """

    def __init__(self, mixture: Mixture, group: np.ndarray, length: np.ndarray, text: np.ndarray, seed: int) -> None:
        groups = int(group.max()) + 1
        stratum = mixture.labels * groups + group
        sizes = np.bincount(stratum, minlength=len(mixture.names) * groups)
        counts = np.zeros(len(sizes), np.int64)
        for number, count in enumerate(mixture.counts.tolist()):
            of = slice(number * groups, (number + 1) * groups)
            if count:
                counts[of] = apportioned(count, sizes[of])
        rng = np.random.RandomState([seed & 0xFFFFFFFF, 0x6D6978])
        self._items = np.lexsort((rng.random_sample(len(stratum)), text, length, stratum)).astype(np.int32)
        self._begin = rng.random_sample(len(sizes))
        self._sizes, self._counts = sizes, counts
        lowest, highest = (self._places(np.full(len(sizes), shift)) for shift in (0.0, 1.0))
        self.length = length[self._items[highest]]
        runs = np.stack([lowest, highest + 1], 1).reshape(-1)
        self.text = np.maximum.reduceat(np.append(text[self._items], 0), runs)[::2]
        self.group = group[self._items[lowest]]

    def taken(self, epoch: int) -> np.ndarray:
        """(M,) int32 the item at each place."""
        return self._items[self._places((self._begin + epoch * _GOLDEN) % 1)]

    def content(self) -> tuple[np.ndarray, ...]:
        """What an epoch's items depend on, beside the seed."""
        return self._items, self._sizes, self._counts

    def _places(self, shift: np.ndarray) -> np.ndarray:
        """(M,) the place of each item among all, where those of a stratum are as far apart as they can be and the first
        one is `shift`, (S,) parts of that distance, from its beginning."""
        found, done, before = np.empty(int(self._counts.sum()), np.int64), 0, 0
        for size, count, begin in zip(self._sizes.tolist(), self._counts.tolist(), shift.tolist()):
            rank = np.floor((np.arange(count) + begin) * (size / max(count, 1))).astype(np.int64)
            found[done : done + count] = before + np.minimum(rank, size - 1)
            done, before = done + count, before + size
        return found
