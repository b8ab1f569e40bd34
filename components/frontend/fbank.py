"""Kaldi log-mel filter banks, standardised per utterance and stacked. Letters: N samples, n frames, T steps,
F features."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from ..limits import at_least
from ..roles import Frontend

# 16-bit full scale: Kaldi reads samples as integers.
_FULL_SCALE = 2.0**15
_FRAME_MS, _SHIFT_MS = 25.0, 10.0


class Fbank(Frontend):
    """Log-mel filter banks as SeamlessM4T and w2v-BERT 2.0 read them (arXiv 2308.11596).

    Frames of 25 ms every 10 ms without padding at the edges, so n = 1 + (N - window) // shift; DC removed, pre-emphasis
    0.97, Povey window, no dither, log. Each bin is brought to mean 0 and (unbiased) variance 1 over all n frames of the
    utterance, then `stack` neighbouring frames become one step, the first frame in the lowest channels. The last n mod
    `stack` frames are dropped (the reference pads them and masks the step: the real steps are the same), hence
    T = n // stack. One frame, whose variance is undefined, and silence become zeros. Clips too short for one step give
    (0, F).

    Args:
        sample_rate: samples per second of the waveforms.
        num_mel_bins: filters per frame.
        stack: frames per step (1: 10 ms steps, 2: 20 ms, 4: 40 ms).
        standardise: mean 0 and variance 1 per utterance and bin.
        variance_floor: added to the variance before the root: 1e-7 in transformers, which turns silence into zeros; 0
            in the original code, where silence is NaN.
        low_freq, high_freq: Hz, edges of the filter bank; `high_freq` None is half the sample rate.
        output_dim: must be num_mel_bins x stack where given; a place for configs to interpolate widths from.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        num_mel_bins: int = 80,
        stack: int = 2,
        standardise: bool = True,
        low_freq: float = 20.0,
        high_freq: float | None = None,
        output_dim: int | None = None,
        variance_floor: float = 1e-7,
    ) -> None:
        at_least(1, sample_rate=sample_rate, num_mel_bins=num_mel_bins, stack=stack)
        top = sample_rate / 2 if high_freq is None else high_freq
        if not 0 <= low_freq < top <= sample_rate / 2:
            raise ValueError(
                f"the filter bank needs 0 <= low_freq < high_freq <= {sample_rate / 2:g} Hz; "
                f"got {low_freq:g} and {top:g}"
            )
        if output_dim is not None and output_dim != num_mel_bins * stack:
            raise ValueError(
                f"output_dim must be num_mel_bins x stack = {num_mel_bins} x {stack} = {num_mel_bins * stack}; "
                f"got {output_dim}. Leave it out, or change num_mel_bins or stack"
            )
        self.sample_rate = sample_rate
        self.num_mel_bins = num_mel_bins
        self.stack = stack
        self.standardise = standardise
        self.variance_floor = variance_floor
        if standardise and not variance_floor:
            self.exempt = {"silence": "variance_floor=0: silence is NaN, as in the original code"}
        self.low_freq = low_freq
        self.high_freq = top
        self.output_dim = num_mel_bins * stack
        self._window = int(sample_rate * _FRAME_MS * 0.001)
        self._shift = int(sample_rate * _SHIFT_MS * 0.001)

    def __call__(self, waveform: Tensor) -> Tensor:
        """(N,) samples in -1..1 -> (T, num_mel_bins x stack) float32."""
        if waveform.dim() != 1:
            raise ValueError(
                f"Fbank takes one channel of shape (N,); got {tuple(waveform.shape)}. Average or pick a channel"
            )
        steps = self.output_length(len(waveform))
        if not steps:
            return waveform.new_zeros(0, self.output_dim, dtype=torch.float32)
        frames = kaldi.fbank(
            waveform.float()[None] * _FULL_SCALE,
            sample_frequency=float(self.sample_rate),
            num_mel_bins=self.num_mel_bins,
            frame_length=_FRAME_MS,
            frame_shift=_SHIFT_MS,
            low_freq=self.low_freq,
            high_freq=self.high_freq,
        )
        if self.standardise:
            # One frame has no unbiased variance: with correction 0 it is zero, and so are the features.
            variance, mean = torch.var_mean(frames, dim=0, correction=min(1, len(frames) - 1))
            frames = (frames - mean) / (variance + self.variance_floor).sqrt()
        return frames[: steps * self.stack].reshape(steps, self.output_dim)

    def output_length(self, num_samples: int) -> int:
        """Exact T of N samples: 0 where the clip is too short for one step."""
        if num_samples < self._window:
            return 0
        return (1 + (num_samples - self._window) // self._shift) // self.stack

    @property
    def fingerprint(self) -> str:
        kind = "std" if self.standardise else "raw"
        if self.variance_floor != 1e-7:
            kind += f"{self.variance_floor:g}"
        return f"fbank1-{self.sample_rate}-{self.num_mel_bins}x{self.stack}-{self.low_freq:g}-{self.high_freq:g}-{kind}"
