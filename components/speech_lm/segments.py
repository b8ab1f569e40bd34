"""Positions that begin anew with each segment of a sequence. Letters: B batch, S tokens, R rows, D model dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..joint_vocabulary import JointVocabulary
from ..layers.positions import SinusoidalPositions
from ..types import Padded


class SegmentPositions(nn.Module):
    """Sinusoids of the place within a segment, and an embedding of how many segments came before.

    A segment is a run of tokens of one block of the vocabulary: tags and specials, units, or codes. VALL-E counts text,
    prompt and target each from 0 (arXiv 2301.02111, section 4.2.1). Here a unit may count several steps: as many as
    the frames that it lasts. Then a unit and the frames that speak it have the same position, and a model need not
    learn how the two go along.

    Args:
        dim: D.
        vocabulary: what the ids are.
        unit_steps: steps that a unit counts; all else counts one.
        count: segments that are told apart; later ones are as the last.
    """

    def __init__(self, dim: int, vocabulary: JointVocabulary, unit_steps: int = 1, count: int = 8) -> None:
        super().__init__()
        self.units, self.codes = vocabulary.units.start, vocabulary.codes.start
        self.unit_steps, self.count = unit_steps, count
        self.places = SinusoidalPositions(dim)
        self.segments = nn.Embedding(count, dim)
        nn.init.normal_(self.segments.weight, std=dim**-0.5)

    def forward(self, tokens: Tensor, like: Tensor) -> Tensor:
        """(B, S) ids -> (B, S, D) to add to their embeddings."""
        if not tokens.shape[1]:
            return like.new_zeros(*tokens.shape, like.shape[-1])
        kind, segment, place = self._follow(tokens)
        return self._embed(kind, segment, place, tokens.shape[1], like)

    def after(self, prompt: Padded, beams: int) -> Tensor:
        """(B, P) ids -> (R, 3) where each row of B x beams stands: kind, segment and place of its last token."""
        if not prompt.data.shape[1]:
            trail = prompt.data.new_tensor([[-1, -1, 0]]).expand(len(prompt), -1)
        else:
            last = (prompt.lengths.to(prompt.device) - 1)[:, None]
            found = [each.gather(1, last.clamp(min=0))[:, 0] for each in self._follow(prompt.data)]
            trail = torch.stack(found, 1)
            nothing = trail.new_tensor([-1, -1, 0])
            trail = torch.where(last >= 0, trail, nothing)
        return trail.repeat_interleave(beams, 0)

    def step(self, tokens: Tensor, trail: Tensor, last: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) newest ids and (R, 3) where their rows stood -> (R, D) to add, and where they stand. A place is below
        `last`."""
        kind = self._kind(tokens)
        same = kind == trail[:, 0]
        segment = trail[:, 1] + (~same).to(trail.dtype)
        place = torch.where(same, trail[:, 2] + 1, torch.zeros_like(kind))
        return self._embed(kind, segment, place, last, like), torch.stack([kind, segment, place], 1)

    def _kind(self, tokens: Tensor) -> Tensor:
        """0 for tags and specials, 1 for units, 2 for codes."""
        return (tokens >= self.units).to(torch.int64) + (tokens >= self.codes)

    def _follow(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S) each: kind, segment counted from 0, place within it."""
        kind = self._kind(tokens)
        new = torch.ones_like(kind, dtype=torch.bool)
        new[:, 1:] = kind[:, 1:] != kind[:, :-1]
        steps = torch.arange(tokens.shape[1], device=tokens.device).expand_as(kind)
        begin = (steps * new).cummax(1).values
        return kind, new.cumsum(1) - 1, steps - begin

    def _embed(self, kind: Tensor, segment: Tensor, place: Tensor, last: int, like: Tensor) -> Tensor:
        steps = torch.where(kind == 1, place * self.unit_steps, place)
        positions = self.places.at(steps, last * self.unit_steps, like)
        return positions + self.segments(segment.clamp(max=self.count - 1)).to(like.dtype) * like.shape[-1] ** 0.5
