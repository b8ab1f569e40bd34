"""Cached decoding against teacher forcing: of any decoder that search drives.

Letters: B batch, S steps, D model dim, K beams, R = B x K rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..types import Padded
from .outcome import Check, NotAsked
from .ways import difference, lively, normal

BEAMS = 3
STEPS = 36
"""More than caches hold before they grow."""


def wrong_shapes(calls: Iterable[tuple[str, Any, int]], tokens: Padded) -> str | None:
    """What is wrong with what was made of (B, S) tokens.

    Args:
        calls: name, what it gave, and the width that it should have: (B, S, width) with the lengths of the tokens.
        tokens: that all were given.
    """
    size = tuple(tokens.data.shape)
    for name, found, width in calls:
        if not isinstance(found, Padded):
            return f"{name} returns {type(found).__name__} instead of Padded(data, lengths)"
        if tuple(found.data.shape) != (*size, width) or not torch.equal(found.lengths, tokens.lengths):
            what = f"{tuple(found.data.shape)} with lengths {found.lengths.tolist()}"
            return f"{name} gives {what} instead of {(*size, width)} with {tokens.lengths.tolist()}"
    return None


class CachedDecoding:
    """The checks of one decoder; a role says what it decodes over, and what teacher forcing gives."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self._part: Any = None

    @property
    def part(self) -> Any:
        if self._part is None:
            self._part = lively(self.given)
        return self._part

    def square(self, rows: int, steps: int) -> tuple[Padded, Padded]:
        """What `rows` rows decode over (memory or prompts, of unequal lengths, with something in the padding), and as
        many tokens in each row: `steps`, or what the part has positions for."""
        raise NotImplementedError

    def teacher(self, memory: Padded, tokens: Padded) -> Tensor:
        """(R, S, D) states that teacher forcing gives for the tokens."""
        raise NotImplementedError

    def meta_memory(self) -> Padded:
        """Of two samples, without values."""
        raise NotImplementedError

    def checks(self) -> Iterator[Check]:
        yield "cache", self.cache
        yield "beams", self.beams
        yield "reorder", self.reorder
        yield "fake_cache", self.fake_cache

    @torch.no_grad()
    def cache(self) -> str | None:
        memory, tokens = self.square(4, STEPS)
        expected = self.teacher(memory, tokens)
        state = self.part.start(memory)
        for step in range(tokens.data.shape[1]):
            found = self.part.step(tokens.data[:, step], state)
            words = difference(found, expected[:, step], 5e-5)
            if words:
                return f"step {step} with a cache {_row(words)} from decode: positions, masks and memory must agree"
        return None

    @torch.no_grad()
    def beams(self) -> str | None:
        memory, tokens = self.square(3 * BEAMS, 5)
        memory = Padded(memory.data[::BEAMS].contiguous(), memory.lengths[::BEAMS].contiguous())
        expected = self.teacher(_repeated(memory), tokens)
        state = self.part.start(memory, BEAMS)
        for step in range(tokens.data.shape[1]):
            words = difference(self.part.step(tokens.data[:, step], state), expected[:, step], 5e-5)
            if words:
                return f"step {step} of {BEAMS} beams {_row(words)} from decode: the rows of a sample stand together"
        return None

    @torch.no_grad()
    def reorder(self) -> str | None:
        """Beams change places within their samples; a sample is dropped, then another."""
        memory, tokens = self.square(3 * BEAMS, 20)
        memory = Padded(memory.data[::BEAMS].contiguous(), memory.lengths[::BEAMS].contiguous())
        state = self.part.start(memory, BEAMS)
        past = tokens.data[:, :0]
        generator = torch.Generator().manual_seed(3)
        samples = 3
        for step in range(tokens.data.shape[1]):
            past = torch.cat([past, tokens.data[: len(past), step, None]], 1)
            whole = Padded(past, torch.full((len(past),), past.shape[1]))
            expected = self.teacher(_repeated(memory), whole)[:, -1]
            words = difference(self.part.step(past[:, -1], state), expected, 5e-5)
            if words:
                what = "behind reorder" if step else "before any reorder"
                return f"step {step} {what} {_row(words)} from decode of the reordered rows: the cache must follow"
            kept = [place for place in range(samples) if (step, place) not in ((2, 1), (9, 0))]
            beams = [torch.randint(BEAMS, (BEAMS,), generator=generator) + place * BEAMS for place in kept]
            rows, samples = torch.cat(beams), len(kept)
            state.reorder(rows)
            past = past[rows]
            memory = Padded(memory.data[kept], memory.lengths[kept])
        return None

    @torch.no_grad()
    def output_weight(self) -> str | None:
        weight = self.part.output_weight
        if weight is None:
            raise NotAsked("output_weight is None: project is more than a matrix")
        states = torch.stack(normal((5, 5), self.part.dim, seed=3))
        words = difference(states @ weight.T, self.part.project(states), 2e-5)
        return f"states @ output_weight.T {words} from project(states): return None where it is more" if words else None

    @torch.no_grad()
    def fake_cache(self) -> str | None:
        part = copy.deepcopy(self.given).to("meta").eval()
        try:
            state = part.start(self.meta_memory(), 2)
            states = part.step(torch.zeros(4, dtype=torch.int64, device="meta"), state)
        except Exception as error:
            return f"start and step need values ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
        return None if states.shape == (4, part.dim) else f"step gives {tuple(states.shape)} on meta tensors"


def _repeated(memory: Padded) -> Padded:
    return Padded(memory.data.repeat_interleave(BEAMS, 0), memory.lengths.repeat_interleave(BEAMS))


def _row(words: str) -> str:
    """Of (R, D) the first dimension is rows."""
    return words.replace(" at step ", " in row ")
