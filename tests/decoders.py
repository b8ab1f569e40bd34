"""Decoders that tests can see through."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from voxzoo.components.roles import DecoderState
from voxzoo.components.types import Padded

EOS = 3


class HistoryState(DecoderState):
    def __init__(self, keys: list[int], beams: int) -> None:
        self.rows: list[tuple[int, ...]] = [(key,) for key in keys for _ in range(beams)]

    def reorder(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]


class HistoryDecoder:
    """Log-probabilities are random numbers seeded by the sample and by all tokens so far; logits are shifted by a
    number per row, so that they are not normalised."""

    def __init__(self, size: int, eos_bonus: float = 0.0, seed: int = 0) -> None:
        self.size, self.eos_bonus, self.seed = size, eos_bonus, seed
        self.row_counts: list[int] = []

    def start(self, memory: Padded, beams: int = 1) -> HistoryState:
        return HistoryState([int(x) for x in memory.data[:, 0, 0].tolist()], beams)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        assert isinstance(state, HistoryState)
        self.row_counts.append(len(tokens))
        state.rows = [(*row, token) for row, token in zip(state.rows, tokens.tolist(), strict=True)]
        return torch.tensor([self.logits(row) for row in state.rows])

    def project(self, states: Tensor) -> Tensor:
        return states.clone()

    def logits(self, row: tuple[int, ...]) -> list[float]:
        source = random.Random(f"{self.seed}{row}")
        logits = [source.gauss(0, 2) for _ in range(self.size)]
        logits[EOS] += self.eos_bonus
        shift = source.gauss(0, 5)
        return [value + shift for value in logits]

    def log_probs(self, row: tuple[int, ...]) -> list[float]:
        logits = self.logits(row)
        normaliser = math.log(sum(math.exp(value) for value in logits))
        return [value - normaliser for value in logits]


def memory_of(*keys: int, length: int = 1) -> Padded:
    return Padded(torch.tensor(keys).float().view(-1, 1, 1).repeat(1, length, 1), torch.full((len(keys),), length))
