"""A codec that works on spectra: frames of an STFT to latents, residual vector quantisation, one inverse STFT back.

Letters: R rows of one length, N samples, T frames of codes, S frames of the spectrum, F frequency bins, D width of the
latents, H width of the networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.convnext import ConvNeXt
from ..layers.residual_quantizer import ResidualQuantizer
from ..layers.stft import STFT
from ..limits import odd
from .latent import LatentCodec

_FLOOR = 1e-3
"""Magnitudes below this are as silence to the encoder: a full-scale tone has about a quarter of the window's length."""
_POWER = 0.3
"""Of the magnitudes that the encoder reads beside their phases."""


class SpectralCodec(LatentCodec):
    """Amplitude and phase of a spectrum by ConvNeXt blocks on both sides of residual quantisation (as APCodec, Ai et
    al. 2024, arXiv 2402.10533; the decoder is that of Vocos, Siuzdak 2023, arXiv 2306.00814, section 3). Mono.

    No layer runs at the rate of the samples: a step of training takes a fraction of EnCodec's, and learns more. Nothing
    is causal: it decodes whole utterances.

    Args:
        sample_rate: Hz.
        num_codebooks: K; a book is log2(codebook_size) * frame_rate bits a second.
        codebook_size: entries of a book.
        dim: D.
        hop_length: samples of a frame of codes.
        frames: S / T, frames of the spectrum to one of codes.
        window_length: samples under the window of the spectrum, a multiple of hop_length / frames.
        width: H.
        hidden_dim: width inside a block.
        encoder_layers, decoder_layers: ConvNeXt blocks; half of the decoder's work at the rate of the codes.
        kernel_size: of their convolutions; odd.
        decay: of the moving averages that the codebooks are, a step.
        dead_share: entries that are used less than this part of an average one start anew.
    """

    paper = "APCodec, arXiv 2402.10533; Vocos, arXiv 2306.00814"
    stacks = ()
    channels = 1

    def __init__(
        self,
        sample_rate: int = 16000,
        num_codebooks: int = 8,
        codebook_size: int = 1024,
        dim: int = 64,
        hop_length: int = 320,
        frames: int = 2,
        window_length: int = 640,
        width: int = 256,
        hidden_dim: int = 768,
        encoder_layers: int = 4,
        decoder_layers: int = 6,
        kernel_size: int = 7,
        decay: float = 0.99,
        dead_share: float = 0.1,
    ) -> None:
        super().__init__()
        odd(kernel_size=kernel_size)
        if num_codebooks < 1 or codebook_size < 2:
            raise ValueError(
                f"num_codebooks={num_codebooks} must be at least 1, codebook_size={codebook_size} at least 2"
            )
        if encoder_layers < 1 or decoder_layers < 2:
            raise ValueError(
                f"encoder_layers={encoder_layers} must be at least 1, decoder_layers={decoder_layers} at least 2"
            )
        if frames < 1 or hop_length % frames:
            raise ValueError(f"hop_length={hop_length} must be a multiple of frames={frames}, which is at least 1")
        self.sample_rate, self.num_codebooks, self.codebook_size, self.dim = (
            sample_rate, num_codebooks, codebook_size, dim
        )  # fmt: skip
        self.hop_length, self.frame_rate = hop_length, sample_rate / hop_length
        self.decay, self.dead_share = decay, dead_share
        stft = STFT(window_length, window_length, hop_length // frames)
        sizes = (frames, dim, width, hidden_dim, kernel_size)
        self.encoder = SpectralEncoder(stft, *sizes, encoder_layers)
        self.decoder = SpectralDecoder(stft, *sizes, decoder_layers)
        self.quantizer = ResidualQuantizer(num_codebooks, codebook_size, dim)


class SpectralEncoder(nn.Module):
    """(R, 1, N) samples -> (R, D, T) latents."""

    def __init__(
        self, stft: STFT, frames: int, dim: int, width: int, hidden_dim: int, kernel_size: int, num_layers: int
    ) -> None:
        super().__init__()
        self.stft, self.frames = stft, frames
        self.embed = nn.Linear(3 * stft.num_bins * frames, width)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvNeXt(width, hidden_dim, kernel_size, 1 / num_layers) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        samples = x[:, 0].float()
        hop = self.stft.hop_length * self.frames
        spectrum = self.stft(nn.functional.pad(samples, (0, -samples.shape[1] % hop)))
        magnitude = spectrum.abs().clamp(min=_FLOOR)
        turned = spectrum / magnitude ** (1 - _POWER)
        seen = torch.cat([0.5 * magnitude.log(), turned.real, turned.imag], -1)
        seen = seen.unflatten(1, (-1, self.frames)).flatten(2).to(self.embed.weight.dtype)
        states = self.embed_norm(self.embed(seen))
        mask = torch.ones_like(states[..., :1])
        for block in self.blocks:
            states = block(states, mask)
        return self.output(self.norm(states)).transpose(1, 2)


class SpectralDecoder(nn.Module):
    """(R, D, T) latents -> (R, 1, N) samples."""

    def __init__(
        self, stft: STFT, frames: int, dim: int, width: int, hidden_dim: int, kernel_size: int, num_layers: int
    ) -> None:
        super().__init__()
        self.stft, self.frames, self.before = stft, frames, num_layers // 2
        self.embed = nn.Conv1d(dim, width, kernel_size, padding=kernel_size // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, width * frames)
        self.blocks = nn.ModuleList(ConvNeXt(width, hidden_dim, kernel_size, 1 / num_layers) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * stft.num_bins)

    def forward(self, x: Tensor) -> Tensor:
        states = self.embed_norm(self.embed(x).transpose(1, 2))
        for number, block in enumerate(self.blocks):
            if number == self.before:
                states = self.spread(states).unflatten(2, (self.frames, -1)).flatten(1, 2)
            states = block(states, torch.ones_like(states[..., :1]))
        magnitude, phase = self.head(self.norm(states)).float().chunk(2, 2)
        # exp begins at 1 for every bin, about a speech-loud noise; the cap is far above any real spectrum.
        spectrum = torch.polar(magnitude.clamp(max=6.0).exp(), phase)
        real = torch.ones(spectrum.shape[:2], dtype=torch.bool, device=spectrum.device)
        return self.stft.inverse(spectrum, real)[:, None]
