"""Waveforms at the edges: writing and cutting them. Letters: N samples."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from torch import Tensor


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Write (N,) samples as 16-bit PCM: beside the target first, then renamed, so that a file is whole or absent.

    Raises:
        OSError: the folder cannot be written.
    """
    memory = io.BytesIO()
    samples = audio.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(-1, 1)
    soundfile.write(memory, samples.numpy(), sample_rate, format="WAV", subtype="PCM_16")
    write_whole(path, memory.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cut_at_quiet(samples: Tensor, sample_rate: int, limit: float = 30.0) -> Iterator[tuple[int, Tensor]]:
    """Cut (N,) samples into pieces of at most `limit` seconds.

    A cut falls in the middle of the quietest tenth of a second of the last third of each window.

    Yields:
        The start of a piece in samples, and the piece. Nothing for empty audio.
    """
    size, step = int(limit * sample_rate), sample_rate // 10
    search = max(1, size // 3 // step) * step
    start = 0
    while len(samples) - start > size:
        window = samples[start + size - search : start + size]
        quietest = int(window.view(-1, step).square().mean(dim=1).argmin())
        cut = start + size - search + quietest * step + step // 2
        yield start, samples[start:cut]
        start = cut
    if start < len(samples):
        yield start, samples[start:]
