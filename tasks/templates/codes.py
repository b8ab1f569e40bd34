"""Units and codes to begin with, in the files that the task of a speech LM reads; no audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...datamodules.codes import line_of

NUM_UNITS, CODEBOOK_SIZE, NUM_STREAMS = 6, 12, 3
_TRANSLATION = (3, 5, 0, 1, 4, 2)
_COUNTS = {"train": 36, "valid": 6}


def write_codes(root: str | Path) -> Path:
    """42 utterances of three to five units: translation puts one unit for another; the first codec stream follows from
    unit and voice, which each code tells, the others from the first one and the voice.

    Returns:
        The folder: manifests `train.jsonl` and `valid.jsonl`, `units.jsonl`, `source_units.jsonl`, `codes.jsonl`,
        `source_codes.jsonl`.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    number = 0
    for split, count in _COUNTS.items():
        for _ in range(count):
            number += 1
            name, voice = f"u{number:03}", number % 2
            source = [number // 6**place * (place + 1) % NUM_UNITS for place in range(3 + number % 3)]
            target = [_TRANSLATION[unit] for unit in source]
            row = {"id": name, "audio": "none.wav", "duration": 1, "src_lang": "spa", "tgt_lang": "eng"}
            files.setdefault(split, []).append(json.dumps(row) + "\n")
            for side, units in (("source_", source), ("", target)):
                files.setdefault(f"{side}units", []).append(json.dumps({"id": name, "units": units}) + "\n")
                codes = np.array([_codes(unit, voice) for unit in units])
                files.setdefault(f"{side}codes", []).append(line_of(name, codes))
    for name, lines in files.items():
        (root / f"{name}.jsonl").write_text("".join(lines))
    return root


def _codes(unit: int, voice: int) -> list[int]:
    return [(2 * unit + voice + stream * (1 + voice)) % CODEBOOK_SIZE for stream in range(NUM_STREAMS)]


def words_for(folder: str) -> list[str]:
    """The overrides of a run on what `write_codes` wrote."""
    names = ("train", "valid", "units", "source_units", "codes", "source_codes")
    return [
        "task=speech_to_speech_lm",
        *("unit_extractor=none", f"unit_extractor.num_units={NUM_UNITS}", "task.unit_extractor=null"),
        *("codec=none", f"codec.codebook_size={CODEBOOK_SIZE}", "task.codec=null"),
        f"stream_lm.num_streams={NUM_STREAMS}",
        *("data=manifest", "data.min_seconds=0", "data.num_workers=0"),
        *(f"data.{name}={folder}/{name}.jsonl" for name in names),
    ]
