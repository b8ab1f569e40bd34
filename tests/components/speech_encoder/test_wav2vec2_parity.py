"""wav2vec 2.0, XLS-R and HuBERT against transformers: random weights, odd sizes, both norms in both orders, padding."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from against import same, same_gradients
from rows import ragged
from safetensors.torch import load_file, save_file
from torch import nn
from voxzoo.components import RawWaveform, Wav2Vec2Encoder
from voxzoo.components.converters import from_transformers, to_transformers
from voxzoo.components.converters.published import PublishedModel, family_of
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose

transformers = pytest.importorskip("transformers")

SHAPES = {
    "odd": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 41,
        "conv_dim": (12, 10, 14),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_conv_pos_embeddings": 9,
        "num_conv_pos_embedding_groups": 4,
    },
    "gaps": {  # a stride longer than the kernel, and one that does not divide it
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 52,
        "conv_dim": (9, 7, 11, 6),
        "conv_kernel": (7, 5, 2, 8),
        "conv_stride": (3, 2, 3, 3),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 5,
        "hidden_act": "relu",
    },
    "published": {  # its convolutions, narrower
        "hidden_size": 30,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "intermediate_size": 33,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 3,
    },
}
LENGTHS = (4100, 2777, 1931)
STILL = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"), 0.0
)


def _reference(kind: str, shape: str, norm: str, norm_first: bool, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{
            **SHAPES[shape],
            "num_feat_extract_layers": len(SHAPES[shape]["conv_dim"]),
            "feat_extract_norm": norm,
            "do_stable_layer_norm": norm_first,
            "conv_bias": norm == "layer",
            **STILL,
            **settings,
        }
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    _shake(model)
    return model


def _shake(model: nn.Module) -> None:
    """Norms and biases start as 1 and 0 and would hide a mix-up."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.empty_like(value).normal_(0, 0.1, generator=generator))


def _imported(model: Any, folder: Path) -> PublishedModel:
    model.save_pretrained(folder)
    return from_transformers(folder)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_states(kind: str, shape: str, norm: str, norm_first: bool, tmp_path: Path) -> None:
    """The output and every hidden state, of a padded batch and of each row alone."""
    reference = _reference(kind, shape, norm, norm_first)
    encoder = _imported(reference, tmp_path / "a").speech_encoder
    assert isinstance(encoder, Wav2Vec2Encoder)
    # As the feature extractors of these models say: those with group norm get no attention mask.
    assert encoder.leak_padding == ("all" if norm == "group" else "none")
    batch = ragged(LENGTHS)
    masks = {"all": None, "norm": batch.mask.long(), "none": batch.mask.long()}
    for leak in ("all", "norm") if norm == "group" else ("none",):
        encoder.leak_padding = leak
        theirs = reference(batch.data, attention_mask=masks[leak], output_hidden_states=True)
        encoder.layer = None
        same(encoder(batch), theirs.last_hidden_state)
        expected = reference._get_feat_extract_output_lengths(batch.lengths)
        assert encoder.output_lengths(batch.lengths).tolist() == expected.tolist()
        assert len(theirs.hidden_states) == len(encoder.layers) + 1
        for number, states in enumerate(theirs.hidden_states):
            encoder.layer = number
            same(encoder(batch), states)
    encoder.layer, encoder.leak_padding = None, "none"
    together = encoder(batch)
    for row, samples in zip(together.unpad(), batch.unpad(), strict=True):
        torch.testing.assert_close(row, reference(samples[None]).last_hidden_state[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_of_a_training_step(
    kind: str, shape: str, norm: str, norm_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, in training mode with the same steps masked."""
    reference = _reference(kind, shape, norm, norm_first).train()
    model = _imported(reference, tmp_path / "a").train()
    encoder = model.speech_encoder
    assert isinstance(encoder, Wav2Vec2Encoder)
    encoder.leak_padding = "norm" if norm == "group" else "none"
    batch = ragged(LENGTHS)
    lengths = encoder.output_lengths(batch.lengths)
    generator = torch.Generator().manual_seed(3)
    masked = torch.rand(len(lengths), int(lengths.max()), generator=generator) < 0.3
    masked &= torch.arange(int(lengths.max())) < lengths[:, None]
    assert masked.any()
    monkeypatch.setattr(encoder.masking, "steps", lambda *_: masked)
    ours = encoder(batch)
    theirs = reference(batch.data, attention_mask=batch.mask.long(), mask_time_indices=masked).last_hidden_state
    same(ours, theirs)
    same_gradients(model, reference, ours, theirs)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_there_and_back(kind: str, norm: str, tmp_path: Path) -> None:
    reference = _reference(kind, "odd", norm, norm == "layer", mask_time_prob=0.07, mask_time_length=3)
    model = _imported(reference, tmp_path / "a")
    assert model.left == []
    encoder = model.speech_encoder
    assert isinstance(encoder, Wav2Vec2Encoder)
    assert (encoder.masking.time_prob, encoder.masking.time_length) == (0.07, 3)
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in reference.parameters())
    to_transformers(model, tmp_path / "b")
    again, info = type(reference).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    first, second = reference.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert again.config.to_dict() == reference.config.to_dict() | {"_name_or_path": again.config._name_or_path}
    third = from_transformers(tmp_path / "b").state_dict()
    assert all(torch.equal(value, third[key]) for key, value in model.state_dict().items())
    batch = ragged(LENGTHS)
    with torch.no_grad():
        expected = reference(batch.data).last_hidden_state
        torch.testing.assert_close(again.eval()(batch.data).last_hidden_state, expected, atol=0, rtol=0)


def test_a_model_that_never_had_a_config_json(tmp_path: Path) -> None:
    """What the family writes is enough for transformers, without anything imported laid under it."""
    for kind, norm in (("hubert", "group"), ("wav2vec2", "layer")):
        nodes = {
            "speech_encoder": {
                "_target_": "voxzoo.components.Wav2Vec2Encoder",
                "dim": 32,
                "num_layers": 2,
                "num_heads": 2,
                "ffn_dim": 30,
                "conv_norm": norm,
                "norm_first": norm == "layer",
                "conv_bias": norm == "layer",
            }
        }
        model = PublishedModel(kind, nodes, {})
        model.add_module(
            "speech_encoder",
            Wav2Vec2Encoder(**{k: v for k, v in nodes["speech_encoder"].items() if k != "_target_"}).eval(),
        )
        to_transformers(model, tmp_path / kind)
        loaded, info = transformers.AutoModel.from_pretrained(tmp_path / kind, output_loading_info=True)
        assert not any(info.values()), info
        batch = Padded.from_list([torch.randn(3000)])
        with torch.no_grad():
            same(model.speech_encoder(batch), loaded.eval()(batch.data).last_hidden_state)


def test_older_names_prefixes_and_heads(tmp_path: Path) -> None:
    reference = _reference("Hubert", "odd", "layer", True)
    config = transformers.HubertConfig(**reference.config.to_dict())
    recogniser = transformers.HubertForCTC(config)
    recogniser.hubert.load_state_dict(reference.state_dict())
    recogniser.save_pretrained(tmp_path / "a")
    weights = load_file(tmp_path / "a" / "model.safetensors")
    new = "hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original"
    for number, old in (("0", "weight_g"), ("1", "weight_v")):
        weights[f"hubert.encoder.pos_conv_embed.conv.{old}"] = weights.pop(new + number)
    save_file(weights, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    model = from_transformers(tmp_path / "a")
    assert sorted(model.left) == ["lm_head.bias", "lm_head.weight"]
    batch = ragged(LENGTHS)
    with torch.no_grad():
        same(model.speech_encoder(batch), reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state)
    to_transformers(model, tmp_path / "b")
    again, info = transformers.HubertModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in again.state_dict().items())

    pretraining = transformers.Wav2Vec2ForPreTraining(_reference("Wav2Vec2", "odd", "group", False).config)
    pretraining.save_pretrained(tmp_path / "c")
    left = from_transformers(tmp_path / "c").left
    assert {key.split(".")[0] for key in left} == {"quantizer", "project_q", "project_hid"}


@pytest.mark.parametrize(("normalise", "mask"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("norm", ["group", "layer"])
@torch.no_grad()
def test_from_audio_as_a_user_of_transformers(norm: str, normalise: bool, mask: bool, tmp_path: Path) -> None:
    """The feature extractor beside the weights says how samples are normalised and whether padding is told.

    One that normalises and gives no attention mask counts the padding into mean and variance of the samples; there a
    row alone is compared.
    """
    reference = _reference("Wav2Vec2", "odd", norm, norm == "layer")
    reader = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=mask)
    reader.save_pretrained(tmp_path / "a")
    model = _imported(reference, tmp_path / "a")
    generator = torch.Generator().manual_seed(5)
    audio = [0.3 + 0.1 * torch.randn(length, generator=generator) for length in LENGTHS]
    if normalise and not mask:
        audio = audio[:1]
    read = reader([row.numpy() for row in audio], sampling_rate=16000, padding=True, return_tensors="pt")
    assert isinstance(model.frontend, RawWaveform)
    batch = Padded.from_list([model.frontend(row) for row in audio])
    torch.testing.assert_close(batch.data, read["input_values"], atol=1e-5, rtol=1e-5)
    ours, theirs = model.speech_encoder(batch), reference(**read).last_hidden_state
    for row, other, length in zip(ours.data, theirs, ours.lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:length], other[:length], atol=1e-4, rtol=1e-4)


def test_no_masking_vector_and_no_masking(tmp_path: Path) -> None:
    without = _imported(_reference("Wav2Vec2", "odd", "layer", True, mask_time_prob=0.0), tmp_path / "a")
    assert without.speech_encoder.mask_embedding is None
    quiet = _imported(_reference("Wav2Vec2", "odd", "layer", True, apply_spec_augment=False), tmp_path / "b")
    encoder = quiet.speech_encoder
    assert isinstance(encoder, Wav2Vec2Encoder)
    assert encoder.mask_embedding is not None
    assert encoder.masking.time_prob == 0
    for name, model in (("a2", without), ("b2", quiet)):
        to_transformers(model, tmp_path / name)
        _, info = transformers.Wav2Vec2Model.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
    assert json.loads((tmp_path / "b2" / "config.json").read_text())["apply_spec_augment"] is False


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Wav2Vec2", {"add_adapter": True}, "add_adapter=True"),
        ("Wav2Vec2", {"adapter_attn_dim": 4}, "adapter_attn_dim=4"),
        ("Wav2Vec2", {"feat_extract_activation": "relu"}, "feat_extract_activation='relu'"),
        ("Wav2Vec2", {"hidden_act": "tanh"}, "hidden_act='tanh'"),
        ("Wav2Vec2", {"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001"),
        ("Hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True"),
    ],
)
def test_refused_with_the_key_and_its_value(kind: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    _reference(kind, "odd", "layer", True).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError) as caught:
        from_transformers(tmp_path / "a")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_projection_without_norm_is_huberts_alone(tmp_path: Path) -> None:
    reference = _reference("Hubert", "odd", "layer", False, feat_proj_layer_norm=False)
    model = _imported(reference, tmp_path / "a")
    batch = ragged(LENGTHS)
    with torch.no_grad():
        same(model.speech_encoder(batch), reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state)
    to_transformers(model, tmp_path / "b")
    _, info = transformers.HubertModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    with pytest.raises(UserError, match="input_norm"):
        to_transformers(model, tmp_path / "c", model_type="wav2vec2")


_LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
_SIZES = {
    24: {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16, **_LARGE},
    48: {"hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120, "num_attention_heads": 16, **_LARGE},
    49: {"hidden_size": 1920, "num_hidden_layers": 48, "intermediate_size": 7680, "num_attention_heads": 16, **_LARGE},
}


@pytest.mark.parametrize(
    ("choice", "kind", "settings", "published"),
    [
        ("hubert_base", "Hubert", {}, 94_371_712),
        ("hubert_large", "Hubert", _SIZES[24], 315_438_720),
        ("hubert_xlarge", "Hubert", _SIZES[48], 962_497_408),
        ("wav2vec2_base", "Wav2Vec2", {}, 94_371_712),
        ("wav2vec2_large", "Wav2Vec2", _SIZES[24], 315_438_720),
        ("xls_r_300m", "Wav2Vec2", _SIZES[24], 315_438_720),
        ("xls_r_1b", "Wav2Vec2", _SIZES[48], 962_497_408),
        ("xls_r_2b", "Wav2Vec2", _SIZES[49], 2_159_259_648),
    ],
)
def test_shipped_sizes(choice: str, kind: str, settings: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        reference = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))
        encoder = build(compose([f"speech_encoder={choice}", "frontend=raw"]).speech_encoder)
    loaded = (
        family_of(kind.lower(), "test")
        .key_map({})
        .load(
            reference.state_dict(),
            {f"speech_encoder.{key}": value.shape for key, value in encoder.state_dict().items()},
        )
    )
    assert not loaded.missing
    assert not loaded.unused
    counts = [sum(p.numel() for p in part.parameters()) for part in (reference, encoder)]
    assert counts == [published, published]


# Files of fairseq

_FAIRSEQ_NAMES = [
    ("feature_projection.layer_norm", "layer_norm"),
    ("feature_projection.projection", "post_extract_proj"),
    ("masked_spec_embed", "mask_emb"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    (".attention.", ".self_attn."),
]


CONVS = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"


def _as_fairseq(state: dict[str, torch.Tensor], norm: str) -> dict[str, torch.Tensor]:
    """The tensors of transformers under fairseq's names (reference/mslm_s2st.md, section 10)."""
    written = {}
    for key, value in state.items():
        key = re.sub(r"conv_layers\.(\d+)\.conv\.", r"conv_layers.\1.0.", key)
        key = re.sub(r"conv_layers\.(\d+)\.layer_norm", r"conv_layers.\1.2" + (".1" if norm == "layer" else ""), key)
        key = re.sub(r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm", key)
        for theirs, fairseq in _FAIRSEQ_NAMES:
            key = key.replace(theirs, fairseq)
        written[key] = value
    return written


def _fairseq_file(path: Path, norm: str, kind: str = "Hubert", prefix: str = "", **cfg: Any) -> Any:
    """A file as fairseq writes it, of a random model, and the model."""
    shape = {**SHAPES["published"], "hidden_size": 128, "num_attention_heads": 2, "num_conv_pos_embedding_groups": 16}
    SHAPES["fairseq"] = shape
    reference = _reference(kind, "fairseq", norm, norm == "layer", mask_time_prob=0.1)
    state = {prefix + key: value for key, value in _as_fairseq(reference.state_dict(), norm).items()}
    heads = {"final_proj.weight": torch.zeros(3, 4), "label_embs_concat": torch.zeros(3, 4)}
    if kind == "Wav2Vec2":
        heads = {"quantizer.vars": torch.zeros(3), "project_q.weight": torch.zeros(3, 4)}
    torch.save({"args": argparse.Namespace(arch="x"), "cfg": cfg or None, "model": {**state, **heads}}, path)
    return reference


@pytest.mark.parametrize(
    ("norm", "kind", "prefix", "cfg"),
    [
        ("group", "Hubert", "", {}),  # hubert_base_ls960.pt and mHuBERT: no settings that can be read
        ("layer", "Hubert", "", {"task": {"normalize": True}, "model": {"layer_norm_first": True}}),
        ("layer", "Hubert", "w2v_encoder.w2v_model.", {"model": {"conv_feature_layers": CONVS}}),
        ("layer", "Wav2Vec2", "", {}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_files_of_fairseq(norm: str, kind: str, prefix: str, cfg: dict[str, Any], tmp_path: Path) -> None:
    from voxzoo.components.converters import from_original

    reference = _fairseq_file(tmp_path / "hubert.pt", norm, kind, prefix, **cfg)
    model = from_original(tmp_path / "hubert.pt")
    assert (model.model_type, model.frontend.normalise) == (kind.lower(), norm == "layer")
    assert len(model.left) == 2
    batch = ragged(LENGTHS)
    encoder = model.speech_encoder
    assert encoder.leak_padding == ("norm" if norm == "group" else "none")
    same(encoder(batch), reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state)
    to_transformers(model, tmp_path / "out")
    again, info = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(again.state_dict()[key], value) for key, value in reference.state_dict().items())


def test_a_file_of_fairseq_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from voxzoo.tasks.commands.cli import main

    _fairseq_file(tmp_path / "mhubert.pt", "group")
    assert main(["import", str(tmp_path / "mhubert.pt"), str(tmp_path / "run")]) == 0
    assert "Wav2Vec2Encoder" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "mhubert.pt"), str(tmp_path / "b"), "--vocoder", "x.pt"]) == 1
    assert "is a speech encoder of fairseq, which has none" in capsys.readouterr().err
    content = torch.load(tmp_path / "mhubert.pt", weights_only=False)
    del content["model"]["encoder.layers.0.fc1.weight"]
    torch.save(content, tmp_path / "broken.pt")
    assert main(["import", str(tmp_path / "broken.pt"), str(tmp_path / "b")]) == 1
    assert "encoder.layers.0.feed_forward.intermediate_dense.weight is missing" in capsys.readouterr().err
    content["model"] = {"embed.weight": torch.zeros(2)}
    torch.save(content, tmp_path / "other.pt")
    assert main(["import", str(tmp_path / "other.pt"), str(tmp_path / "b")]) == 1
    assert "it holds embed.weight" in capsys.readouterr().err
