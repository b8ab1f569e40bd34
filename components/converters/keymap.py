"""Key maps between published checkpoint layouts and voxzoo parts: one table of rules, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError, few

How = Literal["same", "stack", "squeeze", "tied"]


@dataclass(frozen=True)
class Rule:
    """How one tensor of ours (or one kind of them) stands in the published layout.

    In patterns `*` is a number (a layer) and `~` the rest of a key (weight, bias, norm.weight). What they match in one
    name is put into the other, in order.

    Attributes:
        ours: pattern of our key, role first: `speech_encoder.layers.*.ffn1.inner.~`.
        theirs: patterns of the published keys; more than one for `stack` and `tied`.
        how: `same`: the tensor itself. `stack`: theirs one below the other along dimension 0 (query, key, value).
            `squeeze`: ours lacks their last dimension of 1 (a pointwise convolution that is a linear layer here).
            `tied`: all of theirs that are there are the same tensor; only the first is written on export.
    """

    ours: str
    theirs: tuple[str, ...]
    how: How = "same"


def same(ours: str, theirs: str) -> Rule:
    """The tensor itself under another name."""
    return Rule(ours, (theirs,))


def stack(ours: str, *theirs: str) -> Rule:
    """Several published tensors one below the other."""
    return Rule(ours, theirs, "stack")


def squeeze(ours: str, theirs: str) -> Rule:
    """A pointwise convolution's kernel (out, in, 1) as a linear layer's weight (out, in)."""
    return Rule(ours, (theirs,), "squeeze")


def tied(ours: str, *theirs: str) -> Rule:
    """One matrix of ours under several published names."""
    return Rule(ours, theirs, "tied")


def within(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The same rules with prefixes put in front of both sides: rules of a block used in several places."""
    return [Rule(ours + rule.ours, tuple(theirs + name for name in rule.theirs), rule.how) for rule in rules]


@dataclass
class Loaded:
    """What became of a published checkpoint.

    Attributes:
        state: our key -> tensor.
        left: published keys that nothing of ours takes, and that the map knows of (heads, buffers).
        unused: published keys that the map does not know.
        missing: our keys that were not filled.
        beyond: keys of ours that the checkpoint has and that were not asked for (also counted in `left`).
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)


class KeyMap:
    """Rules in both directions. Import and export are exact inverses: tensors are only joined, cut and reshaped.

    Args:
        rules: each published key and each key of ours must match exactly one; the first that matches counts.
        left: regular expressions (whole keys) of published keys that are known and not needed: heads of pre-training,
            tables that are computed here.
        rename: (regular expression, replacement) pairs applied to published keys before anything else: older names
            of the same tensors, a prefix that classes with a head put in front. Export writes the new names.
        only_ours: regular expressions (whole keys) of our keys that training alone needs: the layout has no place for
            them.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        left: Iterable[str] = (),
        rename: Iterable[tuple[str, str]] = (),
        only_ours: Iterable[str] = (),
    ) -> None:
        self.rules = list(rules)
        self._left = [re.compile(pattern) for pattern in left]
        self._only_ours = [re.compile(pattern) for pattern in only_ours]
        self._rename = [(re.compile(old), new) for old, new in rename]
        self._theirs = [(_pattern(name), rule, place) for rule in self.rules for place, name in enumerate(rule.theirs)]
        self._ours = [(_pattern(rule.ours), rule) for rule in self.rules]

    def load(self, theirs: Mapping[str, Tensor], expected: Mapping[str, torch.Size] | None = None) -> Loaded:
        """Published tensors as ours.

        Args:
            theirs: published key -> tensor; may read tensors lazily, each is asked for once.
            expected: shapes of our keys. Only these are filled (other published keys of known rules count as left),
                and those not filled are reported as missing. None: everything the rules know.

        Raises:
            UserError: tensors that should be equal are not, or a shape that does not fit; names the published key.
        """
        loaded = Loaded()
        sources: dict[str, dict[int, str]] = {}
        rules: dict[str, Rule] = {}
        for key in theirs:
            found = self._place(self._renamed(key))
            if found is None:
                (loaded.left if self._is_left(key) else loaded.unused).append(key)
                continue
            ours, rule, place = found
            if expected is not None and ours not in expected:
                loaded.left.append(key)
                if ours not in loaded.beyond[-3:]:
                    loaded.beyond.append(ours)
                continue
            rules[ours] = rule
            places = sources.setdefault(ours, {})
            if place in places:  # two names of one tensor
                loaded.unused.append(key)
                continue
            places[place] = key
        for ours, places in sources.items():
            rule = rules[ours]
            if rule.how != "tied" and len(places) < len(rule.theirs):
                loaded.unused.extend(places.values())
                continue
            value = self._join(rule, [theirs[places[place]] for place in sorted(places)], places)
            if expected is not None and value.shape != expected[ours]:
                shown = ", ".join(places.values())
                raise UserError(
                    f"{shown}: gives {tuple(value.shape)}, but {ours} is {tuple(expected[ours])}: "
                    "the weights are of another architecture than the config says"
                )
            _refuse_kind(value, ours, ", ".join(places.values()))
            loaded.state[ours] = value
        if expected is not None:
            loaded.missing = [key for key in expected if key not in loaded.state]
        return loaded

    def save(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under their published names: the same memory (rows of ours, or one tensor under several names).

        Raises:
            UserError: a key of ours that no rule knows.
        """
        written: dict[str, Tensor] = {}
        unknown = []
        for key, value in ours.items():
            if any(pattern.fullmatch(key) for pattern in self._only_ours):
                continue
            for pattern, rule in self._ours:
                match = pattern.fullmatch(key)
                if match is None:
                    continue
                names = [_fill(name, match.groups()) for name in rule.theirs]
                if rule.how == "stack":
                    parts = value.chunk(len(names))
                elif rule.how == "squeeze":
                    parts, names = [value.unsqueeze(-1)], names[:1]
                else:
                    parts, names = [value], names[:1]
                written.update(zip(names, parts, strict=True))
                break
            else:
                unknown.append(key)
        if unknown:
            raise UserError(f"the published layout has no place for {few(unknown, 8)}")
        return written

    def find(self, theirs: str) -> tuple[str, How, int] | None:
        """Our key of a published one, how it stands there, and which of those that it is made of; None: no rule."""
        found = self._place(self._renamed(theirs))
        return None if found is None else (found[0], found[1].how, found[2])

    def names(self, ours: str) -> tuple[list[str], How]:
        """The published keys that one of ours is made of, and how.

        Raises:
            UserError: no rule knows it.
        """
        for pattern, rule in self._ours:
            if (match := pattern.fullmatch(ours)) is not None:
                return [_fill(name, match.groups()) for name in rule.theirs], rule.how
        raise UserError(f"the published layout has no place for {ours}")

    def _join(self, rule: Rule, values: list[Tensor], places: Mapping[int, str]) -> Tensor:
        if rule.how == "stack":
            try:
                return torch.cat(values)
            except RuntimeError:
                shapes = ", ".join(f"{places[place]} {tuple(v.shape)}" for place, v in zip(sorted(places), values))
                raise UserError(f"{shapes}: expected to fit below each other, for {rule.ours}") from None
        if rule.how == "squeeze":
            return values[0].squeeze(-1)
        for value, key in zip(values[1:], [places[p] for p in sorted(places)][1:], strict=True):
            if not torch.equal(values[0], value):
                raise UserError(
                    f"{key} differs from {places[min(places)]}: voxzoo has one matrix for both, as published models do"
                )
        return values[0]

    def _renamed(self, key: str) -> str:
        for old, new in self._rename:
            key = old.sub(new, key)
        return key

    def _place(self, key: str) -> tuple[str, Rule, int] | None:
        for pattern, rule, place in self._theirs:
            match = pattern.fullmatch(key)
            if match is not None:
                return _fill(rule.ours, match.groups()), rule, place
        return None

    def _is_left(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in self._left)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\*", r"(\d+)").replace("\\~", "~").replace("~", "(.+)"))


def _fill(text: str, values: tuple[str, ...]) -> str:
    found = iter(values)
    return re.sub(r"[*~]", lambda _: next(found), text)


def _refuse_kind(value: Tensor, ours: str, theirs: str) -> None:
    """Refuse what a cast would turn into other numbers without a word.

    Raises:
        UserError: complex or whole numbers where weights are real, or a value that is not finite.
    """
    if not value.is_floating_point():
        if value.is_complex() or not ours.endswith("num_batches_tracked"):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{theirs}: {kind}, expected floating-point weights; quantised weights are not read: fetch the original"
            )
    elif value.numel() and not value.is_meta and not all(bound.isfinite() for bound in torch.aminmax(value)):
        raise UserError(f"{theirs}: not all values are finite (NaN or infinity): the weights are damaged")
