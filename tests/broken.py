"""A manifest of which some rows are broken, each way twice over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

Row = dict[str, Any]


def _nan(path: Path) -> None:
    samples = 0.1 * np.ones(4000, np.float32)
    samples[2000] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def _cut(path: Path, **options: Any) -> None:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _audio(make: Callable[[Path], Any], suffix: str = "wav") -> Callable[[Row, Path], str]:
    """A row whose audio is what `make` makes."""

    def line(row: Row, folder: Path) -> str:
        path = folder / f"{row['id']}.{suffix}"
        make(path)
        return json.dumps({**row, "audio": path.name})

    return line


def _with(**values: Any) -> Callable[[Row, Path], str]:
    return lambda row, folder: json.dumps({**row, **values})


WAYS: dict[str, Callable[[Row, Path], str]] = {
    "missing": _with(audio="nowhere.wav"),
    "empty": _audio(lambda path: path.write_bytes(b"")),
    "text": _audio(lambda path: path.write_text("no audio")),
    "folder": _audio(lambda path: path.mkdir()),
    "loop": _audio(lambda path: path.symlink_to(path.name)),
    "nul": _with(audio="a\0b.wav"),
    "long name": _with(audio="x" * 300 + ".wav"),
    "nan": _audio(_nan),
    "cut wav": _audio(_cut),
    "cut flac": _audio(_cut, "flac"),
    "cut ogg": _audio(_cut, "ogg"),
    "cut mp3": _audio(_cut, "mp3"),
    "no window": _audio(lambda path: soundfile.write(path, np.ones(100) / 10, 16000)),
    "beyond the end": _with(offset=500.0),
    "channel": _with(channel=7),
    "no header": lambda row, folder: _audio(lambda path: path.write_bytes(b"RIFF"))({**row, "duration": None}, folder),
    "no language": _with(src_lang="klingonish"),
    "no number": _with(duration="long"),
}
"""Way -> the line of a row that is broken so. Those from "no language" on are faults of the manifest itself."""


def write_broken(folder: Path, good: int, ways: dict[str, int], name: str = "train") -> tuple[Path, list[str]]:
    """A manifest of `good` rows with as many broken ones among them as `ways` says, and the ids of these."""
    random = np.random.default_rng(0)
    broken = [(way, number) for way, count in ways.items() for number in range(count)]
    kinds: list[Any] = [None] * good + broken
    lines, ids = [], []
    for index, place in enumerate(random.permutation(len(kinds)).tolist()):
        seconds = 0.2 + 0.05 * (7 * (index % 20) % 11)
        row: Row = {"id": f"{name}{index}", "audio": f"{name}{index % 20}.wav", "duration": seconds, "src_lang": "spa",
                    "tgt_lang": "eng", "src_text": "hola", "tgt_text": "hello " * (1 + index % 3)}  # fmt: skip
        kind = kinds[place]
        if index < 20:
            soundfile.write(folder / f"{name}{index}.wav", 0.1 * random.standard_normal(int(16000 * seconds)), 16000)
        if kind is None:
            lines.append(json.dumps(row))
        else:
            row["id"] = f"{name}-{kind[0].replace(' ', '-')}-{kind[1]}"
            ids.append(row["id"])
            lines.append(WAYS[kind[0]](row, folder))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path, ids
