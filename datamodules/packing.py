"""The audio of a manifest, put into a few tar files, and taken out again: bytes for bytes.

Letters: N rows, R recordings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..components.errors import UserError
from ..components.lines import json_line
from ..components.whole import whole_file, whole_folder
from .archives import ShardWriter, audio_suffix, open_recording
from .array_file import Texts, TextWriter
from .manifest import PATHS, Paths, paths_of, written_rows
from .rows import Rows, open_rows
from .segments import Segment, member_name, segment_name, segment_of

_LOST = "a recording that cannot be read"


@dataclass
class Packed:
    """What was written.

    Attributes:
        manifest: of the same rows.
        rows: in it.
        recordings: that were copied, each once.
        num_bytes: of these.
        files: they are in.
        left_out: why -> rows.
        first: why -> a few of their ids.
    """

    manifest: Path
    rows: int = 0
    recordings: int = 0
    num_bytes: int = 0
    files: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, row: str) -> None:
        """Count a row that is not written."""
        self.left_out[why] = self.left_out.get(why, 0) + 1
        some = self.first.setdefault(why, [])
        if len(some) < 5:
            some.append(row)


Progress = Callable[[int], Any]


def pack(manifest: Paths, out: Path, most: int = 1 << 30, progress: Progress = lambda done: None) -> Packed:
    """Copy the recordings of a manifest into tar files, and write a manifest that names the bytes there.

    Each recording is copied once, as it is, whatever number of rows have parts of it, in the order in which rows name
    them. A row whose recording cannot be read is left out, and counted.

    Args:
        manifest: one, or several as one; those in tar files already are copied too.
        out: folder of `manifest.jsonl` and `00000.tar`, `00001.tar` ...
        most: bytes from which on the next file begins.
        progress: called with the recordings so far.

    Raises:
        UserError: the manifest is faulty, or has no audio, or `out` is there.
        OSError: a file cannot be written.
    """
    with _new(out) as folder, ShardWriter(folder, most) as shards:

        def keep(number: int, source: Segment) -> str:
            file, size = open_recording(source.path, source.place)
            with file:
                suffix = audio_suffix(file.read(8))
                file.seek(0)
                shard, place, size = shards.add(f"{number:08d}{suffix}", file, size)
            return member_name(shard, place, size)

        found = _moved(paths_of(manifest), folder, out, keep, progress)
        found.files, found.num_bytes = shards.count, shards.written
    return found


def unpack(manifest: Paths, out: Path, progress: Progress = lambda done: None) -> Packed:
    """Copy the recordings of a manifest into files of their own, `audio/00/00000000.flac`, and write one of these.

    Args:
        manifest, progress: as of `pack`.
        out: folder of `manifest.jsonl` and `audio`.

    Raises:
        UserError, OSError: as `pack`.
    """
    with _new(out) as folder:
        written = 0

        def keep(number: int, source: Segment) -> str:
            nonlocal written
            file, size = open_recording(source.path, source.place)
            with file:
                head = file.read(8)
                name = f"audio/{number // 10000:02d}/{number:08d}{audio_suffix(head)}"
                with whole_file(folder / name) as target:
                    target.write(head)
                    while block := file.read(1 << 20):
                        target.write(block)
                    if target.tell() != size:
                        raise UserError(f"{source.path}: {size - target.tell():,} of {size:,} bytes are missing")
            written += size
            return name

        found = _moved(paths_of(manifest), folder, out, keep, progress)
        found.files, found.num_bytes = found.recordings, written
    return found


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    """A folder that appears whole. Raises UserError where there is something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already: name a new folder")
    with whole_folder(out) as folder:
        yield folder


def _moved(paths: list[Path], out: Path, name: Path, keep: Callable[[int, Segment], str], progress: Progress) -> Packed:
    """Copy recordings by `keep`, and write the rows with what it calls them into `out`, which gets the name `name`."""
    made = Packed(name / "manifest.jsonl")
    with tempfile.TemporaryDirectory() as columns:  # of large manifests, mapped from there
        rows = open_rows(paths, columns)
        which, total = _recordings(rows)
        if not total:
            raise UserError(f"{paths[0]}: its rows have no audio")
        called = TextWriter(None)
        for number, source in _first_of(rows, which, total):
            try:
                called.add([keep(number, source)])
                made.recordings += 1
            except OSError as error:
                if not _of_reading(error, source):
                    raise
                called.add([""])
            progress(number + 1)
        content = called.arrays()
        names = Texts(content[""].array(), content[".ends"])  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        with whole_file(out / made.manifest.name) as file:
            for place, (_, row) in enumerate(written_rows(paths)):
                lost = False
                for column, key in enumerate(PATHS):
                    if row.get(key):
                        there = names[int(which[column, place])]
                        lost |= not there
                        row[key] = _named(there, segment_of(row[key]))
                if lost:
                    made.leave_out(_LOST, str(row["id"]))
                    continue
                file.write(json_line(row).encode() + b"\n")
                made.rows += 1
            if not made.rows:
                raise UserError(
                    f"{paths[0]}: none of its {made.left_out[_LOST]:,} rows has a recording that can be read"
                )
    return made


def _of_reading(error: OSError, source: Segment) -> bool:
    """Whether the recording is at fault, and not the disk that is written to."""
    return error.filename is not None and str(error.filename) == source.path


def _recordings(rows: Rows) -> tuple[np.ndarray, int]:
    """(2, N) number of the recording of each row's audio and target audio, -1 where there is none, in the order in
    which rows name them; and R."""
    hashes = np.zeros((len(PATHS), len(rows)), np.int64)
    there = np.stack([rows.has(key) for key in PATHS])
    for column, key in enumerate(PATHS):
        places = np.flatnonzero(there[column])
        parts = (segment_of(path or "") for path in rows.paths(key, places))
        hashes[column, places] = np.fromiter((hash((one.path, one.place)) for one in parts), np.int64, len(places))
    flat, has = hashes.T.reshape(-1), there.T.reshape(-1)
    _, first, which = np.unique(flat[has], return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first, kind="stable")] = np.arange(len(first))
    found = np.full(len(flat), -1, np.int64)
    found[has] = order[which]
    return found.reshape(-1, len(PATHS)).T, len(first)


def _first_of(rows: Rows, which: np.ndarray, total: int) -> Iterator[tuple[int, Segment]]:
    """Each recording, by the first row that names it."""
    begun = 0
    for place in range(which.shape[1]):
        for column, key in enumerate(PATHS):
            if which[column, place] == begun:
                (path,) = rows.paths(key, np.array([place]))
                yield begun, segment_of(path or "")
                begun += 1
    assert begun == total


def _named(name: str, part: Segment) -> str:
    """The same part of a recording that has another name."""
    offset = part.start if part.start or part.end is not None else None
    return segment_name(name, offset, None if part.end is None else part.end - part.start, part.channel)
