"""Strided convolutions. Letters: B batch, T frames, D model dim."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.convolution import conv_lengths
from ..layers.dropout import Dropout
from ..layers.steps import refuse_no_steps
from ..limits import at_least
from ..roles import Adaptor
from ..types import Adapted, Padded


class ConvAdaptor(Adaptor):
    """A stack of strided convolutions with GLU behind the encoder (the length adaptor of Li et al. 2021,
    arXiv 2010.12829; the same layers stand before the encoder in Synnaeve et al. 2019, arXiv 1911.08460).

    A layer turns L steps into floor((L + 2 (kernel // 2) - kernel) / stride) + 1.

    Args:
        input_dim: width of the encoder's states.
        output_dim: width of the decoder.
        kernel_size, stride: of each convolution.
        num_layers: convolutions.
        hidden_dim: width between them; None: `output_dim`.
        dropout: after each convolution.
        final_norm: layer norm at the end.
    """

    paper = "Li et al. 2021, arXiv 2010.12829"
    stacks = ()

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int = 5,
        stride: int = 2,
        num_layers: int = 3,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, kernel_size=kernel_size, stride=stride, num_layers=num_layers)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.kernel_size = kernel_size
        self.stride = stride
        widths = [input_dim, *[hidden_dim or output_dim] * (num_layers - 1), output_dim]
        self.convs = nn.ModuleList(
            nn.Conv1d(width, 2 * following, kernel_size, stride, kernel_size // 2)
            for width, following in pairwise(widths)
        )
        self.dropout = Dropout(dropout)
        self.final_norm = nn.LayerNorm(output_dim) if final_norm else None

    def forward(self, states: Padded, text: Padded | None = None) -> Adapted:
        """(B, T, input_dim) -> (B, T', output_dim); `text` is not used."""
        refuse_no_steps(self, states, "the encoder gave no states")
        for conv in self.convs:
            data = F.glu(conv(states.zeroed().data.transpose(1, 2)), dim=1).transpose(1, 2)
            states = Padded(self.dropout(data), self._shorter(states.lengths))
        if self.final_norm is not None:
            states = states.with_data(self.final_norm(states.data))
        return Adapted(states)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for _ in self.convs:
            lengths = self._shorter(lengths)
        return lengths

    def _shorter(self, lengths: Tensor) -> Tensor:
        return conv_lengths(lengths, self.kernel_size, self.stride, self.kernel_size // 2)
