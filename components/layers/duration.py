"""Duration predictor of text-to-unit models and unit vocoders. Letters: B batch, U units, D model dim, H hidden dim."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ..limits import odd
from ..types import Loss, Padded
from .dropout import Dropout

LONGEST = 10_000
"""Steps of one unit: 200 s of the 20 ms of published units. A predictor that runs away asks for no more memory."""
CHARACTER_STEPS, UNIT_STEPS, SPARE_STEPS = 50, 20, 500
"""Steps of a row at most: so many for each character or unit that it has, and 500 more, 10 s. Speech has 3 or 4 for a
character, and 1 to 3 for a unit; silence has its room in the 500."""


class DurationPredictor(nn.Module):
    """Two convolutions and a projection that give log(1 + duration) of each unit.

    FastSpeech 2 (arXiv 2006.04558, section 2.3): conv, ReLU, layer norm, dropout, twice, then a linear map. Padded
    steps are zero before each convolution, so a row alone and in a batch gives the same.

    Args:
        dim: D of the states.
        hidden_dim: H between the convolutions.
        kernel_size: width of both; odd.
        dropout: after each layer norm.
    """

    def __init__(self, dim: int, hidden_dim: int = 256, kernel_size: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        odd(duration_kernel_size=kernel_size)
        padding = kernel_size // 2
        self.conv1 = nn.Conv1d(dim, hidden_dim, kernel_size, padding=padding)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.conv2 = nn.Conv1d(hidden_dim, hidden_dim, kernel_size, padding=padding)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.proj = nn.Linear(hidden_dim, 1)

    def forward(self, states: Padded) -> Padded:
        """(B, U, D) -> (B, U) log(1 + duration)."""
        x = states.zeroed().data.transpose(1, 2)
        x = self.dropout(self.norm1(relu(self.conv1(x)).transpose(1, 2)))
        x = states.with_data(x).zeroed().data.transpose(1, 2)
        x = self.dropout(self.norm2(relu(self.conv2(x)).transpose(1, 2)))
        return states.with_data(self.proj(x)[..., 0])

    def loss(self, states: Padded, durations: Padded) -> Loss:
        """Squared error in log(1 + duration), summed over real units: (B, U, D) states, (B, U) int64 durations."""
        mask = durations.mask
        error = self(states).data.float() - torch.log1p(durations.data.float())
        return Loss(error.square().masked_fill(~mask, 0).sum(), mask.sum())

    def predict(self, states: Padded, factor: float = 1.0, each: int = UNIT_STEPS) -> Padded:
        """(B, U, D) -> (B, U) int64 durations, at least 1, 0 beyond the length.

        Args:
            states: what stands for each unit.
            factor: multiplies the predicted duration before rounding: above 1 is slower speech. Half rounds to even.
            each: as in `bound_rows`.
        """
        return bound_rows(states.with_data(round_durations(self(states).data, factor)), factor, each)


def round_durations(log_durations: Tensor, factor: float = 1.0) -> Tensor:
    """log(1 + duration) of any shape -> int64 round(duration * factor), at least 1 and at most `LONGEST`; 1 for NaN."""
    durations = torch.expm1(log_durations.float()) * factor
    return durations.round().nan_to_num(nan=1, posinf=LONGEST).clamp(1, LONGEST).long()


def bound_rows(durations: Padded, factor: float = 1.0, each: int = UNIT_STEPS) -> Padded:
    """(B, U) int64 durations -> the same, 0 beyond the length. Where the sum of a row is beyond `each` for what it has,
    and `SPARE_STEPS`, the longest of it are cut to an equal share of that, and a warning says so. All others stay.

    Args:
        factor: that they were multiplied by: slower speech may be so much longer.
        each: steps on average at most: `CHARACTER_STEPS` or `UNIT_STEPS`.
    """
    durations = durations.zeroed()
    if durations.data.is_meta:
        return durations
    count = durations.lengths.to(durations.data.device)
    most = ((each * count + SPARE_STEPS) * max(factor, 1.0)).long()
    over = durations.data.sum(1) > most
    if not bool(over.any()):
        return durations
    sums = durations.data.sum(1)
    row = int(sums.masked_fill(~over, 0).argmax())
    warnings.warn(
        f"durations ran away in {int(over.sum())} of {len(over)} rows and were cut: {int(sums[row])} steps for "
        f"{int(count[row])} {'characters' if each == CHARACTER_STEPS else 'units'}, at most {int(most[row])} are "
        "spoken; the model is not trained enough, or is broken",
        RuntimeWarning,
        stacklevel=3,
    )
    share = torch.where(over, most // count.clamp(min=1), LONGEST)
    return durations.with_data(torch.minimum(durations.data, share[:, None]))
