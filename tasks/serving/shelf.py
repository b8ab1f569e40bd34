"""Waveforms that wait: the first ones in memory, the rest in a file without a name. Letters: N samples."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

ROOM = 32 << 20
"""Bytes of waveforms that stay in memory: nine minutes at 16 kHz."""


@dataclass(frozen=True)
class Shelved:
    """A waveform of `count` samples: the samples, or their place in the shelf's file."""

    shelf: Shelf
    count: int
    samples: Tensor | None
    offset: int = 0

    def take(self) -> Tensor:
        """The (N,) float32 samples."""
        return self.shelf.read(self.offset, self.count) if self.samples is None else self.samples


class Shelf:
    """Keeps (N,) float32 waveforms until `clear`, in memory of `ROOM` bytes however many they are."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._room = ROOM
        self._end = 0

    def put(self, samples: Tensor) -> Shelved:
        """Keep a copy of (N,) samples. Where the folder for temporary files is full, memory holds them."""
        size = samples.numel() * 4
        content = samples.detach().to("cpu", torch.float32)
        if size > self._room:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this
                self._file.seek(self._end)
                left = content.contiguous().numpy().data.cast("B")
                while len(left):
                    left = left[self._file.write(left) :]
            except OSError:
                return Shelved(self, len(samples), content.clone())
            self._end += size
            return Shelved(self, len(samples), None, self._end - size)
        self._room -= size
        return Shelved(self, len(samples), content.clone())

    def read(self, offset: int, count: int) -> Tensor:
        """Samples of the file."""
        assert self._file is not None
        samples = np.empty(count, np.float32)
        self._file.seek(offset)
        left = samples.data.cast("B")
        while len(left):
            left = left[self._file.readinto(left) or self._fail() :]  # pyright: ignore[reportAttributeAccessIssue]
        return torch.from_numpy(samples)

    @staticmethod
    def _fail() -> int:
        raise OSError("a temporary file lost its end: is the disk full?")

    def clear(self) -> None:
        """Forget all that was put."""
        self._room, self._end = ROOM, 0
        if self._file is not None:
            self._file.truncate(0)
