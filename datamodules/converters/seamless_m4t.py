"""A manifest for fine-tuning SeamlessM4T, as `m4t_prepare_dataset` writes it.

    {"source": {"id": 1, "lang": "eng", "text": "...", "audio_local_path": "a.wav", "sampling_rate": 16000},
     "target": {"id": 1, "lang": "kor", "text": "...", "audio_local_path": "b.wav", "units": [17, 4]}}

Ids are numbers, the same in each language and for several speakers: a row is named by its id, its languages, and the
file of its source speech. Layout: `datasets/datatypes.py` and `cli/m4t/finetune` of
https://github.com/facebookresearch/seamless_communication.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from .conversion import Asked, Row
from .tables import json_lines


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a manifest."""
    if source.is_dir():
        raise UserError(f"{source}: a folder; expected the manifest itself, such as train_manifest.json")
    units = 0
    for row in json_lines(source, asked.left_out):
        near, far = row.get("source"), row.get("target")
        if not isinstance(near, dict) or not isinstance(far, dict):
            asked.left_out("a row without source and target", str(row)[:60])
            continue
        units += far.get("units") is not None
        audio = _path(source, near.get("audio_local_path"))
        name = "-".join(
            str(part) for part in (near.get("id", "?"), near.get("lang", ""), far.get("lang", "")) if part != ""
        )
        yield {
            "id": f"{name}-{Path(audio).stem}" if audio else name,
            "audio": audio,
            "src_lang": near.get("lang"),
            "src_text": near.get("text"),
            "tgt_audio": _path(source, far.get("audio_local_path")),
            "tgt_lang": far.get("lang"),
            "tgt_text": far.get("text"),
        }
    if units:
        asked.said.append(f"{units} rows have target units, which are not taken: `voxzoo units extract` makes them")


def _path(source: Path, name: str | None) -> str | None:
    """A path of the manifest: from where it was made, or beside it."""
    if not name:
        return None
    return name if os.path.isabs(name) or os.path.exists(name) else str(source.parent / name)
