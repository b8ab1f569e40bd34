"""Source speech as it comes in harder conditions: noise at a signal-to-noise ratio, codecs, a narrow band.

Letters: N samples.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from ...components.errors import UserError
from ...datamodules.audio import AudioError, AudioFiles, resample
from .choices import CODECS, MADE_NOISES
from .translator import AUDIO_SUFFIXES

_TELEPHONE = 8000
_TALKERS = 6
"""Voices of babble: fewer are understood, more become noise."""
_TRIES = 20


class Condition(ABC):
    """What becomes of source speech.

    Attributes:
        name: of its column.
        signature: all that changes what comes out.
    """

    name: str
    signature: str

    @abstractmethod
    def __call__(self, waveform: Tensor, sample_rate: int, key: str) -> Tensor:
        """(N,) samples -> (N,) samples. `key` says which utterance it is, and so which noise it gets, always the
        same."""


class DistortedAudio(AudioFiles):
    """Reads what another reads, in a condition."""

    def __init__(self, files: AudioFiles, condition: Condition) -> None:
        self.files, self.condition = files, condition

    def load(self, audio: str, sample_rate: int) -> Tensor:
        return self.condition(self.files.load(audio, sample_rate), sample_rate, Path(audio).name)

    def seconds(self, audio: str) -> float:
        return self.files.seconds(audio)


class Noise(Condition):
    """Noise added at a signal-to-noise ratio.

    The ratio is that of the mean powers of the whole utterance and of what is added to it, exactly. The sum is not
    clipped. One utterance gets the same stretch of noise at every ratio; a silent one gets none.

    Args:
        kind: `white`, `pink` (power falls by 3 dB an octave) or `babble` (six other utterances at once, equally loud);
            or a folder of recordings, of each utterance a stretch of one.
        snr: decibels.
        others: files whose speech babble is made of.
        files: reads them.
        seed: of the draws.
    """

    def __init__(
        self, kind: str, snr: float, others: Sequence[str] = (), files: AudioFiles | None = None, seed: int = 1
    ) -> None:
        self.kind, self.snr, self.seed, self._files = kind, snr, seed, files or AudioFiles()
        label = kind if kind in MADE_NOISES else Path(kind).name
        self.name, self.signature = f"{label} {snr:g} dB", f"noise:{label}|snr:{snr:g}|seed:{seed}"
        self._sources = sorted(others) if kind == "babble" else [] if kind in MADE_NOISES else _recordings(kind)
        if kind == "babble" and len(self._sources) < 2:
            raise UserError("--noise babble: is made of other utterances of the split, and there is one alone")

    def __call__(self, waveform: Tensor, sample_rate: int, key: str) -> Tensor:
        power = float(waveform.double().square().mean())
        if power == 0:
            return waveform
        noise = self._stretch(len(waveform), sample_rate, key)
        gain = (power / float(noise.square().mean()) / 10 ** (self.snr / 10)) ** 0.5
        return (waveform.double() + gain * noise).to(waveform.dtype)

    def _stretch(self, count: int, sample_rate: int, key: str) -> Tensor:
        """(N,) float64, not silent."""
        digest = hashlib.sha256(f"{self.seed}|{self.kind}|{key}".encode()).digest()
        generator = np.random.default_rng(list(digest))
        if self.kind == "white":
            return torch.from_numpy(generator.standard_normal(count))
        if self.kind == "pink":
            return torch.from_numpy(_pink(generator.standard_normal(count)))
        if self.kind == "babble":
            return self._babble(count, sample_rate, key, generator)
        name = ""
        for _ in range(_TRIES):
            name = self._sources[int(generator.integers(len(self._sources)))]
            stretch = _cut(_load(self._files, name, sample_rate).double(), count, generator)
            if float(stretch.square().mean()) > 0:
                return stretch
        raise UserError(f"--noise {self.kind}: {_TRIES} stretches in a row are silent, the last of {name}")

    def _babble(self, count: int, sample_rate: int, key: str, generator: np.random.Generator) -> Tensor:
        others = [name for name in self._sources if Path(name).name != key] or self._sources
        total = torch.zeros(count, dtype=torch.float64)
        for place in generator.choice(len(others), size=min(_TALKERS, len(others)), replace=False):
            try:
                voice = _load(self._files, others[place], sample_rate).double()
            except AudioError:
                continue  # said where it is served itself
            voice = _cut(voice, count, generator)
            total += voice / voice.square().mean().sqrt().clamp(min=1e-9)
        if float(total.square().mean()) == 0:
            raise UserError("--noise babble: the utterances that it is made of are silent")
        return total


class Codec(Condition):
    """Through a codec or a narrow band and back, at the rate and length of before.

    Args:
        kind: `mp3` and `opus` (variable rate, about 32 kbit/s of speech), `opus-low` (about 10 kbit/s), `narrowband`
            (8 kHz, so nothing above 4 kHz), `mulaw` (8 kHz and 8 bits of mu-law: a telephone line, ITU-T G.711).

    Raises:
        UserError: what is installed cannot write it.
    """

    def __init__(self, kind: Literal["mp3", "opus", "opus-low", "narrowband", "mulaw"]) -> None:
        if kind not in CODECS:
            raise UserError(f"--codec {kind}: expected some of {', '.join(CODECS)}")
        self.kind = self.name = kind
        library = "" if kind == "narrowband" else f"|libsndfile:{soundfile.__libsndfile_version__}"
        self.signature = f"codec:{kind}{library}"
        try:
            self(torch.zeros(1600), 16000, "")
        except (soundfile.LibsndfileError, ValueError) as error:
            raise UserError(f"--codec {kind}: the installed libsndfile cannot write it ({error})") from None

    def __call__(self, waveform: Tensor, sample_rate: int, key: str) -> Tensor:
        there, rate = waveform, sample_rate
        if self.kind in ("narrowband", "mulaw"):
            there, rate = resample(waveform, sample_rate, _TELEPHONE), _TELEPHONE
        if self.kind == "mp3":
            there = _through(there, rate, format="MP3", subtype="MPEG_LAYER_III")
        elif self.kind == "opus":
            there = _through(there, rate, format="OGG", subtype="OPUS")
        elif self.kind == "opus-low":
            there = _through(there, rate, format="OGG", subtype="OPUS", compression_level=1.0)
        elif self.kind == "mulaw":
            there = _through(there, rate, format="WAV", subtype="ULAW")
        there = resample(there, rate, sample_rate)[: len(waveform)]
        return torch.nn.functional.pad(there, (0, len(waveform) - len(there)))


def conditions_of(
    noises: Sequence[str], snrs: Sequence[float], codecs: Sequence[str], others: Sequence[str], files: AudioFiles
) -> list[Condition]:
    """Each noise at each ratio, then each codec.

    Raises:
        UserError: a noise without ratios or the other way round; a folder without audio; an unknown codec.
    """
    if bool(noises) != bool(snrs):
        given, lacks = ("--noise", "--snr") if noises else ("--snr", "--noise")
        raise UserError(f"{given}: also say {lacks}, for instance --noise pink --snr 20,10,0")
    made: list[Condition] = [Noise(kind, snr, others, files) for kind in noises for snr in snrs]
    made += [Codec(kind) for kind in codecs]  # pyright: ignore[reportArgumentType]
    doubled = [one.name for place, one in enumerate(made) if one.name in [each.name for each in made[:place]]]
    if doubled:
        raise UserError(f"two conditions are called {doubled[0]!r}: leave out one, or rename its folder")
    return made


def _through(waveform: Tensor, rate: int, **settings: Any) -> Tensor:
    """Written to a file in memory and read again. Codecs take samples in -1..1."""
    memory = io.BytesIO()
    soundfile.write(memory, waveform.clamp(-1, 1).float().cpu().numpy(), rate, **settings)
    memory.seek(0)
    return torch.from_numpy(soundfile.read(memory, dtype="float32")[0]).to(waveform)


def _pink(white: np.ndarray) -> np.ndarray:
    """(N,) white noise -> (N,) whose power is as 1 / f, without a constant part."""
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, len(white))


def _cut(waveform: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """(count,) from anywhere in it; what is shorter is repeated."""
    if len(waveform) < count:
        waveform = waveform.repeat(-(-count // len(waveform)))
    start = int(generator.integers(len(waveform) - count + 1))
    return waveform[start : start + count]


def _recordings(folder: str) -> list[str]:
    """Audio files in a folder and below it."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--noise {folder}: no such folder, and none of {', '.join(MADE_NOISES)}")
    found = sorted(str(each) for each in path.rglob("*") if each.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise UserError(f"--noise {folder}: no audio in it ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return found


@lru_cache(maxsize=64)
def _load(files: AudioFiles, name: str, sample_rate: int) -> Tensor:
    return files.load(name, sample_rate)
