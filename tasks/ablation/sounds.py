"""Speech small enough for a page: Opus and a picture of the spectrogram. The same samples give the same bytes.

Letters: N samples, F frequency bins, T frames.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import soundfile
import torch
from matplotlib.image import imsave
from torch import Tensor

from ...datamodules.audio import load_audio
from ..training.examples import DECIBELS, decibels

RATE = 16000
SECONDS = 20.0
"""Of a clip; longer speech is cut there."""

_LEVEL = 0.94  # of libsndfile, 0 to 1: about 18 kbit/s
_BINS, _FRAMES_A_SECOND = 64, 32


def clip_of(path: str | Path) -> dict[str, Any]:
    """A recording as the page has it: `sound` (Ogg Opus) and `picture` (WebP) as base64, `seconds`, and `cut` where the
    recording is longer than that.

    Raises:
        UserError: it cannot be read as speech.
    """
    samples = load_audio(path, RATE)
    most = int(SECONDS * RATE)
    found: dict[str, Any] = {"seconds": round(min(len(samples), most) / RATE, 2)}
    if len(samples) > most:
        found["cut"] = True
        samples = samples[:most]
    found["sound"] = base64.b64encode(opus(samples)).decode()
    found["picture"] = base64.b64encode(picture(samples)).decode()
    return found


def opus(samples: Tensor) -> bytes:
    """(N,) samples at 16 kHz as Ogg Opus, whose stream has always the same number: libsndfile draws one."""
    memory = io.BytesIO()
    waveform = samples.clamp(-1, 1).numpy()
    soundfile.write(memory, waveform, RATE, format="OGG", subtype="OPUS", compression_level=_LEVEL)
    return _with_serial(memory.getvalue(), 1)


def picture(samples: Tensor) -> bytes:
    """A spectrogram of (N,) samples at 16 kHz as WebP: 64 rows of bins, 32 columns a second, in the colours of
    TensorBoard's."""
    levels = decibels(samples)  # (F, T)
    columns = max(1, round(len(samples) / RATE * _FRAMES_A_SECOND))
    small = torch.nn.functional.adaptive_max_pool2d(levels[None], (_BINS, columns))[0]
    memory = io.BytesIO()
    low, high = DECIBELS
    settings = {"quality": 60, "method": 6}
    imsave(memory, small.numpy(), vmin=low, vmax=high, cmap="magma", origin="lower", format="webp", pil_kwargs=settings)
    return memory.getvalue()


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """The pages of an Ogg file with another number of the stream, and with their sums made anew (RFC 3533)."""
    out = bytearray(ogg)
    start = 0
    while start < len(out):
        segments = out[start + 26]
        body = start + 27 + segments
        end = body + sum(out[start + 27 : body])
        out[start + 14 : start + 18] = serial.to_bytes(4, "little")
        out[start + 22 : start + 26] = bytes(4)
        out[start + 22 : start + 26] = _crc(out[start:end]).to_bytes(4, "little")
        start = end
    return bytes(out)


def _crc(data: bytes | bytearray) -> int:
    """Ogg's: polynomial 0x04c11db7 from the highest bit on, begun with 0."""
    found, table = 0, _crc_table()
    for byte in data:
        found = ((found << 8) & 0xFFFFFFFF) ^ table[(found >> 24) ^ byte]
    return found


@cache
def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        value = number << 24
        for _ in range(8):
            value = ((value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table
