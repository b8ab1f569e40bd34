"""Log-mel spectrogram of Whisper. Letters: N samples, T frames, F mel bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError
from ..limits import at_least
from ..roles import Frontend

_RATE = 16000
_WINDOW, _HOP = 400, 160
_FLOOR = 1e-10
_SPAN = 8.0  # what lies further below the peak, in powers of ten, is cut off


class WhisperLogMel(Frontend):
    """Log-mel power spectrogram as Whisper reads it (Radford et al. 2022, arXiv 2212.04356, section 2.2).

    Windows of 25 ms centred on every tenth millisecond, with reflection at the edges; power; mel bands of unit area up
    to 8 kHz; log10, at most 8 below the peak of the clip; then (x + 4) / 4. The window behind the last hop is dropped,
    so T = N // 160.

    Args:
        num_mel_bins: F; 80, and 128 for large-v3.
        pad_seconds: clips are filled up with zeros to this length, as Whisper was trained: always 30 s, of which the
            encoder and what attends to it see all. None: the clip alone, far less to compute for short ones, for models
            that learn to read it. Whisper's own decoder, as published, repeats itself where no silence follows.
        output_dim: must be num_mel_bins where given; a place for configs to interpolate widths from.
    """

    sample_rate = _RATE

    def __init__(self, num_mel_bins: int = 80, pad_seconds: float | None = 30.0, output_dim: int | None = None) -> None:
        at_least(1, num_mel_bins=num_mel_bins)
        if pad_seconds is not None and pad_seconds * _RATE <= _WINDOW // 2:
            raise ValueError(f"pad_seconds must be at least 0.02, or null for no padding; got {pad_seconds}")
        if output_dim is not None and output_dim != num_mel_bins:
            raise ValueError(f"output_dim must be num_mel_bins={num_mel_bins}; got {output_dim}. Leave it out")
        self.num_mel_bins = num_mel_bins
        self.pad_seconds = self.longest_seconds = pad_seconds
        self.output_dim = num_mel_bins
        self._window: Tensor | None = None
        self._filters: Tensor | None = None

    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) samples in -1..1 at 16 kHz -> (T, F) float32.

        Raises:
            UserError: the clip is longer than `pad_seconds`.
        """
        if waveform.dim() != 1:
            raise ValueError(
                f"WhisperLogMel takes one channel of shape (N,); got {tuple(waveform.shape)}. Average or pick a channel"
            )
        steps = self.output_length(len(waveform))
        if not steps:
            return waveform.new_zeros(0, self.output_dim, dtype=torch.float32)
        samples = waveform.float()
        # Reflection needs more samples than it reflects; zeros beyond a short clip change its frames little.
        target = _WINDOW // 2 + 1 if self.pad_seconds is None else self._padded
        samples = pad(samples, (0, max(target - len(samples), 0)))
        if self._window is None or self._filters is None or self._window.device != samples.device:
            with torch.inference_mode(False):
                self._window = torch.hann_window(_WINDOW, device=samples.device)
                self._filters = _filters(self.num_mel_bins).to(samples.device)
        spectrum = torch.stft(samples, _WINDOW, _HOP, window=self._window, return_complex=True)
        power = spectrum[:, :steps].abs() ** 2
        bands = (self._filters @ power).clamp(min=_FLOOR).log10()
        bands = torch.maximum(bands, bands.max() - _SPAN)
        return ((bands + 4) / 4).T.contiguous()

    def output_length(self, num_samples: int) -> int:
        """Exact T of N samples.

        Raises:
            UserError: more than `pad_seconds`.
        """
        if self.pad_seconds is None:
            return num_samples // _HOP
        if num_samples > self._padded:
            raise UserError(
                f"a clip of {num_samples / _RATE:.2f} s, but frontend.pad_seconds={self.pad_seconds:g} is the longest "
                "there is: cut it (voxzoo translate and evaluate do), leave it out (data.max_seconds), or set "
                "frontend.pad_seconds=null"
            )
        return self._padded // _HOP

    @property
    def _padded(self) -> int:
        assert self.pad_seconds is not None
        return round(self.pad_seconds * _RATE)

    @property
    def fingerprint(self) -> str:
        length = "clip" if self.pad_seconds is None else f"{self.pad_seconds:g}s"
        return f"whisper1-{self.num_mel_bins}-{length}"


def _filters(num_mel_bins: int) -> Tensor:
    """(F, bins) float32: triangles of unit area on the scale of Slaney's Auditory Toolbox, linear up to 1 kHz, then
    logarithmic. In double precision: in single, the narrow ones of 128 bands are off in the fifth digit."""
    linear, steps, log_step = 200 / 3, 15.0, math.log(6.4) / 27
    top = steps + math.log(_RATE / 2 / 1000) / log_step
    mels = torch.linspace(0, top, num_mel_bins + 2, dtype=torch.float64)
    edges = torch.where(mels < steps, mels * linear, 1000 * torch.exp(log_step * (mels - steps)))
    bins = torch.linspace(0, _RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64)
    width = edges.diff()[:, None]
    distance = bins - edges[:, None]
    rising, falling = distance[:-2] / width[:-1], -distance[2:] / width[1:]
    area = 2 / (edges[2:] - edges[:-2])
    return (torch.minimum(rising, falling).clamp(min=0) * area[:, None]).float()
