"""A folder of short clips to begin with, in the layout that the template of data reads."""

from __future__ import annotations

import csv
import math
import struct
import wave
from pathlib import Path

_RATE = 16000
_WORDS = {"uno": "one", "dos": "two", "tres": "three", "cuatro": "four", "cinco": "five"}
_COUNTS = {"train": 24, "valid": 6, "test": 6}


def write_clips(root: str | Path) -> Path:
    """Two or three tones a clip, each of which stands for a number; 36 clips of half a second, about 0.5 MB.

    Returns:
        The folder: `train`, `valid` and `test`, each with `metadata.csv` (file_name, text, translation).
    """
    root = Path(root)
    words = list(_WORDS)
    number = 0
    for split, count in _COUNTS.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        with (root / split / "metadata.csv").open("w", encoding="utf-8", newline="") as out:
            table = csv.writer(out)
            table.writerow(["file_name", "text", "translation"])
            for index in range(count):
                number += 1  # three digits to the base of the words: no sentence occurs twice
                chosen = [number % 5, number // 5 % 5, *[number // 25] * (number >= 25)]
                _write_tones(root / split / f"{index:02}.wav", [200 * 1.4**place for place in chosen])
                said = [words[place] for place in chosen]
                table.writerow([f"{index:02}.wav", " ".join(said), " ".join(_WORDS[word] for word in said)])
    return root


def _write_tones(path: Path, pitches: list[float]) -> None:
    samples = [
        0.3 * math.sin(2 * math.pi * pitch * n / _RATE) * math.sin(math.pi * n / 3200)
        for pitch in pitches
        for n in range(3200)
    ]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(struct.pack(f"<{len(samples)}h", *(round(32767 * one) for one in samples)))
