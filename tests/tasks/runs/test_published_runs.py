"""`voxzoo import` and `export`, and single parts of published models in a config, as a user would call them."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from voxzoo.components.errors import UserError
from voxzoo.configs.check import check
from voxzoo.configs.compose import compose
from voxzoo.configs.targets import ALLOWED
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.runs.initial import load_pretrained

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small w2v-BERT in the published layout."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(
        feature_projection_input_dim=80,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
        conv_depthwise_kernel_size=5,
        add_adapter=True,
    )
    folder = tmp_path_factory.mktemp("published") / "encoder"
    transformers.Wav2Vec2BertModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_mel_bins": 20, "stride": 4}))
    return folder


def call(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def test_import_and_export_give_the_same_files(
    voxzoo, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, again = tmp_path / "run", tmp_path / "again"
    done = voxzoo("import", encoder, run, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["model_type"] == "wav2vec2-bert"
    theirs = load_file(encoder / "model.safetensors")
    assert sum(answer["parameters"].values()) == sum(value.numel() for value in theirs.values())
    assert answer["left"] == []
    assert call("export", str(run), str(again), capsys=capsys)[0] == 0
    ours = load_file(again / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (again / "preprocessor_config.json").read_bytes() == (encoder / "preprocessor_config.json").read_bytes()
    _, report = transformers.Wav2Vec2BertModel.from_pretrained(again, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    status, _, err = call("import", str(encoder), str(run), capsys=capsys)
    assert status == 1
    assert "not empty" in err
    status, _, err = call("translate", str(run), "x.wav", "--task", "s2tt", "--to", "eng", capsys=capsys)
    assert status == 1
    assert "a part alone" in err


MIXED = ["speech_encoder=pretrained", "frontend=pretrained", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny"]


def test_an_encoder_with_new_parts_around_it(encoder: Path):
    config = compose([*MIXED, f"speech_encoder.pretrained={encoder}", "speech_encoder.layer_drop=0.5"])
    assert [str(fault) for fault in check(config)] == []
    assert config.speech_encoder.num_layers == 3
    assert config.speech_encoder.layer_drop == 0.5  # what the config says wins over the folder
    assert config.frontend.stack == 4
    assert config.adaptor.input_dim == 24  # widths follow
    parts = compose([*MIXED, f"speech_encoder.pretrained={encoder}", "task=encode_speech", "adaptor=pretrained"])
    task = assemble(parts, ALLOWED)
    lines = load_pretrained(task, parts)
    assert [line.split(":")[0] for line in lines] == ["speech_encoder", "adaptor"]
    assert all("nothing is new; all that is there is used" in line for line in lines)
    theirs = load_file(encoder / "model.safetensors")
    ours = task.state_dict()
    assert torch.equal(ours["speech_encoder.input_projection.weight"], theirs["feature_projection.projection.weight"])
    assert torch.equal(ours["adaptor.layers.0.residual_conv.bias"], theirs["adapter.layers.0.residual_conv.bias"])


def test_a_partial_load_says_what_is_new_and_what_is_left(encoder: Path):
    base = [*MIXED, "task=encode_speech", "adaptor=none", f"speech_encoder.pretrained={encoder}"]
    shallow = compose([*base, "speech_encoder.num_layers=2"])
    (line,) = load_pretrained(assemble(shallow, ALLOWED), shallow)
    assert "nothing is new" in line
    assert re.search(
        r"not used: \d+ tensors of layers that this part, as configured, does not have \(speech_encoder.layers.2.", line
    )
    deep = compose([*base, "speech_encoder.num_layers=4"])
    (line,) = load_pretrained(assemble(deep, ALLOWED), deep)
    assert "new: speech_encoder.layers.3." in line
    wide = compose([*base, "speech_encoder.ffn_dim=30"])
    with pytest.raises(UserError, match=r"ffn1.*another architecture"):
        load_pretrained(assemble(wide, ALLOWED), wide)


def test_a_role_that_the_model_does_not_have(encoder: Path):
    with pytest.raises(UserError, match="that model has no text_seq2seq; it has: frontend, speech_encoder, adaptor"):
        compose(["text_seq2seq=pretrained", f"text_seq2seq.pretrained={encoder}"])


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def broken(kind: str, good: Path, folder: Path) -> str:
    """Damage a copy of a good folder; returns what the message must say."""
    shutil.copytree(good, folder)
    weights = folder / "model.safetensors"
    settings = json.loads((folder / "config.json").read_text())
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        return "truncated"
    if kind == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
        return "pytorch_model.bin: refused"
    if kind == "torch pickle":
        weights.unlink()
        torch.save({"x": Evil()}, folder / "pytorch_model.bin")
        return "pytorch_model.bin: refused"
    if kind == "no weights":
        weights.unlink()
        return "no weights; expected model.safetensors"
    if kind == "unknown type":
        settings["model_type"] = "rwkv"
    if kind == "other size":
        settings["intermediate_size"] = 48
    if kind == "more layers":
        settings["num_hidden_layers"] = 5
    if kind == "no size":
        del settings["hidden_size"]
    (folder / "config.json").write_text(json.dumps(settings))
    if kind == "no json":
        (folder / "config.json").write_text("{")
    return {
        "unknown type": "model_type 'rwkv' is none that voxzoo has; expected one of encodec, hubert",
        "other size": "another architecture",
        "more layers": "missing: speech_encoder.layers.3.",
        "no size": "has no hidden_size",
        "no json": "config.json: not readable as JSON",
    }[kind]


KINDS = ["truncated", "pickle", "torch pickle", "no weights", "unknown type", "other size", "more layers", "no size"]


@pytest.mark.parametrize("kind", [*KINDS, "no json"])
def test_bad_folders_are_refused_in_one_line(
    kind: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    expected = broken(kind, encoder, tmp_path / "bad")
    status, out, err = call("import", "bad", "run", capsys=capsys)
    assert status == 1
    assert out == ""
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "executed").exists(), "something in a checkpoint was executed"


def test_no_folder_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.safetensors").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for source, expected in {
        "absent": "absent: no such folder",
        "file.safetensors": "it is a file",
        "empty": "config.json: missing",
    }.items():
        status, _, err = call("import", source, "run", capsys=capsys)
        assert status == 1
        assert expected in err
