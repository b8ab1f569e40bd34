"""Rows about data: the start on many rows, the vocabulary, long audio, the feature cache."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .process import Work, apart, command
from .row import Costs, Row

TINY = ("frontend=tiny", "speech_encoder=tiny", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny")
_MB, _RATE = 1e6, 16_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def manifests(rows: int, folder: Path) -> None:
    """`train.jsonl` of so many rows and `valid.jsonl` of a few: texts of their own, and one short recording."""
    import numpy as np
    import soundfile

    draw = random.Random(0)
    words = ["".join(draw.choices(_LETTERS, k=draw.randint(2, 9))) for _ in range(5000)]
    soundfile.write(folder / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(_RATE // 2), _RATE)
    for name, count in (("train", rows), ("valid", 8)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(count):
                text = " ".join(draw.choices(words, k=draw.randint(4, 12)))
                row = {
                    "id": f"{name}-{number}", "audio": "clip.wav", "duration": round(draw.uniform(1, 9), 2),
                    "src_lang": "spa", "tgt_lang": "eng", "tgt_text": text,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")


def _overrides(folder: Path, *more: str) -> list[str]:
    data = [f"data.{split}={folder / split}.jsonl" for split in ("train", "valid")]
    kept = [f"root={folder / 'runs'}", f"cache_dir={folder / 'cache'}", "data.num_workers=1"]
    return [*TINY, "data=manifest", *data, *kept, *more]


def start(rows: int, folder: Path) -> Costs:
    manifests(rows, folder)
    first, second = (apart("data:started", rows, folder) for _ in range(2))
    return {
        "second start, CPU s": second["cpu"],
        "of a process, MB": second["kept"] / _MB,
        "of a data worker, MB": second["worker"] / _MB,
        "first start with vocabulary, CPU s": first["cpu"],
    }


def vocabulary(rows: int, folder: Path) -> Costs:
    """A start that makes the vocabulary against one that has it; what else is made once is there by then."""
    manifests(rows, folder)
    apart("data:started", rows, folder)
    there = apart("data:started", rows, folder)
    for model in (folder / "runs").rglob("*.model"):
        model.unlink()
    made = apart("data:started", rows, folder)
    return {"CPU s": made["cpu"] - there["cpu"], "stays, MB": (made["kept"] - there["kept"]) / _MB}


def started(_: int, folder: Path) -> Work:
    """Task and data as `train` has them, up to the first batch."""
    import lightning  # noqa: F401
    from voxzoo.tasks import prepare

    kept: list[Any] = []

    def work() -> dict[str, float]:
        task, data = prepare(_overrides(folder, "name=start"))
        data.needs = task.needs  # pyright: ignore[reportAttributeAccessIssue]
        loader = data.train_dataloader()
        batches = iter(loader)
        next(batches)
        kept.extend([task, data, loader, batches])
        return {"worker": float(_largest_child())}

    return work


def _largest_child() -> int:
    """Bytes that a data worker holds of its own: what it wrote, not what it still shares with its parent."""
    sizes = [0]
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
            sizes += [1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")]
    return max(sizes)


def tiny_run(folder: Path, *overrides: str) -> Path:
    """A run of a few steps on the tiny corpus: what it says is nothing, what it costs is something."""
    words = [*(overrides or TINY), "data=tiny", f"cache_dir={folder / 'cache'}", f"root={folder / 'runs'}", "name=tiny"]
    command(["train", *words, "trainer.max_steps=2", "logger=none"], folder)
    return folder / "runs" / "tiny"


def long_audio(minutes: int, folder: Path) -> Costs:
    tiny_run(folder)
    _recording(minutes, folder / "long.wav")
    cost = apart("data:translated", minutes, folder)
    return {"above the model, MB": cost["peak"] / _MB, "CPU s": cost["cpu"]}


def _recording(minutes: int, path: Path) -> None:
    """Noise with a pause every few seconds."""
    import numpy as np
    import soundfile

    draw = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", _RATE, 1) as file:
        for _ in range(minutes * 12):
            loud = (np.arange(5 * _RATE) < 4 * _RATE) * 0.1 + 1e-4
            file.write(loud * draw.standard_normal(5 * _RATE))


def translated(_: int, folder: Path) -> Work:
    import lightning  # noqa: F401
    from voxzoo.tasks import translate

    run, short = folder / "runs" / "tiny", folder / "short.wav"
    _short(short)
    list(translate(run, [str(short)], "s2tt", "eng", source="spa", beam=1))  # the model, and what is made once

    def work() -> None:
        (found,) = translate(run, [str(folder / "long.wav")], "s2tt", "eng", source="spa", beam=1)
        if "error" in found:
            raise RuntimeError(found["error"])

    return work


def _short(path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(2 * _RATE), _RATE)


def feature_cache(minutes: int, folder: Path) -> Costs:
    """Two processes write to the cache, and a third one uses it."""
    for number in range(3):
        apart("data:cached", minutes, folder, CACHED=str(number))
    files = [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix != ".txt"]
    size = sum(path.stat().st_size for path in files)
    return {"MB an hour": size / _MB / (minutes / 60), "files": float(len(files))}


def cached(minutes: int, folder: Path) -> Work:
    """An epoch over clips of 10 s, of which the n-th process has the n-th half new."""
    import os

    import lightning  # noqa: F401
    import numpy as np
    import soundfile
    from voxzoo.tasks import prepare

    turn = int(os.environ["CACHED"])
    count = minutes * 6
    if turn == 0:
        manifests(count, folder)
        draw = np.random.default_rng(0)
        for split, rows in (("train", count), ("valid", 8)):
            lines = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
            for number, row in enumerate(lines[:rows]):
                row |= {"audio": f"{split}-{number}.wav", "duration": 10.0}
                soundfile.write(folder / row["audio"], 0.1 * draw.standard_normal(10 * _RATE), _RATE)
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    whole = (folder / "train.jsonl").read_text().splitlines(keepends=True)

    def work() -> None:
        part = whole[: count // 2] if turn == 0 else whole
        (folder / f"part{turn}.jsonl").write_text("".join(part))
        words = ["frontend=fbank", "data.num_workers=0", f"name=cache{turn}", f"data.train={folder}/part{turn}.jsonl"]
        task, data = prepare(_overrides(folder, *words))
        data.needs = task.needs  # pyright: ignore[reportAttributeAccessIssue]
        for _ in data.train_dataloader():
            pass

    return work


ROWS = (
    Row("start", "G3 start on many rows", start, "rows", (5_000, 20_000, 80_000), (62_500, 250_000, 1_000_000),
        1_000_000, {"second start, CPU s": 10, "of a process, MB": 100, "of a data worker, MB": 20}),
    Row("vocabulary", "G4 vocabulary", vocabulary, "rows", (5_000, 20_000, 80_000), (62_500, 250_000, 1_000_000),
        1_000_000, {"stays, MB": 20}),
    Row("long-audio", "G7 long audio", long_audio, "minutes", (5, 10, 20), (27, 54, 108), 108,
        {"above the model, MB": 150}),
    Row("feature-cache", "G12 feature cache", feature_cache, "minutes", (10,), (60,), 10,
        {"MB an hour": 60, "files": 2}),
)  # fmt: skip
