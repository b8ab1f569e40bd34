"""A length adaptor. Letters: B batch, T steps, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from voxzoo.components.roles import Adaptor
from voxzoo.components.types import Adapted, Padded


class MineAdaptor(Adaptor):
    """Neighbouring states side by side, then two linear layers: L steps become ceil(L / stack).

    Args:
        input_dim: width of the encoder's states; the YAML takes it from `speech_encoder.dim`.
        output_dim: width of the decoder; the YAML takes it from `text_seq2seq.dim`.
        stack: states per step.
    """

    def __init__(self, input_dim: int, output_dim: int, stack: int = 2) -> None:
        super().__init__()
        if stack < 1:
            raise ValueError(f"stack must be at least 1; got {stack}")
        self.input_dim, self.output_dim, self.stack = input_dim, output_dim, stack
        self.first = nn.Linear(input_dim * stack, output_dim)
        self.second = nn.Linear(output_dim, output_dim)

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T', output_dim); `text` (B, S) is for adaptors that bring a loss (`Adapted.losses`).

        What stands behind a row's length must not change what comes out: it is zeroed before steps are mixed.
        """
        data = F.pad(states.zeroed().data, (0, 0, 0, -states.data.shape[1] % self.stack))
        groups = data.unflatten(1, (-1, self.stack)).flatten(2)  # (B, T', stack * input_dim)
        return Adapted(Padded(self.second(F.gelu(self.first(groups))), self.output_lengths(states.lengths)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 -> (B,) int64, in whole numbers alone: batches are planned by it."""
        return torch.div(lengths + self.stack - 1, self.stack, rounding_mode="floor")
