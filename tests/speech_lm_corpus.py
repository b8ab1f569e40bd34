"""A toy corpus for the task of a speech LM: a batch, and files with the overrides that train tiny parts on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from voxzoo.components.types import Batch, Padded
from voxzoo.datamodules.codes import line_of

UNITS, V, K = 6, 12, 3
LANGS = {"src_lang": "spa", "tgt_lang": "eng"}


def toy(rows: int, seed: int, voice: int | None = None) -> Batch:
    """Translation is a permutation; the first stream follows from units and the voice, which the prompt alone tells;
    the others from the first and the voice."""
    draws = np.random.default_rng(seed)
    permutation = np.array([3, 5, 0, 1, 4, 2])
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("source_units", "units", "codes", "source_codes")}
    for _ in range(rows):
        source = draws.integers(0, UNITS, draws.integers(3, 6))
        target = permutation[source]
        who = int(draws.integers(0, 2)) if voice is None else voice
        for name, units in (("source", source), ("", target)):
            first = 2 * units + who  # whose voice it is, each code tells
            codes = np.stack([(first + k * (1 + who)) % V for k in range(K)], 1)
            columns["source_units" if name else "units"].append(torch.as_tensor(units))
            columns["source_codes" if name else "codes"].append(torch.as_tensor(codes))
    return Batch(
        ids=tuple(f"{seed}-{n}" for n in range(rows)),
        src_lang=("spa",) * rows,
        tgt_lang=("eng",) * rows,
        **{name: Padded.from_list(column) for name, column in columns.items()},
    )


def corpus(folder: Path, rows: int = 12) -> list[str]:
    """Manifests without audio or texts, units and codes; the overrides that train on them, without `root`."""
    batch = toy(rows, 3)
    files: dict[str, list[str]] = {name: [] for name in ("units", "source_units", "codes", "source_codes")}
    for name, lines in files.items():
        for one, row in zip(batch.ids, getattr(batch, name).unpad()):
            codes = name.endswith("codes")
            lines.append(line_of(one, row.numpy()) if codes else json.dumps({"id": one, "units": row.tolist()}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split in ("train", "valid"):
        text = (json.dumps({"id": one, "audio": "none.wav", "duration": 1, **LANGS}) for one in batch.ids)
        (folder / f"{split}.jsonl").write_text("\n".join(text) + "\n")
    (folder / "units.card.json").write_text(json.dumps({"centroids": "a"}))
    (folder / "source_units.card.json").write_text(json.dumps({"centroids": "a"}))
    return [
        "task=speech_to_speech_lm", "speech_lm=tiny", "stream_lm=tiny", "unit_extractor=none", "data=manifest",
        "codec=none", "task.codec=null", f"codec.codebook_size={V}",
        f"stream_lm.num_streams={K}", f"unit_extractor.num_units={UNITS}",
        "task.unit_extractor=null", f"data.train={folder}/train.jsonl", f"data.valid={folder}/valid.jsonl",
        *(f"data.{name}={folder}/{name}.jsonl" for name in files), "data.min_seconds=0", "data.num_workers=0",
        "data.batch_size=4", "logger=none", "optim.lr=1e-2", "schedule=constant",
    ]  # fmt: skip
