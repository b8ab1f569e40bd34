"""Frame stacking. Letters: B batch, T frames, D model dim."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..limits import at_least
from ..roles import Adaptor
from ..types import Adapted, Padded


class StackAdaptor(Adaptor):
    """Neighbouring states side by side, then one linear layer (as in SLAM-ASR, arXiv 2402.08846).

    L steps become ceil(L / stack); what the last group lacks is zero, so no state is lost.

    Args:
        input_dim: width of the encoder's states.
        output_dim: width of the decoder.
        stack: states per step.
    """

    paper = "SLAM-ASR, arXiv 2402.08846"
    stacks = ()

    def __init__(self, input_dim: int, output_dim: int, stack: int = 8) -> None:
        super().__init__()
        at_least(1, stack=stack)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.stack = stack
        self.projection = nn.Linear(input_dim * stack, output_dim)

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T', output_dim); `text` is not used."""
        data = F.pad(states.zeroed().data, (0, 0, 0, -states.data.shape[1] % self.stack))
        groups = data.unflatten(1, (-1, self.stack)).flatten(2)
        return Adapted(Padded(self.projection(groups), self.output_lengths(states.lengths)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return torch.div(lengths + self.stack - 1, self.stack, rounding_mode="floor")
