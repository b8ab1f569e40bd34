"""Reading audio: one error line per bad file. Letters: N samples."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from ..components.errors import UserError
from ..components.layers.resampling import Interpolation, resampler
from .members import Member
from .segments import Segment, member_name, segment_of

SAMPLE_RATE = 16000
MIN_SECONDS = 0.025
"""One analysis window: less than this has no frame."""
_SILENT = 10 ** (-60 / 20)
_CLIPPED = 0.999
_UNKNOWN = 0x7F000000  # the length that programs write into a pipe is this or more
_LONGEST = 1 << 29
"""Samples of one channel that are held in memory: 9 hours at 16 kHz, 2 GB."""
_BLOCK = 1 << 23
"""Samples that are read at a time, of all channels: 32 MB."""
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
        AudioError: the file is missing, cannot be read, is empty, is cut off (less is there than its header promises,
            or it ends within a page of ogg), holds numbers that are not finite, or is shorter than 25 ms.
    """
    waveform, rate = read_audio(path)
    return resample(waveform, rate, sample_rate)


def read_audio(path: str | Path) -> tuple[Tensor, int]:
    """Like `load_audio`, at the file's own rate: (N,) samples and the rate."""
    segment = segment_of(path)
    _require(segment)
    with _open(segment, _Forward) as file:
        rate = file.samplerate
        first, count = _bounds(segment, file.frames, rate, file.channels, path)
        if first:
            file.seek(first)
        waveform = _read(file, count, segment.channel, path)
        promised = _promised(file, count, segment)
    _check_read(path, len(waveform), rate, promised, bool(torch.isfinite(waveform).all()))
    return waveform, rate


def audio_blocks(path: str | Path, sample_rate: int = SAMPLE_RATE, seconds: float = 10.0) -> Iterator[Tensor]:
    """The samples of `load_audio`, some of them at a time, so that a file of any length takes little memory.

    Args:
        path, sample_rate: as of `load_audio`.
        seconds: of a block.

    Yields:
        (n,) float32 samples. What was yielded counts only when all was: a file that is cut off says so at its end.

    Raises:
        AudioError: as `load_audio`.
    """
    segment = segment_of(path)
    _require(segment)
    count, finite = 0, True
    with _open(segment, _Forward if segment.is_whole else soundfile.SoundFile) as file:
        rate = file.samplerate
        first, there = _bounds(segment, file.frames, rate, file.channels, path)
        if first:
            file.seek(first)
        size = max(1, min(int(seconds * rate), _BLOCK // file.channels))
        parts = _Resampling(rate, sample_rate, size)
        while len(samples := file.read(min(size, there - count), dtype="float32", always_2d=True)):
            waveform = _mono(samples, segment.channel)
            count += len(waveform)
            finite = finite and bool(torch.isfinite(waveform).all())
            yield parts.add(waveform)
        promised = _promised(file, there, segment)
    _check_read(path, count, rate, promised, finite)
    yield parts.rest()


class _Resampling:
    """(N,) samples that come in blocks, resampled as if they came at once.

    Resampling goes by frames of `old` samples, which become `new` ones and depend on `width` samples before and behind
    them: so many are kept of the block before. The last `held` samples wait for the next block, because a short rest
    would be computed in another order of sums than a long one.
    """

    def __init__(self, rate: int, new_rate: int, held: int) -> None:
        self._resample = None if rate == new_rate else _resampler(rate, new_rate)
        if self._resample is not None:
            self._old, self._new = (one // math.gcd(rate, new_rate) for one in (rate, new_rate))
            self._context = -(-self._resample.width // self._old)  # frames
            self._held = -(-held // self._old)
        self._kept = torch.empty(0)
        self._before = 0  # frames at the head of what is kept that are out already

    def add(self, samples: Tensor) -> Tensor:
        """A block in; what can be said of it, and of what was waiting."""
        if self._resample is None:
            return samples
        kept = torch.cat([self._kept, samples])
        frames = len(kept) // self._old - self._context - self._before - self._held
        if frames < self._held or frames <= 0:
            self._kept = kept
            return torch.empty(0)
        found = self._out(kept[: (self._before + frames + self._context) * self._old])
        drop = max(0, self._before + frames - self._context)
        self._kept, self._before = kept[drop * self._old :].clone(), self._before + frames - drop
        return found[: frames * self._new]

    def rest(self) -> Tensor:
        """What was waiting for more."""
        return torch.empty(0) if self._resample is None or not len(self._kept) else self._out(self._kept)

    def _out(self, samples: Tensor) -> Tensor:
        assert self._resample is not None
        return self._resample(samples)[self._before * self._new :]


def _read(file: soundfile.SoundFile, count: int, channel: int | None, name: object) -> Tensor:
    """Up to `count` frames as (N,) samples, in blocks: a header may promise more than is there, or than fits."""
    if count > _LONGEST:
        raise AudioError(
            f"{name}: its header promises {count / file.samplerate / 60:.0f} minutes at {file.samplerate} Hz, "
            f"more samples than are read at once ({_LONGEST:,}); cut it, or lower its rate"
        )
    size, parts, left = max(1, _BLOCK // file.channels), [], count
    while left and len(samples := file.read(min(size, left), dtype="float32", always_2d=True)):
        parts.append(_mono(samples, channel).contiguous())
        left -= len(samples)
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)


class _Name(os.PathLike[bytes]):
    """The name of a file as bytes: it may be no UTF-8, and then soundfile does not take it as text."""

    def __init__(self, path: str | Path) -> None:
        self._bytes = os.fsencode(path)

    def __fspath__(self) -> bytes:
        return self._bytes


class _Forward(soundfile.SoundFile):
    """A file that is read from its beginning to its end. Others seek after each block, to where they are: decoders of
    lossy formats then start anew, and give other samples."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _source(segment: Segment) -> Iterator[_Name | Member]:
    """What libsndfile reads: a file by its name, or a member of one."""
    if segment.place is None:
        yield _Name(segment.path)
    else:
        with Member(segment.path, *segment.place) as member:
            yield member


@contextmanager
def _open(segment: Segment, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> Iterator[soundfile.SoundFile]:
    opened, path = False, _file_name(segment)
    try:
        with _source(segment) as source, kind(source) as file:  # pyright: ignore[reportArgumentType]
            opened = True
            yield file
    except AudioError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        if opened:
            raise AudioError(
                f"{path}: cannot be read to its end ({_reason(error)}): it is cut off or damaged; copy or convert it"
                " again"
            ) from None
        raise AudioError(f"{path}: cannot be read as audio ({_reason(error)}); convert it to wav or flac") from None


def _bounds(segment: Segment, frames: int, rate: int, channels: int, name: object) -> tuple[int, int]:
    """First frame of a part, and how many frames it has.

    Raises:
        AudioError: the file does not have them.
    """
    if segment.is_whole:
        return 0, frames
    if segment.channel is not None and segment.channel >= channels:
        raise AudioError(f"{name}: channel {segment.channel} of a file with {channels}; they are counted from 0")
    first, last = segment.frames(rate)
    last = frames if last is None else last
    if first >= frames or last > frames + _SLACK * rate:
        raise AudioError(
            f"{name}: {first / rate:.3f} to {last / rate:.3f} s of a file of {frames / rate:.3f} s: its offset and "
            "duration (seconds) lie beyond its end"
        )
    return first, min(last, frames) - first


def _mono(samples: np.ndarray, channel: int | None = None) -> Tensor:
    waveform = torch.from_numpy(samples)
    if channel is not None:
        return waveform[:, channel].contiguous()
    return waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(1)


def _check_read(path: str | Path, count: int, rate: int, promised: float, finite: bool) -> None:
    """What is wrong with a file of which `count` samples were read, and which promises so many (infinity: more)."""
    if count == 0 and promised < math.inf:
        raise AudioError(f"{path}: the audio is empty")
    if (promised - count) / rate > _SLACK:
        of = f"{count / rate:.1f} s of the {promised / rate:.1f} s that its header promises are there"
        if promised == math.inf:
            of = f"it ends within a page, behind {count / rate:.1f} s"
        raise AudioError(f"{path}: the file is cut off: {of}; copy or convert it again")
    if count < MIN_SECONDS * rate:
        raise AudioError(f"{path}: {1000 * count / rate:.1f} ms of audio; expected at least 25 ms")
    if not finite:
        raise AudioError(f"{path}: the audio holds samples that are not finite numbers")


def audio_seconds(path: str | Path) -> float:
    """Seconds of a file, from its header. Raises AudioError where it is missing or unreadable."""
    segment = segment_of(path)
    _require(segment)
    try:
        with _source(segment) as source:
            about = soundfile.info(source)  # pyright: ignore[reportArgumentType]
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({_reason(error)}); convert it to wav or flac") from None
    return _bounds(segment, about.frames, about.samplerate, about.channels, path)[1] / about.samplerate


class AudioFiles:
    """What reads the audio that rows name: files. A class of one's own reads other things (members of an archive, rows
    of a table); it runs in data workers and is picklable."""

    def load(self, audio: str, sample_rate: int) -> Tensor:
        """(N,) float32 samples in -1..1 at `sample_rate`. Raises AudioError where they cannot be read."""
        return load_audio(audio, sample_rate)

    def seconds(self, audio: str) -> float:
        """Exact seconds, without reading the samples where that is possible. Raises AudioError."""
        return audio_seconds(audio)


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


def _file_name(segment: Segment) -> str:
    """Of the file of a part, or of the member that it is of."""
    return segment.path if segment.place is None else member_name(segment.path, *segment.place)


def _require(segment: Segment) -> None:
    """Raises AudioError: no file that can be read, or an empty one."""
    path = segment.path
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"{path}: no such audio file") from None
    except OSError as error:  # a loop of links, a name too long, a folder that may not be entered
        raise AudioError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise AudioError(f"{path}: no such audio file; a NUL or half a character is in its name") from None
    if stat.S_ISDIR(about.st_mode):
        raise AudioError(f"{path}: is a folder, expected an audio file")
    if not stat.S_ISREG(about.st_mode):
        raise AudioError(f"{path}: no regular file, expected an audio file")
    if not about.st_size:
        raise AudioError(f"{path}: the audio is empty")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: no permission to read it")
    if segment.place is None:
        return
    if sum(segment.place) > about.st_size:
        raise AudioError(
            f"{_file_name(segment)}: lies beyond the {about.st_size:,} bytes of the file: it is cut off, or was written"
            " anew since its manifest"
        )
    if not segment.place[1]:
        raise AudioError(f"{_file_name(segment)}: the audio is empty")


def _promised(file: soundfile.SoundFile, count: int, segment: Segment) -> float:
    """How many samples a file promises of which `count` were asked for; infinity where it promises more."""
    if segment.end is not None:
        return count
    if file.format == "OGG":  # no header says its length
        return math.inf if _ends_within_page(segment) else count
    share = _share_there(file.extra_info)
    return count / share if share else count  # a header alone is empty audio


_PAGE = 27 + 255 + 255 * 255  # bytes: the longest page of ogg


def _ends_within_page(segment: Segment) -> bool:
    """Whether an ogg file ends before its last page does (RFC 3533, section 6)."""
    with open(segment.path, "rb") as file:
        place, size = segment.place or (0, file.seek(0, os.SEEK_END))
        first = max(0, size - _PAGE)
        file.seek(place + first)
        end = file.read(size - first)
    begin = end.rfind(b"OggS\0")
    if begin < 0:
        return False
    sizes = end[begin + 27 : begin + 27 + end[begin + 26]] if begin + 26 < len(end) else b""
    page = 27 + len(sizes) + sum(sizes)
    behind = end[begin + page :]
    return begin + page > len(end) or (behind != b"" and b"OggS".startswith(behind))


def _share_there(log: str) -> float:
    """How much of the bytes that a wav, w64, aiff or au file promises is there, by what libsndfile says of its header;
    1 where the header was written before the length was known (by a pipe)."""
    found = re.search(r"(?:data|SSND|riff|Data Size) *: (\d+) \(should be (\d+)\)", log)
    promised, there = (int(found[1]), int(found[2])) if found else (1, 1)
    return 1.0 if promised >= _UNKNOWN or promised <= there else there / promised


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip(" .") or type(error).__name__


@lru_cache(maxsize=32)
def _resampler(rate: int, new_rate: int) -> Resample | Interpolation:
    return resampler(rate, new_rate)
