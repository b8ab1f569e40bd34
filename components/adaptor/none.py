"""No change of length. Letters: B batch, T frames."""

from __future__ import annotations

from torch import Tensor, nn

from ..roles import Adaptor
from ..types import Adapted, Padded


class NoAdaptor(Adaptor):
    """The states as they are; a linear layer only where the widths differ. The baseline of an adaptor ablation.

    Args:
        input_dim: width of the encoder's states.
        output_dim: width of the decoder.
    """

    stacks = ()

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.projection = nn.Linear(input_dim, output_dim) if input_dim != output_dim else nn.Identity()

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T, output_dim); `text` is not used."""
        return Adapted(states.with_data(self.projection(states.data)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths
