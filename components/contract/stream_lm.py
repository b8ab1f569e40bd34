"""Contract of stream LMs: what a stream is learned from, and what comes out.

Letters: B batch, U units, P prompt frames, T frames, K streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import StreamLM
from ..types import Loss, Padded, Statistic
from .outcome import Check, NotAsked
from .ways import Way, batch, lively, losses_of, numbers, returned

_UNITS = (6, 9, 1, 4)
_FRAMES = (9, 13, 2, 6)
_PROMPTS = (3, 5, 2, 4)
_FORM = "a StreamLM returns (losses, statistics), two maps"


def ways_of_stream_lm(part: StreamLM) -> list[Way]:
    units = numbers(_UNITS, 0, part.num_units)
    codes, prompts = (_codes(part, lengths, seed) for seed, lengths in ((1, _FRAMES), (2, _PROMPTS)))
    stages = [torch.tensor(1 + row % (part.num_streams - 1)) for row in range(len(units))]
    learned = list(zip(units, codes, prompts, stages, strict=True))
    told = [row[:, 0] for row in codes] if part.given_streams else [torch.tensor(len(row)) for row in codes]
    written = list(zip(units, prompts, told, strict=True))
    return [Way("forward", learned, _forward), Way("generate", written, _generate, learns=False)]


def _codes(part: StreamLM, lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    flat = numbers([length * part.num_streams for length in lengths], 0, part.codebook_size, seed)
    return [row.view(-1, part.num_streams) for row in flat]


def _forward(part: Any, units: Padded, codes: Padded, prompt: Padded, stage: Tensor) -> dict[str, Any]:
    found = part(units, codes, prompt, stage)
    return losses_of(returned(found, tuple, _FORM)[0], "a StreamLM", "forward")


def _generate(part: Any, units: Padded, prompt: Padded, told: Any) -> dict[str, Any]:
    given = {"first": told} if isinstance(told, Padded) else {"frames": told}
    return {"": returned(part.generate(units, prompt, **given), Padded, "a StreamLM returns Padded(codes)", "generate")}


def checks_of_stream_lm(part: StreamLM) -> Iterator[Check]:
    yield "losses", lambda: _losses(part)
    yield "codes", lambda: _written(part)
    yield "later_streams", lambda: _later(part)
    yield "conditions", lambda: _conditions(part)


@torch.no_grad()
def _losses(part: StreamLM) -> str | None:
    """The same keys whatever the batch holds, and sums with counts."""
    way, subject = ways_of_stream_lm(part)[0], lively(part)
    keys: list[list[str]] = []
    for rows in (way.rows, way.rows[:1], way.rows[1:3]):
        for stage in (True, False):
            units, codes, prompt, told = batch(rows)
            losses, statistics = subject(units, codes, prompt, told if stage else None)
            wrong = [name for name, value in losses.items() if not isinstance(value, Loss)]
            wrong += [name for name, value in statistics.items() if not isinstance(value, Statistic)]
            if wrong or not losses:
                return (
                    f"forward returns {_FORM.split('returns ')[1]} of Loss and of Statistic; {wrong or 'none'} is not"
                )
            keys.append([*losses, "", *statistics])
            if keys[-1] != keys[0]:
                return (
                    f"forward gives {', '.join(filter(None, keys[-1]))} instead of {', '.join(filter(None, keys[0]))}"
                )
            if not all(bool(value.total.isfinite()) for value in losses.values()):
                return "a loss is not finite"
    return None


@torch.no_grad()
def _written(part: StreamLM) -> str | None:
    way, subject = ways_of_stream_lm(part)[1], lively(part)
    given = batch(way.rows)
    found: Any = way.call(subject, *given)[""]
    size = (len(given[0]), max(_FRAMES), part.num_streams)
    if tuple(found.data.shape) != size or found.lengths.tolist() != list(_FRAMES):
        return f"generate gives {tuple(found.data.shape)} with lengths {found.lengths.tolist()} instead of {size}"
    if found.data.dtype != torch.int64 or bool((found.data < 0).any() | (found.data >= part.codebook_size).any()):
        return f"generate gives codes outside of 0 to codebook_size - 1 = {part.codebook_size - 1}"
    if not torch.equal(found.zeroed().data, found.data):
        return "generate gives codes beyond the lengths: zero there"
    if part.given_streams and not torch.equal(found.data[..., 0], given[2].zeroed().data):
        return "generate changes the stream that it is given"
    return None


@torch.no_grad()
def _later(part: StreamLM) -> str | None:
    """What a stage learns depends on the streams before it and on no later one."""
    if not part.given_streams:
        raise NotAsked(f"pattern={part.pattern} learns all streams at once")
    subject = lively(part)
    units, codes, prompt, _ = batch(ways_of_stream_lm(part)[0].rows)
    for j in range(1, part.num_streams):
        stage = torch.full((len(units),), j)

        def loss(data: Tensor, stage: Tensor = stage) -> float:
            return float(next(iter(subject(units, codes.with_data(data), prompt, stage)[0].values())).total)

        before = loss(codes.data)
        for k in range(part.num_streams):
            changed = codes.data.clone()
            changed[..., k] = (changed[..., k] + 1) % part.codebook_size
            moved = abs(loss(changed) - before) > 1e-6 * abs(before)
            if k > j and moved:
                return f"the loss of stream {j + 1} changes with stream {k + 1}, which comes later"
            if k < j and not moved:
                return f"the loss of stream {j + 1} does not change with stream {k + 1}, which comes before it"
    return None


@torch.no_grad()
def _conditions(part: StreamLM) -> str | None:
    """Units and prompt count."""
    subject = lively(part)
    units, codes, prompt, stage = batch(ways_of_stream_lm(part)[0].rows)

    def loss(units: Padded, prompt: Padded) -> float:
        return float(next(iter(subject(units, codes, prompt, stage)[0].values())).total)

    before = loss(units, prompt)
    if part.num_units > 1 and loss(units.with_data((units.data + 1) % part.num_units), prompt) == before:
        return "the loss does not change with the units"
    other = prompt.with_data((prompt.data + 1) % part.codebook_size)
    return "the loss does not change with the prompt" if loss(units, other) == before else None
