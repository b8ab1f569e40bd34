"""Features on disk, so that later epochs and runs read no audio.

A folder of shards. Each writing process appends to a shard of its own: the features to `NAME.bin`, then a line to
`NAME.index` (key, offset, steps, width, checksum of the line). So several processes share a folder without locks, and
a process that is killed leaves at most bytes that no line points to. Values are kept as float32: cached and fresh
features are equal.

Letters: T frames, F features, N samples.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
import uuid
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from torch import Tensor


class FeatureCache:
    """Maps (audio file, speed) to features of one front end.

    Args:
        folder: where the caches of all front ends lie.
        fingerprint: of the front end; each has a folder of its own.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder) / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, tuple[str, int, int, int]] = {}
        self._read: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._out: tuple[str, BinaryIO, TextIO] | None = None
        self._process = os.getpid()
        self._looked = -1.0
        self._broken = False

    def __getstate__(self) -> dict[str, object]:
        return {"fingerprint": self.fingerprint, "folder": self.folder}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def key(self, path: str, speed: float) -> str:
        """Changes whenever the file does."""
        about = os.stat(path)
        text = f"{os.path.abspath(path)}|{about.st_size}|{about.st_mtime_ns}|{speed:g}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def get(self, key: str) -> Tensor | None:
        """The (T, F) or (N,) features, or None."""
        if os.getpid() != self._process:
            self._forget()  # a fork must not append to its parent's shard
        if key not in self._places:
            self._look()
        place = self._places.get(key)
        if place is None:
            return None
        shard, offset, steps, width = place
        count = steps * max(1, width)
        if not count:
            return torch.zeros((steps, width) if width else (steps,))
        if shard not in self._maps or len(self._maps[shard]) < offset + 4 * count:
            with (self.folder / f"{shard}.bin").open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(self._maps[shard], np.float32, count, offset).copy()
        return torch.from_numpy(values.reshape(steps, width) if width else values)

    def put(self, key: str, features: Tensor) -> None:
        """Keep (T, F) or (N,) float32 features. A full disk is said once and then ignored."""
        if os.getpid() != self._process:
            self._forget()
        if self._broken or key in self._places:
            return
        width = features.shape[1] if features.dim() == 2 else 0
        try:
            shard, data, index = self._out or self._open()
            offset = data.tell()
            data.write(features.detach().contiguous().numpy().astype(np.float32, copy=False).tobytes())
            data.flush()
            line = f"{key} {offset} {features.shape[0]} {width}"
            index.write(f"{line} {zlib.crc32(line.encode()):08x}\n")
            index.flush()
        except OSError as error:
            self._broken = True
            warnings.warn(f"feature cache {self.folder}: {error}; going on without writing to it", stacklevel=2)
            return
        self._places[key] = (shard, offset, features.shape[0], width)

    def _open(self) -> tuple[str, BinaryIO, TextIO]:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "fingerprint.txt"
        if not about.exists():
            about.write_text(self.fingerprint + "\n")
        shard = uuid.uuid4().hex[:12]
        self._out = (shard, (self.folder / f"{shard}.bin").open("ab"), (self.folder / f"{shard}.index").open("a"))
        self._read[shard] = 1 << 62  # our own lines are known already
        return self._out

    def _look(self) -> None:
        """Read what was added to the indices since the last look, at most once a second."""
        if time.monotonic() - self._looked < 1 and self._looked >= 0:
            return
        self._looked = time.monotonic()
        for path in self.folder.glob("*.index"):
            shard = path.stem
            begin = self._read.get(shard, 0)
            if path.stat().st_size <= begin:
                continue
            with path.open("rb") as file:
                file.seek(begin)
                content = file.read()
            complete = content[: content.rfind(b"\n") + 1]
            self._read[shard] = begin + len(complete)
            size = (self.folder / f"{shard}.bin").stat().st_size
            for line in complete.decode(errors="replace").splitlines():
                body, _, check = line.rpartition(" ")
                parts = body.split(" ")
                if len(parts) != 4 or f"{zlib.crc32(body.encode()):08x}" != check:
                    continue
                offset, steps, width = (int(part) for part in parts[1:])
                if offset + 4 * steps * max(1, width) <= size:
                    self._places[parts[0]] = (shard, offset, steps, width)
