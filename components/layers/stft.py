"""A short-time Fourier transform whose frames tile the samples, and its inverse.

Frame t is centred on samples [t * hop, (t + 1) * hop), so T frames stand for exactly T * hop samples: units, frames and
samples stay aligned by integers, and a row that is padded in a batch sees the same zeros as a row alone.

Letters: B batch, T frames, N samples (N = T * hop), F frequency bins, W window length, H hop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class STFT(nn.Module):
    """Hann-window transform; frames of `window_length` samples, zero-extended to `fft_size`.

    Args:
        fft_size: points of the transform; F = fft_size // 2 + 1.
        window_length: samples under the window, a multiple of `hop_length`, at most `fft_size`.
        hop_length: samples from frame to frame.
    """

    window: Tensor

    def __init__(self, fft_size: int, window_length: int, hop_length: int):
        super().__init__()
        if window_length % hop_length or window_length < 2 * hop_length:
            raise ValueError(
                f"window_length={window_length} must be a multiple of hop_length={hop_length}, at least twice as long"
            )
        if fft_size < window_length or fft_size % 2:
            raise ValueError(f"fft_size={fft_size} must be even and at least window_length={window_length}")
        if (window_length - hop_length) % 2:
            raise ValueError(f"window_length={window_length} minus hop_length={hop_length} must be even")
        self.fft_size, self.window_length, self.hop_length = fft_size, window_length, hop_length
        self.num_bins = fft_size // 2 + 1
        self.margin = (window_length - hop_length) // 2
        """Samples that the first frame reaches before sample 0, and the last one beyond N."""
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) samples, N a multiple of the hop -> (B, N // hop, F) complex, zeros assumed outside."""
        return self.inner(functional.pad(samples, (self.margin, self.margin)))

    def inner(self, samples: Tensor) -> Tensor:
        """(B, N + 2 * margin) samples that bring their own context -> (B, N // hop, F) complex."""
        return torch.fft.rfft(samples.unfold(-1, self.window_length, self.hop_length) * self.window, n=self.fft_size)

    def overlap_add(self, frames: Tensor) -> Tensor:
        """(B, T, W) frames -> (B, T * hop) sums."""
        batch, steps, _ = frames.shape
        overlap = self.window_length // self.hop_length
        # (B, T, W) as `overlap` slices of one hop each; slice k of frame t lands on hop t + k.
        out = frames.new_zeros(batch, steps + overlap - 1, self.hop_length)
        for k, part in enumerate(frames.view(batch, steps, overlap, self.hop_length).unbind(2)):
            out[:, k : k + steps] += part
        return out.flatten(1)[:, self.margin : self.margin + steps * self.hop_length]

    def envelope(self, mask: Tensor) -> Tensor:
        """(B, T) bool, True where a frame is real -> (B, T * hop) sum of squared windows, what `inverse` divides by."""
        return self.overlap_add(mask[..., None] * self.window.float().square())

    def inverse(self, spectrum: Tensor, mask: Tensor, envelope: Tensor | None = None) -> Tensor:
        """Least-squares inverse (Griffin and Lim 1984, eq. 6): (B, T, F) complex, (B, T) bool -> (B, T * hop) samples.

        Frames outside `mask` count as absent, and the samples they stand for are zero.
        """
        frames = torch.fft.irfft(spectrum, n=self.fft_size)[..., : self.window_length] * self.window
        samples = self.overlap_add(frames * mask[..., None])
        envelope = self.envelope(mask) if envelope is None else envelope
        samples = samples / envelope.clamp(min=1e-3)
        return samples * mask.repeat_interleave(self.hop_length, 1)
