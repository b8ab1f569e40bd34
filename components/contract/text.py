"""Contract of text models: teacher forcing, and cached decoding against it.

Letters: B batch, T memory steps, S subwords, D model dim, V vocabulary, K beams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import TextSeq2Seq
from ..types import Padded
from .decoding import CachedDecoding, wrong_shapes
from .outcome import Check
from .ways import SOIL, Way, batch, difference, lively, normal, numbers, returned

_MEMORY = (9, 5, 1, 7)
_TOKENS = (4, 6, 3, 1)
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
    yield from decoding.checks()


def _ids(part: TextSeq2Seq, lengths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    longest = part.max_positions or max(lengths)
    return numbers([min(n, longest) for n in lengths], min(1, part.vocab_size - 1), part.vocab_size, seed)


class _Decoding(CachedDecoding):
    @torch.no_grad()
    def shapes(self) -> str | None:
        part, memory, tokens = self.part, *batch(ways_of_text(self.given)[0].rows)
        calls = [("decode", part.decode(memory, tokens), part.dim), ("forward", part(memory, tokens), part.vocab_size)]
        if part.has_encoder:
            calls.append(("encode", part.encode(tokens), part.dim))
        return wrong_shapes(calls, tokens)

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
        memory, tokens = self.square(4, 6)
        before = self.part.decode(memory, tokens).data
        changed = tokens.data.clone()
        changed[:, 3:] = changed[:, 3:].flip(0, 1)
        after = self.part.decode(memory, tokens.with_data(changed)).data
        words = difference(after[:, :3], before[:, :3], 2e-5)
        return f"the states before a token {words} when it changes: mask what comes later" if words else None

    def square(self, rows: int, steps: int) -> tuple[Padded, Padded]:
        """Memory of unequal lengths with something in its padding, and as many tokens in each row."""
        steps = min(steps, self.part.max_positions or steps)
        lengths = [(9, 5, 1, 7)[row // (rows // 4 or 1) % 4] for row in range(rows)]
        (memory,) = batch([(row,) for row in normal(lengths, self.part.dim)], soil=1)
        return memory, Padded.from_list(_ids(self.part, (steps,) * rows, seed=5))

    def teacher(self, memory: Padded, tokens: Padded) -> Tensor:
        return self.part.decode(memory, tokens).data

    def meta_memory(self) -> Padded:
        return Padded(torch.empty(2, 5, self.given.dim, device="meta"), torch.tensor([5, 3]))
