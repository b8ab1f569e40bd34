"""Contract of text models: teacher forcing, and cached decoding against it.

Letters: B batch, T memory steps, S subwords, D model dim, V vocabulary, K beams.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import TextSeq2Seq
from ..types import Padded
from .outcome import Check, NotAsked
from .ways import SOIL, Way, batch, difference, lively, normal, numbers, returned

_MEMORY = (9, 5, 1, 7)
_TOKENS = (4, 6, 3, 1)
_BEAMS = 3
_STEPS = 36
"""More than caches hold before they grow."""
_FORM = "a TextSeq2Seq returns Padded(data, lengths)"


def ways_of_text(part: TextSeq2Seq) -> list[Way]:
    longest = max((part.max_positions or SOIL + max(_TOKENS)) - SOIL, 1)
    tokens = _ids(part, tuple(min(n, longest) for n in _TOKENS))
    rows = list(zip(normal(_MEMORY, part.dim), tokens, strict=True))
    ways = [Way("forward", rows, _forward, same_dtype=True)]
    if part.has_encoder:
        ways.append(Way("encode", [(row,) for row in tokens], _encode, same_dtype=True))
    return ways


def _forward(part: Any, memory: Padded, tokens: Padded) -> dict[str, Any]:
    return {"": returned(part(memory, tokens), Padded, _FORM)}


def _encode(part: Any, text: Padded) -> dict[str, Any]:
    return {"": returned(part.encode(text), Padded, _FORM, "encode")}


def checks_of_text(part: TextSeq2Seq) -> Iterator[Check]:
    decoding = _Decoding(part)
    yield "shapes", decoding.shapes
    yield "encoder", decoding.encoder
    yield "causal", decoding.causal
    yield "output_weight", decoding.output_weight
    yield "cache", decoding.cache
    yield "beams", decoding.beams
    yield "reorder", decoding.reorder
    yield "fake_cache", decoding.fake_cache


def _ids(part: TextSeq2Seq, lengths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    longest = part.max_positions or max(lengths)
    return numbers([min(n, longest) for n in lengths], min(1, part.vocab_size - 1), part.vocab_size, seed)


class _Decoding:
    def __init__(self, given: TextSeq2Seq) -> None:
        self.given = given
        self._part: Any = None

    @property
    def part(self) -> Any:
        if self._part is None:
            self._part = lively(self.given)
        return self._part

    @torch.no_grad()
    def shapes(self) -> str | None:
        part, memory, tokens = self.part, *batch(ways_of_text(self.given)[0].rows)
        size = tuple(tokens.data.shape)
        for name, found, width in (
            ("decode", part.decode(memory, tokens), part.dim),
            ("forward", part(memory, tokens), part.vocab_size),
            *([("encode", part.encode(tokens), part.dim)] if part.has_encoder else []),
        ):
            if not isinstance(found, Padded):
                return f"{name} returns {type(found).__name__} instead of Padded(data, lengths)"
            if tuple(found.data.shape) != (*size, width) or not torch.equal(found.lengths, tokens.lengths):
                what = f"{tuple(found.data.shape)} with lengths {found.lengths.tolist()}"
                return f"{name} gives {what} instead of {(*size, width)} with {tokens.lengths.tolist()}"
        return None

    def encoder(self) -> str | None:
        """What only `encode` uses is named so, and nothing else is."""
        part = lively(self.given)
        named = {id(p) for module in part.encoder_only() for p in module.parameters()}
        if not part.has_encoder:
            try:
                part.encode(Padded.from_list(_ids(part, (3,))))
            except ValueError:
                return "encoder_only names parameters, but there is no encoder" if named else None
            return "encode works though has_encoder is false"
        part(*batch(ways_of_text(self.given)[0].rows)).data.float().square().sum().backward()
        for name, parameter in part.named_parameters():
            if not parameter.requires_grad:
                continue
            if (parameter.grad is None) != (id(parameter) in named):
                used = "is not used" if parameter.grad is None else "is used"
                return f"{name} {used} by forward: encoder_only must name what only encode uses, and nothing else"
        return None

    @torch.no_grad()
    def causal(self) -> str | None:
        memory, tokens = self._square(4, 6)
        before = self.part.decode(memory, tokens).data
        changed = tokens.data.clone()
        changed[:, 3:] = changed[:, 3:].flip(0, 1)
        after = self.part.decode(memory, tokens.with_data(changed)).data
        words = difference(after[:, :3], before[:, :3], 2e-5)
        return f"the states before a token {words} when it changes: mask what comes later" if words else None

    @torch.no_grad()
    def output_weight(self) -> str | None:
        weight = self.part.output_weight
        if weight is None:
            raise NotAsked("output_weight is None: project is more than a matrix")
        states = torch.stack(normal((5, 5), self.part.dim, seed=3))
        words = difference(states @ weight.T, self.part.project(states), 2e-5)
        return f"states @ output_weight.T {words} from project(states): return None where it is more" if words else None

    @torch.no_grad()
    def cache(self) -> str | None:
        memory, tokens = self._square(4, _STEPS)
        expected = self.part.decode(memory, tokens).data
        state = self.part.start(memory)
        for step in range(tokens.data.shape[1]):
            found = self.part.step(tokens.data[:, step], state)
            words = difference(found, expected[:, step], 5e-5)
            if words:
                return f"step {step} with a cache {_row(words)} from decode: positions, masks and memory must agree"
        return None

    @torch.no_grad()
    def beams(self) -> str | None:
        memory, tokens = self._square(3 * _BEAMS, 5)
        memory = Padded(memory.data[::_BEAMS].contiguous(), memory.lengths[::_BEAMS].contiguous())
        expected = self.part.decode(_repeated(memory), tokens).data
        state = self.part.start(memory, _BEAMS)
        for step in range(tokens.data.shape[1]):
            words = difference(self.part.step(tokens.data[:, step], state), expected[:, step], 5e-5)
            if words:
                return f"step {step} of {_BEAMS} beams {_row(words)} from decode: the rows of a sample stand together"
        return None

    @torch.no_grad()
    def reorder(self) -> str | None:
        """Beams change places within their samples; a sample is dropped, then another."""
        memory, tokens = self._square(3 * _BEAMS, 20)
        memory = Padded(memory.data[::_BEAMS].contiguous(), memory.lengths[::_BEAMS].contiguous())
        state = self.part.start(memory, _BEAMS)
        past = tokens.data[:, :0]
        generator = torch.Generator().manual_seed(3)
        samples = 3
        for step in range(tokens.data.shape[1]):
            past = torch.cat([past, tokens.data[: len(past), step, None]], 1)
            whole = Padded(past, torch.full((len(past),), past.shape[1]))
            expected = self.part.decode(_repeated(memory), whole).data[:, -1]
            words = difference(self.part.step(past[:, -1], state), expected, 5e-5)
            if words:
                what = "behind reorder" if step else "before any reorder"
                return f"step {step} {what} {_row(words)} from decode of the reordered rows: the cache must follow"
            kept = [place for place in range(samples) if (step, place) not in ((2, 1), (9, 0))]
            beams = [torch.randint(_BEAMS, (_BEAMS,), generator=generator) + place * _BEAMS for place in kept]
            rows, samples = torch.cat(beams), len(kept)
            state.reorder(rows)
            past = past[rows]
            memory = Padded(memory.data[kept], memory.lengths[kept])
        return None

    @torch.no_grad()
    def fake_cache(self) -> str | None:
        part = copy.deepcopy(self.given).to("meta").eval()
        memory = Padded(torch.empty(2, 5, part.dim, device="meta"), torch.tensor([5, 3]))
        try:
            states = part.step(torch.zeros(4, dtype=torch.int64, device="meta"), part.start(memory, 2))
        except Exception as error:
            return f"start and step need values ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
        return None if states.shape == (4, part.dim) else f"step gives {tuple(states.shape)} on meta tensors"

    def _square(self, rows: int, steps: int) -> tuple[Padded, Padded]:
        """Memory of unequal lengths with something in its padding, and as many tokens in each row."""
        steps = min(steps, self.part.max_positions or steps)
        lengths = [(9, 5, 1, 7)[row // (rows // 4 or 1) % 4] for row in range(rows)]
        (memory,) = batch([(row,) for row in normal(lengths, self.part.dim)], soil=1)
        return memory, Padded.from_list(_ids(self.part, (steps,) * rows, seed=5))


def _repeated(memory: Padded) -> Padded:
    return Padded(memory.data.repeat_interleave(_BEAMS, 0), memory.lengths.repeat_interleave(_BEAMS))


def _row(words: str) -> str:
    """Of (R, D) the first dimension is rows."""
    return words.replace(" at step ", " in row ")
