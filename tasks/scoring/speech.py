"""Waveforms at the edges: writing and cutting them. Letters: N samples."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ...components.whole import whole_file


def write_wav(path: Path, audio: Tensor | Iterable[Tensor], sample_rate: int) -> None:
    """Write (N,) samples, or parts of them, as 16-bit PCM. The file appears whole; its folder is made.

    Raises:
        OSError: the folder cannot be written.
    """
    with whole_file(path) as file, wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        for part in (audio,) if isinstance(audio, Tensor) else audio:
            samples = part.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(-1, 1)
            numbers = io.BytesIO()
            soundfile.write(numbers, samples.numpy(), sample_rate, "PCM_16", "LITTLE", "RAW")
            out.writeframesraw(numbers.getbuffer())


def cut_at_quiet(
    samples: Tensor | Iterable[Tensor], sample_rate: int, limit: float = 30.0
) -> Iterator[tuple[int, Tensor]]:
    """Cut (N,) samples, or blocks of them, into pieces of at most `limit` seconds.

    A cut falls in the middle of the quietest tenth of a second of the last third of each window.

    Yields:
        The start of a piece in samples, and the piece. Nothing for empty audio.
    """
    size, step = int(limit * sample_rate), sample_rate // 10
    search = max(1, size // 3 // step) * step
    start, rest = 0, torch.empty(0)
    for block in (samples,) if isinstance(samples, Tensor) else samples:
        rest = torch.cat([rest, block]) if len(rest) else block
        while len(rest) > size:
            quietest = int(rest[size - search : size].view(-1, step).square().mean(dim=1).argmin())
            cut = size - search + quietest * step + step // 2
            yield start, rest[:cut]
            start, rest = start + cut, rest[cut:]
    if len(rest):
        yield start, rest
