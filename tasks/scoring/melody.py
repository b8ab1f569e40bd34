"""The melody of speech: fundamental frequency, voicing, and how those of two recordings of one text agree.

F0 is by YIN (de Cheveigne and Kawahara 2002, "YIN, a fundamental frequency estimator for speech and music", steps 1 to
5). Two recordings are aligned by dynamic time warping of cepstra; their F0 and voicing are compared along the path.

Letters: N samples, T frames, U frames of the other recording, L lags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import create_dct, melscale_fbanks

SAMPLE_RATE = 16_000
HOP = 160
LOWEST, HIGHEST = 50.0, 550.0
"""Hz."""
THRESHOLD = 0.15
"""Of YIN's normalised difference: what repeats itself less exactly is not voiced."""
LONGEST_SECONDS = 30.0
"""Longer recordings are not aligned: the table of all pairs of frames grows with the square."""

_WINDOW = 400  # 25 ms, over which samples are compared with those a lag later
_LAGS = (int(SAMPLE_RATE / HIGHEST), math.ceil(SAMPLE_RATE / LOWEST))
_REACH = _WINDOW + _LAGS[1] + 2
_QUIET = 10 ** (-50 / 10)  # power below the loudest frame
_TOGETHER = 2000  # frames
_FEWEST = 10  # frames voiced in both, or there is no melody to compare
_CEPSTRA, _BANDS, _FFT = 13, 40, 512


@dataclass(frozen=True)
class Melody:
    """One recording.

    Attributes:
        f0: (T,) Hz every 10 ms, 0 where it is not voiced.
        cepstra: (T, 12), mean zero, without the first.
    """

    f0: Tensor
    cepstra: Tensor


@dataclass(frozen=True)
class Agreement:
    """Of a recording with a reference.

    Attributes:
        correlation: of log F0 over the frames that are voiced in both; 0 where those are too few or one is flat.
        voicing_error: share of the frames of the reference that are voiced in one of the two alone.
    """

    correlation: float
    voicing_error: float


SIGNATURE = f"yin:{THRESHOLD}|f0:{LOWEST:.0f}-{HIGHEST:.0f}Hz|hop:10ms|aligned:dtw-mfcc{_CEPSTRA - 1}|correlation:log"
"""Everything that changes the numbers, in one line."""


def melody(samples: Tensor) -> Melody | None:
    """Of (N,) samples at 16 kHz; None where there is no sound."""
    samples = samples.detach().to("cpu", torch.float32)
    if samples.dim() != 1:
        raise ValueError(f"an utterance has shape {tuple(samples.shape)}; expected (N,) mono samples")
    if len(samples) < _WINDOW or float(samples.abs().max()) < 1e-3:
        return None
    return Melody(fundamental(samples), _cepstra(samples))


def fundamental(samples: Tensor) -> Tensor:
    """(N,) samples at 16 kHz -> (T,) F0 in Hz every 10 ms, 0 where it is not voiced; T = N // 160 + 1."""
    count = len(samples) // HOP + 1
    padded = torch.nn.functional.pad(samples, (_REACH // 2, _REACH))
    frames = padded.unfold(0, _REACH, HOP)[:count]
    power = frames.square().mean(1)
    loud = power > _QUIET * power.max()
    f0 = torch.cat([_yin(part) for part in frames.split(_TOGETHER)])
    return torch.where(loud, f0, 0.0)


def _yin(frames: Tensor) -> Tensor:
    """(T, window and lags) samples -> (T,) Hz, 0 where no lag repeats well."""
    frames = frames.double()
    last = _LAGS[1] + 1
    # d(lag) = sum over the window of (x[n] - x[n + lag]) ** 2, by one correlation.
    size = 1 << (frames.shape[1] + _WINDOW).bit_length()
    spectra = torch.fft.rfft(frames[:, :_WINDOW], size).conj() * torch.fft.rfft(frames, size)
    products = torch.fft.irfft(spectra, size)[:, : last + 1]
    sums = torch.nn.functional.pad(frames.square().cumsum(1), (1, 0))
    energies = sums[:, _WINDOW : _WINDOW + last + 1] - sums[:, : last + 1]
    difference = (energies[:, :1] + energies - 2 * products).clamp(min=0)
    lags = torch.arange(1, last + 1, dtype=frames.dtype)
    means = difference[:, 1:].cumsum(1) / lags
    # Normalised, lags 1 to `last`.
    curve = torch.where(means > 0, difference[:, 1:] / means.clamp(min=1e-12), 1.0)
    here, before, behind = curve[:, 1:-1], curve[:, :-2], curve[:, 2:]
    dips = (here < THRESHOLD) & (here <= behind) & (here < before)
    dips[:, : _LAGS[0] - 2] = False
    found, place = dips.max(1)
    rows = torch.arange(len(frames))
    left, middle, right = (part[rows, place] for part in (before, here, behind))
    bend = (left - 2 * middle + right).clamp(min=1e-12)
    lag = place + 2 + (0.5 * (left - right) / bend).clamp(-1, 1)
    return torch.where(found, SAMPLE_RATE / lag, 0.0).float()


def _cepstra(samples: Tensor) -> Tensor:
    """(N,) samples -> (T, 12)"""
    bands = melscale_fbanks(_FFT // 2 + 1, 0.0, 8000.0, _BANDS, SAMPLE_RATE)
    padded = torch.nn.functional.pad(samples, (_FFT // 2, _FFT // 2))
    spectrum = torch.stft(
        padded, _FFT, HOP, window=torch.hann_window(_FFT), center=False, return_complex=True
    )  # fmt: skip
    mels = (spectrum.abs().square().T @ bands).clamp(min=1e-8).log()
    found = (mels @ create_dct(_CEPSTRA, _BANDS, "ortho"))[:, 1:]
    return found - found.mean(0)


def agreement(ours: Melody, reference: Melody) -> Agreement | None:
    """Of T frames with U of the reference; None where one is longer than 30 s, or the reference is not voiced.

    Each frame of the reference counts once, with the frame of ours in the middle of those it is aligned to.
    """
    longest = max(len(ours.f0), len(reference.f0)) * HOP / SAMPLE_RATE
    if longest > LONGEST_SECONDS + 0.1 or not bool((reference.f0 > 0).any()):
        return None
    places = align(torch.cdist(reference.cepstra, ours.cepstra).numpy())
    a, b = ours.f0[torch.from_numpy(places)], reference.f0
    voiced = (a > 0) & (b > 0)
    error = float(((a > 0) != (b > 0)).float().mean())
    return Agreement(_correlation(a[voiced].log(), b[voiced].log()), error)


def _correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < _FEWEST:
        return 0.0
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = float(a.norm() * b.norm())
    # A flat melody has rounding alone.
    if min(float(a.norm()), float(b.norm())) < 1e-3 * math.sqrt(len(a)):
        return 0.0
    return max(-1.0, min(1.0, float(a @ b) / scale))


def align(costs: np.ndarray) -> np.ndarray:
    """(U, T) costs of pairs -> (U,) for each row the column in the middle of those that the cheapest path meets there.

    Dynamic time warping (Sakoe and Chiba 1978) by steps of one row, one column or both, along anti-diagonals.
    """
    rows, columns = costs.shape
    steps = np.zeros((rows, columns), np.uint8)
    # Totals by row on the last two anti-diagonals; place 0 is the edge.
    older, old = (np.full(rows + 1, np.inf, np.float32) for _ in range(2))
    for total in range(rows + columns - 1):
        low, high = max(0, total - columns + 1), min(rows, total + 1)
        row = np.arange(low, high)
        ways = np.stack([older[low:high], old[low:high], old[low + 1 : high + 1]])  # both, a row, a column
        if total == 0:
            ways[0] = 0.0
        step = ways.argmin(0)
        now = np.full(rows + 1, np.inf, np.float32)
        now[low + 1 : high + 1] = costs[row, total - row] + ways[step, np.arange(len(row))]
        steps[row, total - row] = step
        older, old = old, now
    first, last = np.zeros(rows, np.int64), np.full(rows, -1)
    row, column = rows - 1, columns - 1
    while row >= 0:
        last[row] = max(last[row], column)
        first[row] = column
        step = steps[row, column]
        row, column = row - (step < 2), column - (step != 1)
        if column < 0:
            break
    return (first + last) // 2
