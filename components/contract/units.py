"""Contracts of what makes units: text-to-unit models and unit extractors.

Letters: B batch, S subwords, C characters, U units, N samples, V rows of the tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import TextToUnit, UnitExtractor
from ..types import Loss, Padded, UnitOutput
from .outcome import Check
from .ways import Way, batch, lively, losses_of, normal, numbers, returned

_SUBWORDS = (4, 3, 1, 2)
_UNITS = (31, 40, 9, 18)
_SECONDS = (0.41, 0.3, 0.1, 0.22)


def prepared_t2u(part: TextToUnit) -> TextToUnit:
    """A copy that knows how a small vocabulary is spelled."""
    part = copy.deepcopy(part)
    rows = part.num_tokens or 12
    table = torch.zeros(rows, 3, dtype=torch.int64)
    for row in range(4, rows):
        table[row, : 1 + row % 3] = 1 + torch.arange(1 + row % 3) + row % 5
    part.set_characters(table, tuple("" if row < 4 else "abc"[: 1 + row % 3] for row in range(rows)))
    return part


def ways_of_t2u(part: TextToUnit) -> list[Way]:
    languages = _languages(part, 4)
    text = numbers(_SUBWORDS, 4, part.num_tokens or 12, seed=1)
    states = normal(_SUBWORDS, part.input_dim)
    rows = list(zip(states, _runs(_UNITS, part.num_units), text, *languages, strict=True))
    spoken = [(states, text, *rest) for states, _, text, *rest in rows]
    return [
        Way("forward", rows, _forward),
        Way("generate", spoken, _generate, learns=False, bound=True),
    ]


def _runs(lengths: tuple[int, ...], count: int) -> list[Tensor]:
    """Units, one per frame, in runs of six: few enough for what aligns them to subwords."""
    return [row.repeat_interleave(6)[: len(row)] for row in numbers(lengths, 0, count)]


def _languages(part: TextToUnit, rows: int) -> list[list[Tensor]]:
    return [[torch.tensor(row % part.num_languages) for row in range(rows)]] if part.num_languages else []


def _told(lang: tuple[Any, ...]) -> dict[str, Any]:
    return {"lang": lang[0]} if lang else {}


def _forward(part: Any, states: Padded, units: Padded, text: Padded, *lang: Tensor) -> dict[str, Any]:
    return losses_of(part(states, units, text, **_told(lang)), "a TextToUnit", "forward")


def _generate(part: Any, states: Padded, text: Padded, *lang: Tensor) -> dict[str, Any]:
    form = "a TextToUnit returns UnitOutput(units, durations, scores)"
    found = returned(part.generate(states, text, **_told(lang)), UnitOutput, form, "generate")
    answers = {"units": found.units, "durations": found.durations, "scores": found.scores}
    return {name: value for name, value in answers.items() if value is not None}


def _extract(part: Any, speech: Padded) -> dict[str, Any]:
    return {"": returned(part(speech), Padded, "a UnitExtractor returns Padded(units, lengths)")}


def _features(part: Any, speech: Padded) -> dict[str, Any]:
    return {
        "": returned(part.features(speech), Padded, "a UnitExtractor returns Padded(features, lengths)", "features")
    }


def checks_of_t2u(part: TextToUnit) -> Iterator[Check]:
    yield "losses", lambda: _losses(part)
    yield "units", lambda: _units(part)


@torch.no_grad()
def _losses(part: TextToUnit) -> str | None:
    """The same keys whatever the batch holds, and sums with counts."""
    way, subject = ways_of_t2u(part)[0], lively(part)
    batches = {
        "four rows": batch(way.rows),
        "one row": batch(way.rows[:1]),
        "units all alike": batch([(row[0], torch.zeros_like(row[1]), *row[2:]) for row in way.rows]),
        "fewer units than subwords": batch([(row[0], row[1][:1], *row[2:]) for row in way.rows]),
    }
    first: list[str] | None = None
    for train in (False, True):
        for name, given in batches.items():
            found: dict[str, Any] = dict(way.call(subject.train(train), *given))
            if not all(isinstance(value, Loss) for value in found.values()) or not found:
                return "forward must return a dict of Loss(total, count), with at least one"
            first = first or list(found)
            if list(found) != first:
                return (
                    f"forward gives {', '.join(found)} for {name}{' in training' if train else ''} instead of "
                    f"{', '.join(first)}: give Loss.zero(device) where there is nothing, processes must agree on keys"
                )
            for key, loss in found.items():
                if loss.total.dim() or not loss.total.is_floating_point() or loss.count.dim():
                    return f"{key} must be Loss of () total and () count; got {tuple(loss.total.shape)}"
                if not bool(loss.total.isfinite()):
                    return f"{key} is not finite for {name}"
    return None


@torch.no_grad()
def _units(part: TextToUnit) -> str | None:
    way = ways_of_t2u(part)[1]
    given = batch(way.rows)
    found = lively(part).generate(*given[:2], **_told(given[2:]))
    if not isinstance(found, UnitOutput):
        return f"generate returns {type(found).__name__} instead of UnitOutput"
    words = _ids(found.units, part.num_units, "generate")
    if words or found.durations is None:
        return words
    if not torch.equal(found.durations.lengths, found.units.lengths):
        return "generate gives durations of other lengths than the units"
    if found.durations.data.dtype != torch.int64 or any((row < 0).any() for row in found.durations.unpad()):
        return "durations must be int64 and not negative"
    return None


def _ids(units: Padded, count: int, what: str) -> str | None:
    if units.data.dtype != torch.int64 or units.data.dim() != 2 or units.lengths.dtype != torch.int64:
        return f"{what} gives {units.data.dtype} {tuple(units.data.shape)} instead of (B, U) int64 with int64 lengths"
    if int(units.lengths.max()) > units.data.shape[1]:
        return f"{what} says {int(units.lengths.max())} units but gives {units.data.shape[1]}"
    if bool((units.data < 0).any()) or bool((units.data >= count).any()):
        return f"{what} gives units outside of 0 to num_units - 1 = {count - 1}"
    if bool(units.data.masked_fill(units.mask, 0).any()):
        return f"{what} gives units beyond the lengths: zero there"
    return None


def ways_of_extractor(part: UnitExtractor) -> list[Way]:
    rows = [(row,) for row in _speech(part)]
    return [
        Way("forward", rows, _extract, learns=False),
        Way("features", rows, _features, learns=False, tolerance=1e-4),
    ]


def _speech(part: UnitExtractor) -> list[Tensor]:
    rate = int(getattr(part, "sample_rate", 16000))
    return [0.1 * row for row in normal([int(seconds * rate) for seconds in _SECONDS])]


def _enough(part: UnitExtractor) -> list[Padded]:
    """Noise for `fit`: four frames a unit."""
    rate = int(getattr(part, "sample_rate", 16000))
    samples = int(rate * max(0.5, 4 * part.num_units / part.frame_rate / 4))
    return [Padded.from_list([0.1 * row]) for row in normal([samples] * 4, seed=7)]


def fitted(part: UnitExtractor) -> UnitExtractor:
    part = copy.deepcopy(part)
    part.fit(_enough(part), seed=1)
    return part


def checks_of_extractor(part: UnitExtractor, fresh: Any) -> Iterator[Check]:
    yield "units", lambda: _extracted(part)
    yield "fit", lambda: _fit(part)
    if fresh is not None:
        yield "unfitted", lambda: _unfitted(fresh())


@torch.no_grad()
def _extracted(part: UnitExtractor) -> str | None:
    speech = Padded.from_list(_speech(part))
    units, features = part(speech), part.features(speech)
    if not torch.equal(units.lengths, features.lengths):
        return f"forward gives {units.lengths.tolist()} units for {features.lengths.tolist()} features"
    for row, (count, samples) in enumerate(zip(units.lengths.tolist(), speech.lengths.tolist(), strict=True)):
        seconds = samples / int(getattr(part, "sample_rate", 16000))
        if abs(count - seconds * part.frame_rate) > 2:
            return f"row {row}: {count} units for {seconds:.2f} s, but frame_rate says {part.frame_rate:g} a second"
    return _ids(units, part.num_units, "forward")


def _fit(part: UnitExtractor) -> str | None:
    speech = Padded.from_list(_speech(part))
    one, two = copy.deepcopy(part), copy.deepcopy(part)
    told = one.fit(_enough(part), seed=3)
    torch.manual_seed(99)
    two.fit(_enough(part), seed=3)
    if not isinstance(told, dict) or not all(isinstance(value, float) for value in told.values()):
        return "fit must return its statistics, name -> float"
    if not torch.equal(one(speech).data, two(speech).data):
        return "fit with the same batches and seed gives other units: draw with torch.Generator().manual_seed(seed)"
    return None


def _unfitted(part: UnitExtractor) -> str | None:
    try:
        part(Padded.from_list(_speech(part)))
    except RuntimeError:
        return None
    return "forward works before fit: raise RuntimeError and say how to fit"
