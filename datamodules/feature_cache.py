"""Features on disk, so that later epochs and runs read no audio.

A folder of shards. Each writing process appends to a shard of its own: the features to `NAME.bin`, then a line to
`NAME.index` (key, offset, steps, width, kind of numbers, steps kept, checksum of the line), which it holds a lock on.
So several processes share a folder, and a process that is killed leaves at most bytes that no line points to. `join`
moves what processes that have ended wrote into one pair, `joined.bin` and `joined.keys`, which all processes map.

Features are float32, so cached and fresh ones are equal; waveforms that are 16-bit numbers are kept as such. With
float16 they take half the room and are rounded before they are used, also when they are fresh: what a model reads does
not depend on what was in the cache.

Frames at the end that are all alike, such as what a front end pads to its window, are kept once.

The caches of all front ends together stop growing at a limit. Nothing is removed to make room: another process may read
it.

Letters: T frames, F features, N samples.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..components.errors import UserError
from .array_file import open_arrays, write_arrays
from .resume import say
from .segments import segment_of

_log = logging.getLogger(__name__)
CacheDtype = Literal["float32", "float16"]
_JOINED = "joined"
_FRESH = 4096  # places that are Python objects, before they become rows of an array
_SAID = 1 << 30  # bytes from which on joining is said, because it takes a while
_STRIDE = 1 << 26  # bytes that a process writes before it looks again how much all have written
_SCALE = 2.0**15  # of 16-bit samples
_KEY = np.dtype("S12")
_FIELDS = [("shard", "<u4"), ("offset", "<i8"), ("steps", "<u4"), ("width", "<u2"), ("kind", "u1")]
_ROW = np.dtype([*_FIELDS, ("kept", "<u4")])
_EARLIER = np.dtype(_FIELDS)
"""Of the joined keys of earlier versions, which kept all steps."""
_KINDS = (np.dtype("<f4"), np.dtype("<f2"), np.dtype("<i2"))
"""Numbers of a shard: float32, float16, and 16-bit samples."""

Place = tuple[int, int, int, int, int, int]
"""(shard, offset, steps, width, kind, steps kept); width 0 is a waveform. The last step kept stands for the rest."""


class FeatureCache:
    """Maps (audio file, speed) to features of one front end.

    Args:
        folder: where the caches of all front ends lie.
        fingerprint: of the front end; each has a folder of its own.
        dtype: float16 rounds features to it.
        limit: bytes in all of `folder` at which it grows no more (each writing process may be 64 MB beyond); None: any.
    """

    def __init__(
        self, folder: str | Path, fingerprint: str, dtype: CacheDtype = "float32", limit: int | None = None
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise UserError(f"data.cache_dtype={dtype!r}: expected float32 or float16")
        self.fingerprint = fingerprint if dtype == "float32" else f"{fingerprint}-{dtype}"
        self.dtype: CacheDtype = dtype
        self.limit = limit
        self.folder = Path(folder) / hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]
        self._forget()

    def _forget(self) -> None:
        self._places = _Places()
        self._shards: list[str] = [_JOINED]
        self._read: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._out: tuple[int, BinaryIO, IO[str]] | None = None
        self._process = os.getpid()
        self._looked = -1.0
        self._broken = False
        self._room = 0
        self._stopped = False

    def __getstate__(self) -> dict[str, object]:
        return {"fingerprint": self.fingerprint, "folder": self.folder, "dtype": self.dtype, "limit": self.limit}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def key(self, path: str, speed: float) -> str:
        """Changes whenever the file does."""
        about = os.stat(segment_of(path).path)
        text = f"{os.path.abspath(path)}|{about.st_size}|{about.st_mtime_ns}|{speed:g}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def get(self, key: str) -> Tensor | None:
        """The (T, F) or (N,) float32 features, or None."""
        if os.getpid() != self._process:
            self._forget()  # a fork must not append to its parent's shard
        place = self._places.find(key)
        if place is None:
            self._look()
            place = self._places.find(key)
        if place is None:
            return None
        try:
            return self._values(place)
        except FileNotFoundError:  # joined by another process since we looked
            self._look(now=True)
            place = self._places.find_joined(key)
            return None if place is None else self._values(place)

    def _values(self, place: Place) -> Tensor:
        number, offset, steps, width, kind, kept = place
        shape = (kept, width) if width else (kept,)
        count = kept * max(1, width)
        if not count:
            return torch.zeros(shape)
        shard, dtype = self._shards[number], _KINDS[kind]
        if shard not in self._maps or len(self._maps[shard]) < offset + count * dtype.itemsize:
            with (self.folder / f"{shard}.bin").open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(self._maps[shard], dtype, count, offset).astype(np.float32)
        if kind == 2:
            values /= _SCALE
        found = torch.from_numpy(values.reshape(shape))
        return found if kept == steps else torch.cat([found, found[-1:].expand(steps - kept, -1)])

    def put(self, key: str, features: Tensor) -> Tensor:
        """Keep (T, F) or (N,) float32 features. A full disk is said once and then ignored.

        Returns:
            What `get` will give: the same, or rounded to float16.
        """
        if os.getpid() != self._process:
            self._forget()
        if self.dtype == "float16":
            features = features.half().float()
        if self._broken or self._places.find(key) is not None:
            return features
        width = features.shape[1] if features.dim() == 2 else 0
        values, kind = _packed(features.detach().contiguous().numpy().astype(np.float32, copy=False), self.dtype)
        kept = _distinct(values) if width else len(values)
        values = values[:kept]
        if self._is_full(values.nbytes + 64):  # and the line of the index
            return features
        try:
            shard, data, index = self._out or self._open()
            offset = data.tell()
            data.write(values.tobytes())
            data.flush()
            line = f"{key} {offset} {features.shape[0]} {width} {kind} {kept}"
            index.write(f"{line} {zlib.crc32(line.encode()):08x}\n")
            index.flush()
        except OSError as error:
            self._broken = True
            warnings.warn(f"feature cache {self.folder}: {error}; going on without writing to it", stacklevel=2)
            return features
        self._places.add(key, (shard, offset, features.shape[0], width, kind, kept))
        return features

    def size(self) -> int:
        """Bytes that the caches of all front ends take."""
        total = 0
        for path in self.folder.parent.glob("*/*"):
            with suppress(OSError):  # joined in the meantime
                total += path.stat().st_size
        return total

    def line(self) -> str:
        """How large it is, how large it may become, and where it lies."""
        size, where = self.size(), self.folder.parent
        if self.limit is None:
            return f"feature cache: {size / 1e9:.2f} GB in {where}, which may grow without a limit (data.cache_gb)"
        line = f"feature cache: {size / 1e9:.2f} GB of at most {self.limit / 1e9:g} (data.cache_gb) in {where}"
        if size < self.limit and not self._stopped:
            return line
        return f"{line}: full; what it lacks is computed each time; raise the limit, or remove what no run reads"

    def _is_full(self, more: int) -> bool:
        """Whether so many bytes have no room."""
        if self.limit is None:
            return False
        self._room -= more
        if self._room < 0 and not self._stopped:
            left = self.limit - self.size()
            self._stopped = left < more
            self._room = min(left, max(_STRIDE, more)) - more
            worker = get_worker_info()
            if self._stopped and (worker is None or worker.id == 0):
                say(self.line())
        return self._stopped

    def _open(self) -> tuple[int, BinaryIO, IO[str]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "fingerprint.txt"
        if not about.exists():
            about.write_text(self.fingerprint + "\n")
        while True:
            shard = uuid.uuid4().hex[:12]
            index = (self.folder / f"{shard}.index").open("a")
            # Held until this process ends: until then the shard is not joined.
            if _lock(index) is not False and (self.folder / f"{shard}.index").exists():
                break
            index.close()
        self._out = (len(self._shards), (self.folder / f"{shard}.bin").open("ab"), index)
        self._shards.append(shard)
        self._read[shard] = 1 << 62  # our own lines are known already
        return self._out

    def _look(self, now: bool = False) -> None:
        """Read what was added to the indices since the last look, at most once a second."""
        if not now and time.monotonic() - self._looked < 1 and self._looked >= 0:
            return
        self._looked = time.monotonic()
        for path in self.folder.glob("*.index"):
            with suppress(FileNotFoundError):  # joined in the meantime
                self._look_at(path)
        # Behind the indices: a process that joins one writes the joined keys before it takes the index away.
        self._places.map_joined(self.folder / f"{_JOINED}.keys")

    def _look_at(self, path: Path) -> None:
        shard = path.stem
        begin = self._read.get(shard, 0)
        if path.stat().st_size <= begin:
            return
        if shard not in self._read:
            self._shards.append(shard)
        number = self._shards.index(shard)
        with path.open("rb") as file:
            file.seek(begin)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read[shard] = begin + len(complete)
        for key, place in _entries(complete, (self.folder / f"{shard}.bin").stat().st_size):
            self._places.add(key, (number, *place))

    def join(self) -> int:
        """Move what processes that have ended wrote into the joined pair; the others go on. Returns shards moved.

        One process does it at a time. A shard's features are safe in the joined file before its own goes; where a
        process is killed in between, the next one does the rest. Where the file system has no locks, nothing is joined.
        """
        if not any(self.folder.glob("*.index")):
            return 0
        moved = 0
        try:
            with (self.folder / "fingerprint.txt").open("a") as alone:
                if not _lock(alone):
                    return 0
                ended = [path for path in sorted(self.folder.glob("*.index")) if self._has_ended(path)]
                size = sum(
                    path.with_suffix(".bin").stat().st_size for path in ended if path.with_suffix(".bin").exists()
                )
                if size > _SAID:
                    _log.warning(f"feature cache: joining {len(ended)} files of {size / 1e9:.1f} GB in {self.folder}")
                for path in ended:
                    self._join(path)
                    moved += 1
        except OSError as error:
            warnings.warn(f"feature cache {self.folder}: {error}; its files are left as they are", stacklevel=2)
        return moved

    def _has_ended(self, path: Path) -> bool:
        """Whether the process that wrote a shard has ended: nobody opens it again."""
        with path.open("a") as index:
            return bool(_lock(index))

    def _join(self, path: Path) -> None:
        shard, joined, table = path.with_suffix(".bin"), self.folder / f"{_JOINED}.bin", self.folder / f"{_JOINED}.keys"
        known = open_arrays(table)
        keys = np.empty(0, _KEY) if known is None else known["keys"]
        rows = np.empty(0, _ROW) if known is None else _rows_of(known["rows"])
        end = 0 if known is None else int(known.about["bytes"])
        found = dict(_entries(path.read_bytes(), shard.stat().st_size)) if shard.exists() else {}
        if not found:  # killed before its first features were whole
            path.unlink()
            shard.unlink(missing_ok=True)
            return
        raw = np.array([bytes.fromhex(key) for key in found], _KEY)
        new = np.array([(0, *place) for place in found.values()], _ROW)
        fresh = ~np.isin(raw, keys)
        raw, new = raw[fresh], new[fresh]
        if known is None:
            joined.unlink(missing_ok=True)  # may be a shard under a second name, by a process that was killed
            with suppress(OSError):
                os.link(shard, joined)
        if known is None and joined.exists():
            end = shard.stat().st_size
        else:
            with joined.open("r+b" if joined.exists() else "w+b") as out, shard.open("rb") as source:
                out.seek(end)
                for row in new:
                    source.seek(int(row["offset"]))
                    row["offset"] = end
                    end += out.write(source.read(_size(row)))
                out.flush()
                os.fsync(out.fileno())
        keys, rows = np.concatenate([keys, raw]), np.concatenate([rows, new])
        order = np.argsort(keys, kind="stable")
        write_arrays(table, {"bytes": end}, {"keys": keys[order], "rows": rows[order]})
        path.unlink()
        shard.unlink()


class _Places:
    """Where the features of each key are: 35 bytes a key in sorted arrays, those of the joined file mapped."""

    def __init__(self) -> None:
        self._fresh: dict[bytes, Place] = {}
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._joined: tuple[np.ndarray, np.ndarray] | None = None
        self._written = ""

    def find(self, key: str) -> Place | None:
        raw = bytes.fromhex(key)
        place = self._fresh.get(raw)
        for run in reversed(self._runs) if place is None else ():
            if (place := _find(run, raw)) is not None:
                break
        return self.find_joined(key) if place is None else place

    def find_joined(self, key: str) -> Place | None:
        return None if self._joined is None else _find(self._joined, bytes.fromhex(key))

    def add(self, key: str, place: Place) -> None:
        self._fresh[bytes.fromhex(key)] = place
        if len(self._fresh) < _FRESH:
            return
        run = _sorted(np.array([*self._fresh], _KEY), np.array([*self._fresh.values()], _ROW))
        self._fresh.clear()
        # Runs of like size are merged, so that there are few and each key is moved a few times.
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            keys, rows = self._runs.pop()
            run = _sorted(np.concatenate([keys, run[0]]), np.concatenate([rows, run[1]]))
        self._runs.append(run)

    def map_joined(self, path: Path) -> None:
        """Read the joined file's keys where they are new."""
        found = open_arrays(path)
        if found is not None and found.about["written"] != self._written:
            self._written = found.about["written"]
            self._joined = (found["keys"], _rows_of(found["rows"]))


def _find(run: tuple[np.ndarray, np.ndarray], raw: bytes) -> Place | None:
    keys, rows = run
    place = int(np.searchsorted(keys, np.array(raw, _KEY)))
    if place == len(keys) or keys[place] != np.array(raw, _KEY):
        return None
    return rows[place].item()


def _sorted(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], rows[order]


def _packed(values: np.ndarray, dtype: CacheDtype) -> tuple[np.ndarray, int]:
    """Features as they are written, and the kind of their numbers."""
    if dtype == "float16":
        return values.astype(_KINDS[1]), 1
    if values.ndim == 1:
        scaled = values * _SCALE  # exact: a power of two
        whole = np.clip(scaled, -_SCALE, _SCALE - 1).astype(np.int16)
        if np.array_equal(whole.astype(np.float32), scaled) and not np.signbit(values[whole == 0]).any():
            return whole.astype(_KINDS[2]), 2
    return values.astype(_KINDS[0], copy=False), 0


def _size(row: np.void) -> int:
    """Bytes of features."""
    return int(row["kept"]) * max(1, int(row["width"])) * _KINDS[row["kind"]].itemsize


def _rows_of(column: np.ndarray) -> np.ndarray:
    """The places in a file of joined keys, also of one of an earlier version."""
    if column.dtype.itemsize == _ROW.itemsize:
        return column.view(_ROW)
    earlier = column.view(_EARLIER)
    rows = np.empty(len(earlier), _ROW)
    for name in _EARLIER.names or ():
        rows[name] = earlier[name]
    rows["kept"] = earlier["steps"]
    return rows


def _distinct(values: np.ndarray) -> int:
    """(T, F) -> how many steps there are up to the first of those at the end that are equal, bit by bit."""
    if len(values) < 2:
        return len(values)
    numbers = values.view(np.uint16 if values.itemsize == 2 else np.uint32)
    other = np.flatnonzero((numbers != numbers[-1]).any(1))
    return int(other[-1]) + 2 if len(other) else 1


def _entries(lines: bytes, size: int) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Key and (offset, steps, width, kind, steps kept) of each whole line of an index whose features are in the `size`
    bytes."""
    for line in lines.decode(errors="replace").splitlines():
        body, _, check = line.rpartition(" ")
        key, *numbers = body.split(" ")
        if len(numbers) not in (3, 4, 5) or f"{zlib.crc32(body.encode()):08x}" != check:
            continue
        offset, steps, width, *more = (int(number) for number in numbers)
        kind, kept = (*more, *(0, steps)[len(more) :])  # shards of earlier versions hold float32, and all steps
        if offset + kept * max(1, width) * _KINDS[kind].itemsize <= size:
            yield key, (offset, steps, width, kind, kept)


def _lock(file: IO[str]) -> bool | None:
    """Whether this process alone has the file now, until it closes it; None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
