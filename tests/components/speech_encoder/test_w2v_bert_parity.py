"""w2v-BERT 2.0 through its folder against transformers: with and without adapter, all kinds of positions, odd sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from against import same, same_gradients
from rows import ragged
from voxzoo.components import ConformerEncoder
from voxzoo.components.converters import from_transformers, to_transformers
from voxzoo.components.converters.published import PublishedModel
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose

transformers = pytest.importorskip("transformers")

LENGTHS = (37, 50, 23, 8)
STILL = dict.fromkeys(
    (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "conformer_conv_dropout",
        "layerdrop",
    ),
    0.0,
)
SHAPES: dict[str, dict[str, Any]] = {
    "keys": {
        "feature_projection_input_dim": 14,
        "hidden_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 44,
        "conv_depthwise_kernel_size": 5,
        "position_embeddings_type": "relative_key",
        "left_max_position_embeddings": 70,
        "right_max_position_embeddings": 1,
    },
    "relative": {
        "feature_projection_input_dim": 9,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 31,
        "conv_depthwise_kernel_size": 9,
        "position_embeddings_type": "relative",
    },
    "none": {
        "feature_projection_input_dim": 22,
        "hidden_size": 18,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 50,
        "conv_depthwise_kernel_size": 31,
        "position_embeddings_type": None,
    },
}
BEHIND: dict[str, dict[str, Any]] = {
    "alone": {},
    "adapter": {"add_adapter": True, "num_adapter_layers": 2},
    "wider": {
        "add_adapter": True,
        "adapter_kernel_size": 5,
        "adapter_stride": 4,
        "output_hidden_size": 36,
        "use_intermediate_ffn_before_adapter": True,
    },
}


def _reference(shape: str, behind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**{**SHAPES[shape], **BEHIND[behind], **STILL, **settings})
    reference = transformers.Wav2Vec2BertModel(config)
    with torch.no_grad():  # norms and biases start as 1 and 0 and would hide a mix-up
        for value in reference.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return reference.eval()


def _run(model: PublishedModel, batch: Padded) -> Padded:
    states = model.speech_encoder(batch)
    return model.adaptor(states).states if "adaptor" in model.parts() else states


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("prob", [0.0, 0.05])
def test_there_and_back(shape: str, behind: str, prob: float, tmp_path: Path) -> None:
    reference = _reference(shape, behind, mask_time_prob=prob)
    reference.save_pretrained(tmp_path / "a")
    model = from_transformers(tmp_path / "a")
    assert model.left == []
    encoder = model.speech_encoder
    assert isinstance(encoder, ConformerEncoder)
    assert (encoder.mask_embedding is not None) == (prob > 0) == hasattr(reference, "masked_spec_embed")
    assert encoder.masking.time_prob == prob
    batch = ragged(LENGTHS, encoder.input_dim)
    with torch.no_grad():
        theirs = reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state
        same(_run(model, batch), theirs)
        for row in batch.unpad():
            same(_run(model, Padded.from_list([row])), reference(row[None]).last_hidden_state)
    to_transformers(model, tmp_path / "b")
    again, info = transformers.Wav2Vec2BertModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values()), info
    first, second = reference.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = from_transformers(tmp_path / "b").state_dict()
    assert all(torch.equal(value, third[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        states = again.eval()(batch.data, attention_mask=batch.mask.long()).last_hidden_state
    torch.testing.assert_close(states, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("behind", BEHIND)
def test_gradients_of_a_training_step(shape: str, behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in training mode with the same steps masked."""
    reference = _reference(shape, behind).train()
    reference.save_pretrained(tmp_path / "a")
    model = from_transformers(tmp_path / "a").train()
    encoder = model.speech_encoder
    assert isinstance(encoder, ConformerEncoder)
    batch = ragged(LENGTHS, encoder.input_dim)
    generator = torch.Generator().manual_seed(3)
    masked = (torch.rand(batch.mask.shape, generator=generator) < 0.3) & batch.mask
    monkeypatch.setattr(encoder.masking, "steps", lambda *_: masked)
    ours = _run(model, batch)
    theirs = reference(batch.data, attention_mask=batch.mask.long(), mask_time_indices=masked).last_hidden_state
    same(ours, theirs)
    same_gradients(model, reference, ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"add_adapter": True, "adapter_kernel_size": 8, "adapter_stride": 2}, "adapter_kernel_size=8"),
        ({"add_adapter": True, "adapter_act": "gelu"}, "adapter_act='gelu'"),
        ({"position_embeddings_type": "rotary"}, "position_embeddings_type='rotary'"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001"),
    ],
)
def test_refused_with_the_key_and_its_value(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    _reference("keys", "alone", **settings).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=re.escape(message)):
        from_transformers(tmp_path / "a")


def test_shipped_size() -> None:
    with torch.device("meta"):
        reference = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig())
        encoder = build(compose(["speech_encoder=w2v_bert_large", "frontend=fbank"]).speech_encoder)
    counts = [sum(p.numel() for p in part.parameters()) for part in (reference, encoder)]
    assert counts == [580_493_120, 580_493_120]
