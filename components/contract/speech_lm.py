"""Contract of decoder-only models: teacher forcing, prompts read in one pass, and cached decoding behind them.

Letters: B batch, S tokens, P tokens of a prompt, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..roles import SpeechLM
from ..types import Padded
from .decoding import CachedDecoding, wrong_shapes
from .outcome import Check
from .ways import SOIL, Way, batch, difference, numbers, returned

_TOKENS = (8, 11, 3, 5)
_PROMPTS = (5, 1, 0, 7)
_FORM = "a SpeechLM returns Padded(data, lengths)"


def ways_of_speech_lm(part: SpeechLM) -> list[Way]:
    longest = max((part.max_positions or SOIL + max(_TOKENS)) - SOIL, 1)
    tokens = _ids(part, [min(n, longest) for n in _TOKENS])
    rows = [(row, torch.tensor(min(n, len(row)))) for row, n in zip(tokens, (3, 4, 1, 0), strict=True)]
    return [Way("forward", rows, _forward, same_dtype=True)]


def _forward(part: Any, tokens: Padded, prompt: Tensor) -> dict[str, Any]:
    return {"": returned(part(tokens, prompt), Padded, _FORM)}


def _ids(part: SpeechLM, lengths: list[int], seed: int = 0) -> list[Tensor]:
    return numbers(lengths, min(1, part.vocab_size - 1), part.vocab_size, seed)


def checks_of_speech_lm(part: SpeechLM) -> Iterator[Check]:
    decoding = _Decoding(part)
    yield "shapes", decoding.shapes
    yield "vocabulary", decoding.vocabulary
    yield "causal", decoding.causal
    yield "output_weight", decoding.output_weight
    yield from decoding.checks()
    yield "positions", decoding.positions


class _Decoding(CachedDecoding):
    @torch.no_grad()
    def shapes(self) -> str | None:
        part, (tokens, prompt) = self.part, batch(ways_of_speech_lm(self.given)[0].rows)
        calls = [
            ("decode", part.decode(tokens, prompt), part.dim),
            ("forward", part(tokens, prompt), part.vocab_size),
            ("decode without a prompt", part.decode(tokens), part.dim),
        ]
        return wrong_shapes(calls, tokens)

    def vocabulary(self) -> str | None:
        size, said = self.given.vocabulary.size, self.given.vocab_size
        return None if size == said else f"vocab_size is {said}, but the vocabulary has {size} ids"

    @torch.no_grad()
    def causal(self) -> str | None:
        """What stands behind the prompt sees nothing that comes later; nor does a prompt."""
        tokens = batch([(row,) for row in _ids(self.part, [8] * 4)])[0]
        prompt = torch.tensor([2, 0, 4, 3])
        before = self.part.decode(tokens, prompt).data
        changed = tokens.data.clone()
        changed[:, 5:] = changed[:, 5:].flip(0, 1)
        words = difference(self.part.decode(tokens.with_data(changed), prompt).data[:, :5], before[:, :5], 2e-5)
        return f"the states before a token {words} when it changes: mask what comes later" if words else None

    @torch.no_grad()
    def positions(self) -> str | None:
        """A prompt says how many steps are left, and one that is too long is refused."""
        most = self.given.max_positions
        prompts = Padded.from_list(_ids(self.part, [3, 1]))
        room = self.part.start(prompts).room
        if most is None:
            return None if room is None else f"a state has room for {room} steps, but max_positions is None"
        if room != [most - 3, most - 1]:
            return f"behind prompts of 3 and 1 tokens there is room for {room} instead of {[most - 3, most - 1]}"
        try:
            self.part.start(Padded.from_list(_ids(self.part, [most + 1])))
        except ValueError:
            return None
        return f"start takes a prompt of {most + 1} tokens, but max_positions is {most}: raise ValueError"

    def square(self, rows: int, steps: int) -> tuple[Padded, Padded]:
        most = self.part.max_positions
        if most is not None:
            steps = max(min(steps, most - max(_PROMPTS) - SOIL), 1)
        lengths = [_PROMPTS[row // (rows // 4 or 1) % 4] for row in range(rows)]
        (prompts,) = batch([(row,) for row in _ids(self.part, lengths)], soil=1)
        return prompts, Padded.from_list(_ids(self.part, [steps] * rows, seed=5))

    def teacher(self, memory: Padded, tokens: Padded) -> Tensor:
        whole = Padded.from_list([torch.cat(pair) for pair in zip(memory.unpad(), tokens.unpad(), strict=True)])
        states = self.part.decode(whole, memory.lengths)
        return torch.stack([row[-tokens.data.shape[1] :] for row in states.unpad()])

    def meta_memory(self) -> Padded:
        return Padded(torch.zeros(2, 5, dtype=torch.int64, device="meta"), torch.tensor([5, 3]))
