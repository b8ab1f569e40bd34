"""Frozen weights of published models are named in checkpoints, not copied."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import stopper
import torch
from voxzoo.components.cards import weights_hash
from voxzoo.components.errors import UserError
from voxzoo.components.layers.lora import is_lora
from voxzoo.configs.compose import compose
from voxzoo.configs.targets import ALLOWED
from voxzoo.tasks.checkpoints.files import read_checkpoint
from voxzoo.tasks.checkpoints.references import ENTRY, fill_in
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.runs.initial import load_pretrained, published_references
from voxzoo.tasks.runs.run import load_run
from voxzoo.tasks.training.train import build_for_training

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small w2v-BERT in the published layout."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(
        feature_projection_input_dim=80, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, conv_depthwise_kernel_size=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("published") / "encoder"
    transformers.Wav2Vec2BertModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_mel_bins": 20, "stride": 4}))
    return folder


def words(encoder: Path, *more: str) -> list[str]:
    return [
        "speech_encoder=pretrained", f"speech_encoder.pretrained={encoder}", "frontend=pretrained",
        f"frontend.pretrained={encoder}", "adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny", "data=tiny",
        "freeze.speech_encoder=true", "trainer.val_check_interval=2", "checkpoint.every_steps=1", "logger=none",
        "trainer.max_steps=4", *more,
    ]  # fmt: skip


def raw(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_hash_is_of_names_types_shapes_and_bytes():
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.zeros(())},
        {"a": torch.zeros(2, 3), "c": torch.zeros(())},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(())},
        {"a": torch.zeros(2, 3), "b": torch.zeros(()) + 1e-30},
    ]
    assert weights_hash(base) == weights_hash(dict(reversed(base.items())))
    assert len({weights_hash(one) for one in (base, *others)}) == 5


def test_the_encoder_of_a_unit_extractor(encoder: Path, tmp_path: Path):
    config = compose([
        "task=fit_units", "unit_extractor=encoder", "unit_extractor.layer=1", "unit_extractor.num_units=4",
        "speech_encoder=pretrained", f"speech_encoder.pretrained={encoder}", "frontend=pretrained",
        f"frontend.pretrained={encoder}", "data=tiny",
    ])  # fmt: skip
    task = build_for_training(config, tmp_path)
    encoder_part = task.parts()["unit_extractor"].encoder
    assert set(task.references) == {"unit_extractor.encoder"}
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    assert not [name for name in content["state_dict"] if "encoder." in name]
    assert content["state_dict"].keys()  # the clusters
    filled = fill_in(content, tmp_path)["state_dict"]
    assert filled.keys() == task.state_dict().keys()
    assert all(torch.equal(value, filled[name]) for name, value in task.state_dict().items())
    # A tensor that is not what the folder has is copied, whoever changed it.
    with torch.no_grad():
        encoder_part.input_projection.bias += 1
    task.references = published_references(task, config)
    content = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(content)
    assert [name for name in content["state_dict"] if "encoder." in name] == [
        "unit_extractor.encoder.input_projection.bias"
    ]


def test_adapted_weights_are_left_to_the_folder_and_adapters_are_not(encoder: Path):
    config = compose([
        "task=encode_speech", "speech_encoder=pretrained", f"speech_encoder.pretrained={encoder}", "adaptor=none",
        "frontend=pretrained", f"frontend.pretrained={encoder}", "data=tiny",
        "lora.speech_encoder.targets.all='*'",
    ])  # fmt: skip
    task = assemble(config, ALLOWED)
    load_pretrained(task, config)
    names = published_references(task, config)["speech_encoder"]["tensors"]
    own = task.parts()["speech_encoder"].state_dict()
    assert names
    assert not [name for name in names if is_lora(name)]
    assert [name for name in own if is_lora(name)]


@pytest.fixture(scope="module")
def run(voxzoo, tiny: list[str], encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with a frozen published encoder, stopped on the way and gone on with."""
    folder = tmp_path_factory.mktemp("frozen")
    call = ["train", *words(encoder, tiny[-1]), f"root={folder}", "name=run"]
    done = voxzoo(*call, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"frozen tensors of speech_encoder to {encoder}" in done.stderr
    return folder / "run"


@pytest.mark.slow
def test_checkpoints_leave_the_encoder_to_its_folder(run: Path, encoder: Path):
    content = raw(run)
    assert not [name for name in content["state_dict"] if name.startswith("speech_encoder.")]
    entry = content[ENTRY]["speech_encoder"]
    assert entry["source"] == str(encoder)
    assert len(entry["sha256"]) == 64
    task = load_run(run).task
    fresh = transformers.Wav2Vec2BertModel.from_pretrained(encoder).state_dict()
    ours = task.state_dict()
    assert torch.equal(ours["speech_encoder.input_projection.weight"], fresh["feature_projection.projection.weight"])
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert whole.keys() == ours.keys()
    assert {f"speech_encoder.{name}" for name in entry["tensors"]} == whole.keys() - content["state_dict"].keys()


@pytest.mark.slow
def test_a_folder_that_is_gone_or_other_is_refused(run: Path, encoder: Path, tmp_path: Path, monkeypatch):
    other = tmp_path / "elsewhere" / "encoder"
    shutil.copytree(encoder, other)
    moved = encoder.with_name("moved")
    encoder.rename(moved)
    try:
        with pytest.raises(
            UserError, match=f"speech_encoder are not in it .* looked for {encoder}. .*VOXZOO_PUBLISHED"
        ):
            load_run(run)
        monkeypatch.setenv("VOXZOO_PUBLISHED", str(tmp_path / "elsewhere"))
        assert load_run(run).task is not None
        model = transformers.Wav2Vec2BertModel.from_pretrained(other)
        model.feature_projection.projection.bias.data[0] += 1e-6
        model.save_pretrained(other)
        with pytest.raises(UserError, match=r"not the ones it was trained with \(sha256 \w{12}, expected \w{12}\)"):
            load_run(run)
        (other / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"frozen weights of speech_encoder are not in it, and .*no weights"):
            load_run(run)
    finally:
        moved.rename(encoder)


@pytest.mark.slow
def test_copies_where_asked_and_of_what_another_run_trained(run: Path, voxzoo, tiny, encoder: Path, tmp_path: Path):
    call = ["train", *words(encoder, tiny[-1]), f"root={tmp_path}"]
    done = voxzoo(*call, "name=copied", "checkpoint.copy_frozen=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = raw(tmp_path / "copied")
    assert ENTRY not in content
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert content["state_dict"].keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in content["state_dict"].items())
    # Trained on: no longer those of the folder.
    done = voxzoo(*call, "name=trained", "freeze.speech_encoder=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ENTRY not in raw(tmp_path / "trained")
    done = voxzoo(*call, "name=from", f"init.speech_encoder={tmp_path}/trained", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = raw(tmp_path / "from")
    weights = "speech_encoder.layers.0.ffn1.inner.weight"
    assert torch.equal(content["state_dict"][weights], raw(tmp_path / "trained")["state_dict"][weights])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one", "ddp", "fsdp2", "sharded"])
def test_a_stopped_run_goes_on(how: str, run: Path, voxzoo, tiny: list[str], encoder: Path, tmp_path: Path):
    strategy = {
        "one": [], "ddp": ["trainer=ddp"], "fsdp2": ["trainer=fsdp2"],
        "sharded": ["trainer=fsdp2", "trainer.strategy.sharded_checkpoints=true"],
    }[how]  # fmt: skip
    if strategy:
        strategy += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]
        strategy += ["trainer.devices=2"]
    call = ["train", *strategy, *words(encoder, tiny[-1]), *stopper.WORDS, f"root={tmp_path}", "name=run"]
    for step, code in ((2, 75), (None, 0)):
        done = voxzoo(*call, cwd=tmp_path, env=stopper.environment(step, signal.SIGTERM))
        assert done.returncode == code, done.stderr
    assert "resuming from" in done.stderr
    content = raw(tmp_path / "run")
    assert not [name for name in content["state_dict"] if name.startswith("speech_encoder.")]
    whole = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    expected = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert whole.keys() == expected.keys()
    for name, value in whole.items():
        if how == "one" or name.startswith("speech_encoder."):
            assert torch.equal(value, expected[name]), name
