"""`experiment=finetune`: import, train, evaluate, export, and what transformers reads of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.errors import UserError
from voxzoo.configs import check, compose
from voxzoo.configs.compose import to_yaml
from voxzoo.tasks import load_run
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
    "w2v-bert": (published.publish_w2v_bert, ["text_seq2seq=tiny", "tokenizer.vocab_size=60"], "Wav2Vec2BertModel"),
    "hubert": (published.publish_hubert, ["text_seq2seq=tiny", "tokenizer.vocab_size=60"], "HubertModel"),
}


def cases() -> Iterator[Any]:
    """Each model as a run; the folder itself, and what differs little, among the slow ones."""
    for name in MODELS:
        for way in ("run", "folder"):
            slow = way == "folder" or name in ("seamless v1", "seamless v1 speech", "seamless v2 text", "w2v-bert")
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
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [cls]
    _, report = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    old, new = (load_file(tmp_path / folder / "model.safetensors") for folder in ("published", "out"))
    assert new.keys() <= old.keys()
    assert any(not torch.equal(new[key], old[key]) for key in new)


@pytest.fixture(scope="module")
def seamless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `published` and the run `imported` of it."""
    folder = tmp_path_factory.mktemp("seamless")
    published.publish_seamless(folder / "published", 2)
    call("import", folder / "published", folder / "imported")
    return folder


def composed(*words: object) -> DictConfig:
    return compose(["experiment=finetune", *map(str, words)])


@pytest.mark.parametrize("source", ["published", "imported"])
def test_what_comes_along(seamless: Path, source: str):
    """And stands in the config as plain values: nothing in it has to be looked up again."""
    config = composed(f"from={seamless / source}", "lr=3e-4", "freeze=encoder", "lora=decoder")
    assert [str(fault) for fault in check(config)] == []
    plain = OmegaConf.create(to_yaml(config))
    assert plain.task._target_ == "voxzoo.tasks.SpeechToText"
    assert plain.task.loss_on_lang_token
    assert plain.task.ctc_weight == 0
    assert plain.task.search.method == "greedy"
    assert plain.tokenizer.languages == published.LANGUAGES
    assert plain.adaptor.leak_padding
    assert plain.text_seq2seq.position_start == 1
    assert plain.frontend.num_mel_bins == 9
    assert [plain[role]._target_ for role in ("t2u", "vocoder", "unit_extractor")] == [None] * 3
    assert plain.model_type == "seamless_m4t_v2"
    assert plain.optim.lr == 3e-4
    assert plain.freeze == {"speech_encoder": True}
    assert [*plain.lora] == ["text_seq2seq"]
    assert not re.search(r": source$", to_yaml(config), re.MULTILINE)


def test_the_task_is_what_the_data_ask_for(seamless: Path):
    source = f"from={seamless / 'imported'}"
    speech = composed(source, "data.units=units.jsonl")
    assert speech.task._target_ == "voxzoo.tasks.SpeechToSpeechUnitY"
    assert speech.t2u.aligner
    assert speech.data.tasks.s2st
    assert not speech.data.tasks.s2tt
    assert speech.task.vocoder_languages == published.LANGUAGES
    text = composed(source, "data.tasks={t2tt: true, s2tt: false}")
    assert text.task._target_ == "voxzoo.tasks.TextToText"
    assert text.speech_encoder._target_ is None
    said = composed(source, "task=speech_to_text", "task.label_smoothing=0.3")
    assert said.task.loss_on_lang_token
    assert said.task.label_smoothing == 0.3


def test_a_part_on_top_is_new(seamless: Path):
    """A decoder of another width gets an adaptor that leads to it; what is left is no published layout."""
    config = composed(f"from={seamless / 'imported'}", "text_seq2seq=tiny", "speech_encoder.layer_drop=0.25")
    assert [*config.init] == ["tokenizer", "speech_encoder"]
    assert config.speech_encoder.layer_drop == 0.25
    assert config.speech_encoder.dim == 12
    assert config.adaptor.output_dim == config.text_seq2seq.dim != 12
    assert config.text_seq2seq.vocab_size == config.tokenizer.vocab_size
    assert config.model_type is None
    assert not config.task.get("loss_on_lang_token")
    fitting = composed(f"from={seamless / 'published'}", "adaptor=stack")
    assert fitting.adaptor._target_.endswith("StackAdaptor")
    assert fitting.text_seq2seq.pretrained == str(seamless / "published")


def test_a_source_that_is_none_or_not_asked_for(seamless: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no part is taken from there; say experiment=finetune, or ROLE=source"):
        compose([f"from={seamless / 'imported'}"])
    with pytest.raises(UserError, match=r"neither a run nor a published model; .*no such folder"):
        composed(f"from={tmp_path / 'absent'}")
    with pytest.raises(UserError, match=r"say which parts come from there, as in init\.vocoder=RUN"):
        composed(f"from={seamless / 'imported'}", "init=runs/other")
    (tmp_path / "config.yaml").write_text("task: {_target_: voxzoo.tasks.SpeechToText, x: '${oc.env:HOME}'}\n")
    with pytest.raises(UserError, match=r"task\.x=.*the config of a run has plain values alone"):
        composed(f"from={tmp_path}")


def test_a_run_goes_on_without_what_it_began_with(seamless: Path, data: Path, tmp_path: Path):
    """It has the weights, the vocabulary and the published files itself."""
    shutil.copytree(seamless / "imported", tmp_path / "imported")
    words = [
        "experiment=finetune", f"from={tmp_path / 'imported'}", f"data.train={data / 'rows.jsonl'}",
        f"data.valid={data / 'rows.jsonl'}", f"root={tmp_path}", "name=tuned", "data.num_workers=0",
        "data.cache_dir=null", "trainer.val_check_interval=1", "schedule=constant", "logger=none",
    ]  # fmt: skip
    call("train", *words, "trainer.max_steps=1")
    shutil.rmtree(tmp_path / "imported")
    call("train", *words, "trainer.max_steps=2")
    task = load_run(tmp_path / "tuned").task
    assert {"config.json", "generation_config.json", "sentencepiece.bpe.model"} <= task.files.keys()
    assert isinstance(task.tokenizer, SentencePieceTokenizer)
    assert task.tokenizer.characters, "the characters of the second pass are part of the vocabulary"


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
    call("train", "experiment=finetune", f"from={tmp_path / 'first'}", "data=tiny", tiny[-1], *short[-4:], "name=third")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("init ")]
    names = ["speech_encoder:", "adaptor:", "text_seq2seq:", "heads:"]
    assert [line.split()[1] for line in lines] == names, "also what the run trained beside its parts, for CTC"
    third, first = (load_run(tmp_path / name) for name in ("third", "first"))
    assert third.config.task.ctc_weight == first.config.task.ctc_weight > 0
    assert third.task.tokenizer.to_bytes() == first.task.tokenizer.to_bytes()
