"""`experiment=finetune`: import, train, evaluate, export, and what transformers reads of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from voxzoo.tasks.commands.cli import main

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six clips with texts and units."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows, units = [], []
    for number in range(6):
        seconds = 0.8 + 0.2 * number
        soundfile.write(folder / f"{number}.wav", 0.1 * random.standard_normal(int(16000 * seconds)), 16000)
        rows.append({
            "id": str(number), "audio": f"{number}.wav", "duration": seconds, "src_lang": "spa", "tgt_lang": "eng",
            "src_text": "dónde está", "tgt_text": published.TEXTS[0][: 9 + number],
        })  # fmt: skip
        units.append({"id": str(number), "units": random.integers(0, published.NUM_UNITS, 30 + number).tolist()})
    for name, lines in (("rows.jsonl", rows), ("units.jsonl", units)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def call(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


MODELS = {
    "seamless v1": (lambda folder: published.publish_seamless(folder, 1), [], "SeamlessM4TForSpeechToText"),
    "seamless v2": (lambda folder: published.publish_seamless(folder, 2), [], "SeamlessM4Tv2ForSpeechToText"),
    "seamless v1 speech": (lambda folder: published.publish_seamless(folder, 1), ["UNITS"], "SeamlessM4TModel"),
    "seamless v2 speech": (lambda folder: published.publish_seamless(folder, 2), ["UNITS"], "SeamlessM4Tv2Model"),
    "seamless v2 text": (
        lambda folder: published.publish_seamless(folder, 2),
        ["data.tasks={t2tt: true, s2tt: false}"],
        "SeamlessM4Tv2ForTextToText",
    ),
    "whisper": (published.publish_whisper, [], "WhisperForConditionalGeneration"),
    "nllb": (published.publish_nllb, [], "M2M100ForConditionalGeneration"),
    "hubert": (published.publish_hubert, ["text_seq2seq=tiny", "tokenizer.vocab_size=60"], "HubertModel"),
}


def cases() -> Iterator[Any]:
    """Each model as a run; the folder itself, and what differs little, among the slow ones."""
    for name in MODELS:
        for way in ("run", "folder"):
            slow = way == "folder" or name in ("seamless v1", "seamless v1 speech", "seamless v2 text")
            yield pytest.param(name, way, marks=[pytest.mark.slow] * slow, id=f"{name} {way}")


@pytest.mark.parametrize(("name", "way"), cases())
def test_five_steps(name: str, way: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish, words, cls = MODELS[name]
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "published")
    source = "published"
    if way == "run":
        call("import", "published", "runs/imported")
        source = "runs/imported"
    rows = data / "rows.jsonl"
    words = [f"data.units={data / 'units.jsonl'}" if word == "UNITS" else word for word in words]
    train = [
        "train", "experiment=finetune", f"from={source}", f"data.train={rows}", f"data.valid={rows}", "name=tuned",
        "data.num_workers=0", "cache_dir=cache", "trainer.max_steps=2", "trainer.val_check_interval=2", "lr=1e-3",
        "schedule=constant", "logger=none", *words,
    ]  # fmt: skip
    call(*train)
    call("evaluate", "runs/tuned", "--manifest", rows, "--batch-size", 3)
    call("export", "runs/tuned", "out")
    _, report = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    old, new = (load_file(tmp_path / folder / "model.safetensors") for folder in ("published", "out"))
    assert new.keys() <= old.keys()
    assert any(not torch.equal(new[key], old[key]) for key in new)


def test_init_takes_every_part_that_fits(tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """And says what is not taken, and why."""
    short = [*tiny, f"root={tmp_path}", "trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none"]
    call("train", *short, "name=first")
    capfd.readouterr()
    call("train", *short, "name=second", f"init={tmp_path / 'first'}", "adaptor=stack")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("init ")]
    assert [line.split()[1] for line in lines] == ["speech_encoder:", "text_seq2seq:", "not"]
    assert "not taken: adaptor: the adaptor of" in lines[2]
    assert "does not fit this config; " in lines[2]
