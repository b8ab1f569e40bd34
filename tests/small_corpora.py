"""Small corpora for the converters: tones, tables, and what a manifest made of them holds."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from voxzoo.datamodules import load_audio, read_manifest
from voxzoo.datamodules.converters.conversion import Asked, Converted, convert

RATE = 16000


def tone(seconds: float = 0.5, pitch: float = 300.0) -> np.ndarray:
    """(N,) samples that say their pitch."""
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(RATE * seconds)) / RATE)


def clip(path: Path, seconds: float = 0.5, pitch: float = 300.0) -> Path:
    """A recording; by the end of its name mp3, flac, ogg or wav."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, pitch), RATE)
    return path


def encoded(suffix: str = "flac", seconds: float = 0.5, pitch: float = 300.0) -> bytes:
    """A recording as bytes."""
    memory = io.BytesIO()
    soundfile.write(memory, tone(seconds, pitch), RATE, format=suffix.upper())
    return memory.getvalue()


def table(path: Path, *rows: str) -> Path:
    """Lines, `|` for a tab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.replace("|", "\t") + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path, *rows: Any) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar file as others write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def converted(
    kind: str, source: Path, out: Path, *, durations: bool = True, **asked: Any
) -> tuple[list[dict], Converted]:
    """The rows as they are written, each of which training reads, audio included."""
    result = convert(kind, source, Asked(out=out, **asked), durations=durations)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == result.rows
    for row in read_manifest(out):
        for path in (row.audio, row.tgt_audio):
            if path is not None:
                samples = load_audio(path)
                assert row.duration is None or path == row.tgt_audio or abs(len(samples) / RATE - row.duration) < 0.11
    return rows, result
