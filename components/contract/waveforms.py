"""Contracts of what makes and judges samples: unit vocoders and discriminators.

Letters: B batch, U units, N samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import Discriminator, UnitVocoder
from ..types import Judgement, Loss, Padded, Reconstruction
from .outcome import Check, NotAsked
from .ways import Way, batch, lively, losses_of, normal, numbers, returned

_UNITS = (7, 5, 1, 6)
_SAMPLES = (1501, 1200, 5, 987)
_FORM = "a UnitVocoder returns Padded(samples, lengths)"


def ways_of_vocoder(part: UnitVocoder) -> list[Way]:
    told = _told(part, len(_UNITS))
    units = numbers(_UNITS, 0, part.num_units)
    lasting = [1 + row for row in numbers(_UNITS, 0, 3, seed=2)]
    hop = samples_of_unit(part)
    speech = [0.1 * row for row in normal([len(row) * hop for row in units], seed=3)]

    def forward(part: Any, units: Padded, durations: Padded, *told: Tensor) -> dict[str, Any]:
        return {"": returned(part(units, durations=durations, **_named(part, told)), Padded, _FORM)}

    def alone(part: Any, units: Padded, *told: Tensor) -> dict[str, Any]:
        return {"": returned(part(units, **_named(part, told)), Padded, _FORM)}

    def losses(part: Any, units: Padded, speech: Padded, *told: Tensor) -> dict[str, Any]:
        return losses_of(part.losses(units, speech, **_named(part, told)), "a UnitVocoder", "losses")

    def reconstruct(part: Any, units: Padded, speech: Padded, *told: Tensor) -> dict[str, Any]:
        whole = "a UnitVocoder returns Reconstruction(samples, target, frames, losses)"
        made = returned(part.reconstruct(units, speech, **_named(part, told)), Reconstruction, whole, "reconstruct")
        return {"samples": made.samples, "target": made.target, **made.losses}

    spoken = list(zip(units, speech, *told, strict=True))
    ways = [
        Way("losses", spoken, losses, draws=True, tolerance=1e-4),
        Way(
            "forward", list(zip(units, lasting, *told, strict=True)), forward, learns=False, tolerance=1e-3, bound=True
        ),
        Way(
            "forward without durations",
            list(zip(units, *told, strict=True)),
            alone,
            learns=False,
            bound=True,
            tolerance=1e-3,
        ),
    ]
    if part.learns_samples:
        ways.insert(1, Way("reconstruct", spoken, reconstruct, draws=True, tolerance=1e-4))
    return ways


def _told(part: UnitVocoder, rows: int) -> list[list[Tensor]]:
    sizes = (part.num_langs, part.num_speakers)
    return [[torch.tensor(row % size) for row in range(rows)] for size in sizes if size]


def _named(part: UnitVocoder, told: tuple[Tensor, ...]) -> dict[str, Tensor]:
    names = [name for name, size in (("lang", part.num_langs), ("speaker", part.num_speakers)) if size]
    return dict(zip(names, told, strict=True))


@torch.no_grad()
def samples_of_unit(part: UnitVocoder) -> int:
    """Samples that a unit of one frame becomes."""
    units = Padded(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([8]))
    told = tuple(torch.stack(column) for column in _told(part, 1))
    subject = copy.deepcopy(part).eval()
    found = returned(
        subject(units, durations=units.with_data(torch.ones_like(units.data)), **_named(part, told)), Padded, _FORM
    )
    return int(found.lengths[0]) // 8


def checks_of_vocoder(part: UnitVocoder) -> Iterator[Check]:
    yield "samples", lambda: _samples(part)
    yield "losses", lambda: _losses(part)
    yield "reconstruct", lambda: _reconstruct(part)


@torch.no_grad()
def _samples(part: UnitVocoder) -> str | None:
    hop, subject = samples_of_unit(part), lively(part)
    (way,) = (way for way in ways_of_vocoder(part) if way.name == "forward")
    given = batch(way.rows)
    found = way(subject, given)[""]
    if not isinstance(found, Padded) or found.data.dim() != 2 or not found.data.is_floating_point():
        return "forward must give samples, Padded of (B, N) floats"
    frames = [int(row.sum()) for row in given[1].unpad()]
    for row, (count, length) in enumerate(zip(frames, found.lengths.tolist(), strict=True)):
        if length != hop * count:
            return (
                f"forward, row {row}: {length} samples for {count} frames of {hop}: each unit lasts what durations say"
            )
    if found.lengths.dtype != torch.int64 or found.data.shape[1] != int(found.lengths.max()):
        said = f"{found.lengths.tolist()} ({found.lengths.dtype})"
        return f"forward gives {found.data.shape[1]} samples, its lengths say {said}"
    if float(found.zeroed().data.abs().max()) > 1:
        return f"forward gives samples of up to {float(found.data.abs().max()):.2g}: they must lie in -1..1"
    return None


@torch.no_grad()
def _losses(part: UnitVocoder) -> str | None:
    way, subject = ways_of_vocoder(part)[0], lively(part)
    first = None
    for train in (False, True):
        for rows in (way.rows, way.rows[:1], way.rows[2:3]):  # the last one is as short as can be
            found = way(subject.train(train), batch(rows))
            if not found or not all(isinstance(value, Loss) for value in found.values()):
                return "losses must give a dict of Loss(total, count), with at least one"
            first = first or list(found)
            if list(found) != first:
                keys = f"{', '.join(found)} for {len(rows)} rows instead of {', '.join(first)}"
                return f"losses gives {keys}: processes must agree on keys"
    return None


def _reconstruct(part: UnitVocoder) -> str | None:
    ways = ways_of_vocoder(part)
    subject = lively(part)
    units, speech, *told = batch(ways[0].rows)
    named = _named(part, tuple(told))
    if not part.learns_samples:
        try:
            subject.reconstruct(units, speech, **named)
        except NotImplementedError:
            raise NotAsked("learns_samples is false") from None
        return "reconstruct works though learns_samples is false"
    made = subject.reconstruct(units, speech, **named)
    if not isinstance(made, Reconstruction):
        return f"reconstruct returns {type(made).__name__} instead of Reconstruction"
    if not made.samples.data.requires_grad:
        return "no gradient flows through the samples of reconstruct"
    if made.samples.data.shape != made.target.data.shape or not torch.equal(made.samples.lengths, made.target.lengths):
        return (
            f"reconstruct gives samples {tuple(made.samples.data.shape)} and a target {tuple(made.target.data.shape)}"
        )
    if list(made.losses) != list(subject.losses(units, speech, **named)):
        return f"reconstruct gives the losses {', '.join(made.losses)}, losses gives others"
    if int(made.frames.sum()) != int(next(iter(made.losses.values())).count):
        return "the sum of frames of reconstruct is not the count of its first loss"
    return None


def ways_of_discriminator(part: Discriminator) -> list[Way]:
    def judge(part: Any, speech: Padded) -> dict[str, Any]:
        found = returned(part(speech), Judgement, "a Discriminator returns Judgement(scores, features)")
        scores = {f"scores {number}": value for number, value in enumerate(found.scores)}
        return scores | {f"features {number}": value for number, value in enumerate(found.features)}

    return [Way("forward", [(0.1 * row,) for row in normal(_SAMPLES)], judge, tolerance=1e-4)]


def checks_of_discriminator(part: Discriminator) -> Iterator[Check]:
    yield "judgement", lambda: _judgement(part)
    yield "advance", lambda: _advance(part)


@torch.no_grad()
def _judgement(part: Discriminator) -> str | None:
    speech = Padded.from_list([0.1 * row for row in normal(_SAMPLES)])
    found = copy.deepcopy(part).eval()(speech)
    if not isinstance(found, Judgement) or not found.scores:
        return "forward must give Judgement(scores, features) with at least one of scores"
    for kind, values in (("scores", found.scores), ("features", found.features)):
        for number, value in enumerate(values):
            if not isinstance(value, Padded) or len(value) != len(speech) or value.lengths.dtype != torch.int64:
                return f"{kind} {number} must be Padded of (B, T, ...) with int64 lengths"
            if int(value.lengths.max()) > value.data.shape[1]:
                return f"{kind} {number} says {int(value.lengths.max())} steps but has {value.data.shape[1]}"
    for number, value in enumerate(found.features):
        if bool((value.data - value.zeroed().data).any()):
            return f"features {number} are not zero beyond the lengths"
    return None


def _advance(part: Discriminator) -> str | None:
    """State that follows the weights moves by `advance` alone: steps over accumulated batches then equal others."""
    subject = copy.deepcopy(part).train()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    subject(Padded.from_list([0.1 * row for row in normal(_SAMPLES)]))
    for name, value in subject.state_dict().items():
        if not torch.equal(value, before[name]):
            return f"forward changes {name} in training: change it in advance(), called once a step of the optimizer"
    subject.advance()
    return None
