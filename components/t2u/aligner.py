"""Unsupervised alignment of units to characters: how many units each character lasts.

Letters: B batch, C characters of a row, U units (one per frame), D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from ..layers.dropout import Dropout
from ..layers.runs import expand_runs
from ..losses.ctc import ctc_loss
from ..types import Loss, Padded

_BLANK = -1.0
_NEVER = -1e9


class UnitAligner(nn.Module):
    """Learns which character each unit belongs to from pairs of characters and units alone.

    The aligner of UnitY2 (Seamless, arXiv 2312.05187, section 3.3): characters and units are embedded and see their
    neighbours through convolutions; the closer two vectors, the likelier the pair. Its training follows "One TTS
    alignment to rule them all" (arXiv 2108.10447): a forward-sum loss over all monotonic paths, a diagonal prior, the
    best path (the search of Glow-TTS, arXiv 2005.11129) as durations, and a loss that pulls the soft alignment to it.

    Args:
        num_characters: rows of the character embedding; 0 is none.
        num_units: units.
        dim: D.
        dropout: behind each convolution.
        temperature: a log-probability is minus this times the Euclidean distance, normalised over characters.
        prior: strength (omega of the paper) of the beta-binomial prior; 0 for none.
    """

    def __init__(
        self,
        num_characters: int,
        num_units: int,
        dim: int = 1024,
        dropout: float = 0.1,
        temperature: float = 1.0,
        prior: float = 1.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"aligner_temperature={temperature}: expected more than 0")
        if prior < 0:
            raise ValueError(f"aligner_prior={prior}: expected 0 (none) or more")
        self.temperature = temperature
        self.prior = prior
        self.character_embedding = nn.Embedding(num_characters, dim)
        self.unit_embedding = nn.Embedding(num_units, dim)
        self.character_convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2) for kernel in (3, 1))
        self.unit_convs = nn.ModuleList(
            [*(nn.Conv1d(dim, dim, 3, padding=1) for _ in range(2)), nn.Conv1d(dim, dim, 1)]
        )
        self.dropout = Dropout(dropout)

    def forward(self, characters: Padded, units: Padded) -> tuple[Padded, Loss, Loss]:
        """(B, C) ids and (B, U) units -> (B, C) int64 durations, forward-sum loss and binarisation loss.

        The durations of a row sum to its number of units, and each is at least 1. A row that has fewer units than
        characters, or no characters, has no path: its durations have length 0 and it adds nothing to either loss.
        The forward-sum loss is counted in characters, the binarisation loss in units.
        """
        log_probs = self.log_probs(characters, units)
        if log_probs.is_meta:
            nothing = Loss(log_probs.sum() * 0, log_probs.new_zeros(()))
            return characters, nothing, nothing
        # With the blank of a low, fixed score in front, and each character once in order, CTC sums over the paths.
        order = torch.arange(1, log_probs.shape[2] + 1, device=log_probs.device).expand(len(characters), -1)
        scores = units.with_data(pad(log_probs, (1, 0), value=_BLANK))
        forward_sum = ctc_loss(scores, Padded(order, characters.lengths))
        durations = best_durations(log_probs.detach(), characters.lengths, units.lengths)
        places = torch.arange(durations.data.shape[1], device=log_probs.device).expand_as(durations.data)
        path = expand_runs(places, durations)
        taken = log_probs[:, : path.data.shape[1]].gather(2, path.data[..., None])[..., 0]
        binarisation = Loss(-taken.masked_fill(~path.mask, 0).sum(), path.lengths.sum())
        return durations, forward_sum, binarisation

    def log_probs(self, characters: Padded, units: Padded) -> Tensor:
        """(B, C) ids and (B, U) units -> (B, U, C) float32 log p(character | unit), very low beyond the last."""
        x = self._states(characters.with_data(self.character_embedding(characters.data)), self.character_convs)
        y = self._states(units.with_data(self.unit_embedding(units.data)), self.unit_convs)
        scores = -self.temperature * torch.cdist(y.float(), x.float())
        if self.prior > 0:
            scores = scores + diagonal_prior(characters, units, self.prior)
        return scores.masked_fill(~characters.mask[:, None], _NEVER).log_softmax(-1)

    def _states(self, x: Padded, convs: nn.ModuleList) -> Tensor:
        """(B, T, D) embeddings -> (B, T, D); padding is zero before each convolution."""
        data = x.data
        for place, conv in enumerate(convs, start=1):
            data = conv(x.with_data(data).zeroed().data.transpose(1, 2)).transpose(1, 2)
            data = self.dropout(data if place == len(convs) else relu(data))
        return data


def diagonal_prior(characters: Padded, units: Padded, strength: float) -> Tensor:
    """(B, U, C) float32 log-probability that a unit at its place in the row belongs to a character at its own.

    Beta-binomial (arXiv 2108.10447): unit t of U has alpha = w t, beta = w (U + 1 - t). Zero in padding.
    """
    mask = units.mask[:, :, None] & characters.mask[:, None]
    total = (characters.lengths.to(units.device) - 1).clamp(min=0).float()[:, None, None]
    size = units.lengths.to(units.device).float()[:, None, None]
    place = torch.arange(characters.data.shape[1], device=units.device, dtype=torch.float32)
    alpha = strength * torch.arange(1, units.data.shape[1] + 1, device=units.device, dtype=torch.float32)[:, None]
    beta = (strength * (size + 1) - alpha).clamp(min=strength)
    rest = (total - place).clamp(min=0)
    ways = (total + 1).lgamma() - (place + 1).lgamma() - (rest + 1).lgamma()
    both = (alpha + beta).lgamma() - (alpha + beta + total).lgamma() - alpha.lgamma() - beta.lgamma()
    return (ways + both + (place + alpha).lgamma() + (rest + beta).lgamma()).masked_fill(~mask, 0)


@torch.no_grad()
def best_durations(log_probs: Tensor, num_characters: Tensor, num_units: Tensor) -> Padded:
    """The most probable monotonic path (Viterbi) through (B, U, C) log-probabilities, as (B, C) int64 durations.

    A path starts at the first character and ends at the last; every unit has one character, and every character at
    least one unit. Among equal paths the one that comes to each character latest counts.

    Args:
        log_probs: of character c at unit u.
        num_characters, num_units: (B,) int64 real sizes of each row.

    Returns:
        Durations that sum to the number of units; of length 0 for a row that has no path.
    """
    device = log_probs.device
    num_characters, num_units = num_characters.to(device), num_units.to(device)
    fits = (num_characters > 0) & (num_units >= num_characters)
    # A character that takes units s .. u scores sums[u] - sums[s - 1]. So the best score of a path that has come to
    # unit u at this character is sums[u] + max over s <= u of (best of the last character at s - 1) - sums[s - 1]: a
    # running maximum, whose index is the unit at which the character began.
    sums = log_probs.double().cumsum(1).transpose(1, 2)
    best = sums[:, 0]
    begins = [torch.zeros_like(best, dtype=torch.int32)]
    for character in range(1, sums.shape[1]):
        enter = pad(best[:, :-1] - sums[:, character, :-1], (1, 0), value=-torch.inf)
        highest, where = enter.cummax(1)
        best = sums[:, character] + highest
        begins.append(where.int())
    durations = torch.zeros(sums.shape[:2], dtype=torch.int64, device=device)
    end = num_units
    for character in range(sums.shape[1] - 1, -1, -1):
        begin = begins[character].gather(1, (end - 1).clamp(min=0)[:, None])[:, 0].long()
        inside = fits & (character < num_characters)
        durations[:, character] = (end - begin) * inside
        end = torch.where(inside, begin, end)
    return Padded(durations, num_characters * fits)
