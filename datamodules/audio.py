"""Reading audio: one error line per bad file. Letters: N samples."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from ..components.errors import UserError

SAMPLE_RATE = 16000
MIN_SECONDS = 0.025
"""One analysis window: less than this has no frame."""
_SILENT = 10 ** (-60 / 20)
_CLIPPED = 0.999
_UNKNOWN = 0x7F000000  # the length that programs write into a pipe is this or more
_SLACK = 0.1  # seconds: some programs count the header in


class AudioError(UserError):
    """A file that cannot be used as speech."""


@dataclass(frozen=True)
class Level:
    """How loud a waveform is.

    Attributes:
        peak: largest magnitude, 1 is full scale.
        silent: the peak is below -60 dB of full scale.
        clipped: more than one sample in a thousand stands at full scale.
    """

    peak: float
    silent: bool
    clipped: bool


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Read wav, flac, ogg, opus or mp3 as (N,) float32 mono at `sample_rate`; channels are averaged.

    Raises:
        AudioError: the file is missing, cannot be read, is empty, is cut off (wav and aiff say so), holds numbers that
            are not finite, or is shorter than 25 ms.
    """
    waveform, rate = read_audio(path)
    return resample(waveform, rate, sample_rate)


def read_audio(path: str | Path) -> tuple[Tensor, int]:
    """Like `load_audio`, at the file's own rate: (N,) samples and the rate."""
    _require(path)
    try:
        with soundfile.SoundFile(path) as file:
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            share = _share_there(file.extra_info)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({_reason(error)}); convert it to wav or flac") from None
    if len(samples) == 0:
        raise AudioError(f"{path}: the audio is empty")
    seconds = len(samples) / rate
    if seconds / share - seconds > _SLACK:
        raise AudioError(
            f"{path}: the file is cut off: {seconds:.1f} s of the {seconds / share:.1f} s that its header promises are "
            "there; copy or convert it again"
        )
    if len(samples) < MIN_SECONDS * rate:
        raise AudioError(f"{path}: {1000 * len(samples) / rate:.1f} ms of audio; expected at least 25 ms")
    waveform = torch.from_numpy(samples)
    waveform = waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(1)
    if not torch.isfinite(waveform).all():
        raise AudioError(f"{path}: the audio holds samples that are not finite numbers")
    return waveform, rate


def audio_seconds(path: str | Path) -> float:
    """Seconds of a file, from its header. Raises AudioError where it is missing or unreadable."""
    _require(path)
    try:
        about = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({_reason(error)}); convert it to wav or flac") from None
    return about.frames / about.samplerate


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """(N,) at `rate` -> (ceil(N * new_rate / rate),) at `new_rate`."""
    return waveform if rate == new_rate else _resampler(rate, new_rate)(waveform)


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """Play (N,) samples `factor` times as fast, pitch included (Ko et al. 2015): about N / factor samples."""
    if factor == 1:
        return waveform
    rate = round(1000 * factor)
    shared = math.gcd(rate, 1000)
    return resample(waveform, rate // shared, 1000 // shared)


def level(waveform: Tensor) -> Level:
    """Measure (N,) samples."""
    magnitude = waveform.abs()
    peak = float(magnitude.max())
    return Level(peak, peak < _SILENT, float((magnitude >= _CLIPPED).float().mean()) > 1e-3)


def _require(path: str | Path) -> None:
    if Path(path).is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file")
    if not Path(path).is_file():
        raise AudioError(f"{path}: no such audio file")
    if not Path(path).stat().st_size:
        raise AudioError(f"{path}: the audio is empty")


def _share_there(log: str) -> float:
    """How much of the bytes that a wav or aiff file promises is there, by what libsndfile says of its header; 1 where
    the header was written before the length was known (by a pipe)."""
    found = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", log)
    promised, there = (int(found[1]), int(found[2])) if found else (1, 1)
    return 1.0 if promised >= _UNKNOWN or promised <= there else there / promised


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip(" .") or type(error).__name__


@lru_cache(maxsize=32)
def _resampler(rate: int, new_rate: int) -> Resample:
    return Resample(rate, new_rate)
