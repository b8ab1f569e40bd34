"""A discriminator. Letters: B batch, N samples, T steps of a layer, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from voxzoo.components.roles import Discriminator
from voxzoo.components.types import Judgement, Padded


class MineDiscriminator(Discriminator):
    """Strided convolutions over the samples.

    Args:
        channels: C of each layer.
        kernel_size: of the convolutions; odd.
        stride: of the convolutions.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64), kernel_size: int = 15, stride: int = 4) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size, stride, kernel_size // 2) for a, b in zip([1, *channels], channels)
        )
        self.score = nn.Conv1d(channels[-1], 1, 3, padding=1)

    def forward(self, speech: Padded) -> Judgement:
        """(B, N) samples -> scores (B, T, 1), 1 where they are taken for speech, and features (B, T, C) of each layer.

        Each row is judged as if it were alone: padding is zero in front of every layer.
        """
        x, lengths, features = speech.zeroed().data[:, None], speech.lengths, []
        for conv in self.convs:
            lengths = torch.div(lengths - 1, self.stride, rounding_mode="floor") + 1
            layer = Padded(F.leaky_relu(conv(x), 0.1).transpose(1, 2), lengths).zeroed()
            features.append(layer)
            x = layer.data.transpose(1, 2)
        scores = Padded(self.score(x).transpose(1, 2), lengths).zeroed()
        return Judgement((scores,), tuple(features))
