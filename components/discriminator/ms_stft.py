"""The multi-scale STFT discriminator of EnCodec. Letters: B batch, N samples, T frames, F frequencies, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from ..layers.precision import without_autocast
from ..roles import Discriminator
from ..types import Judgement, Padded


class MSSTFTDiscriminator(Discriminator):
    """Two-dimensional convolutions over complex spectra of several windows (Defossez et al. 2022, arXiv 2210.13438,
    section 3.4). The defaults are the published sizes.

    The hop is a quarter of the window. Frames tile a row from its first sample, with zeros outside; rows of unequal
    length are judged as if each were alone.

    Args:
        windows: length of the window, and of the transform, of each scale; multiples of 4.
        channels: C of all layers but the last.
        dilations: in time, of the convolutions that halve the frequencies.
        slope: of the leaky ReLUs.
    """

    paper = "EnCodec, arXiv 2210.13438, section 3.4"

    def __init__(
        self,
        windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        channels: int = 32,
        dilations: Sequence[int] = (1, 2, 4),
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        if not windows or any(window < 8 or window % 4 for window in windows):
            raise ValueError(f"windows={list(windows)} must be multiples of 4, of at least 8, and at least one of them")
        self.scales = nn.ModuleList(_Scale(window, channels, dilations, slope) for window in windows)

    def forward(self, speech: Padded) -> Judgement:
        """(B, N) samples -> of each scale scores (B, T, F') and features (B, T, F'', C) of its layers."""
        samples = speech.zeroed().data
        scores, features = [], []
        for scale in self.scales:
            made = scale(samples, speech.lengths)
            scores.append(made[-1].with_data(made[-1].data[..., 0]))
            features += made[:-1]
        return Judgement(tuple(scores), tuple(features))


class _Scale(nn.Module):
    window: Tensor

    def __init__(self, window: int, channels: int, dilations: Sequence[int], slope: float) -> None:
        super().__init__()
        self.length, self.hop, self.slope = window, window // 4, slope
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        convs = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        convs += [nn.Conv2d(channels, channels, (3, 9), (1, 2), (dilation, 4), (dilation, 1)) for dilation in dilations]
        convs += [nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)]
        self.convs = nn.ModuleList(weight_norm(conv) for conv in convs)

    def forward(self, samples: Tensor, lengths: Tensor) -> list[Padded]:
        """(B, N), zero beyond their lengths -> (B, T, F, C) of each layer; the last one is the scores."""
        steps = (lengths + self.hop - 1) // self.hop
        count = -(-samples.shape[1] // self.hop)
        left = (self.length - self.hop) // 2
        right = (count - 1) * self.hop + self.length - left - samples.shape[1]
        with without_autocast(samples.device.type):
            frames = functional.pad(samples.float(), (left, max(right, 0))).unfold(-1, self.length, self.hop)[:, :count]
            window = self.window.float()
            spectrum = torch.fft.rfft(frames * window) / window.square().sum().sqrt()
            x = torch.stack([spectrum.real, spectrum.imag], 1)  # (B, 2, T, F)
        x = x.to(self.convs[0].bias.dtype)  # pyright: ignore
        real = (torch.arange(count, device=x.device) < steps.to(x.device)[:, None])[:, None, :, None]
        ragged = bool((lengths != samples.shape[1]).any())
        x = x * real if ragged else x
        made = []
        for number, conv in enumerate(self.convs):
            x = conv(x)
            if number < len(self.convs) - 1:
                x = functional.leaky_relu(x, self.slope, inplace=True)
            x = x * real if ragged else x
            made.append(Padded(x.permute(0, 2, 3, 1), steps))
        return made
