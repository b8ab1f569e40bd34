"""Export to a layout whose parts a model does not have: one line that names the role, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from voxzoo.components.converters import to_transformers
from voxzoo.components.converters.published import _FAMILIES, family_of, layout_of
from voxzoo.components.errors import UserError


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"voxzoo.components.{name}", **arguments}


SIZES = {"dim": 8, "num_layers": 2, "num_heads": 2, "ffn_dim": 12}
CONFORMER = part("ConformerEncoder", input_dim=160, **SIZES)
WAV2VEC2 = part("Wav2Vec2Encoder", **SIZES)
WHISPER = part("WhisperEncoder", **SIZES)
TEXT = part("TransformerSeq2Seq", vocab_size=20, dim=8)
CONV = part("ConvAdaptor", input_dim=8, output_dim=8)
NONE = part("NoAdaptor", input_dim=8, output_dim=8)
FRONTEND = part("Fbank")
TASK = {"_target_": "voxzoo.tasks.SpeechToText"}

MODELS: dict[str, dict[str, Any]] = {
    "nothing": {"frontend": FRONTEND, "task": TASK},
    "stack": {"speech_encoder": WHISPER, "adaptor": part("StackAdaptor", input_dim=8, output_dim=8), "task": TASK},
    "conv": {"speech_encoder": CONFORMER, "adaptor": CONV, "text_seq2seq": TEXT, "task": TASK},
    "wav2vec2 and text": {"speech_encoder": WAV2VEC2, "adaptor": NONE, "text_seq2seq": TEXT, "task": TASK},
    "vocoder": {"text_seq2seq": TEXT, "vocoder": part("GriffinLimVocoder"), "task": TASK},
    "units": {"speech_encoder": CONFORMER, "adaptor": NONE, "t2u": part("CTCT2U", input_dim=8, num_units=5)},
}


@pytest.mark.parametrize("model_type", sorted(_FAMILIES))
@pytest.mark.parametrize("model", MODELS)
def test_parts_of_another_kind_are_named(model: str, model_type: str):
    with pytest.raises(UserError, match=r"text_seq2seq|speech_encoder|adaptor|t2u|vocoder|codec") as found:
        family_of(model_type, "export").settings(MODELS[model])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("model_type", "nodes", "expected"),
    [
        ("hubert", {"speech_encoder": WAV2VEC2}, {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "hidden_act": "gelu"}),
        ("wav2vec2", {"speech_encoder": WAV2VEC2}, {"hidden_act": "gelu", "do_stable_layer_norm": False}),
        (
            "wav2vec2-bert",
            {
                "speech_encoder": {**CONFORMER, "final_norm": False},
                "adaptor": part(
                    "ConformerAdaptor", input_dim=8, output_dim=8, final_norm=False, num_heads=2, ffn_dim=12
                ),
            },
            {"conv_depthwise_kernel_size": 31, "adapter_kernel_size": 8, "adapter_stride": 8, "num_adapter_layers": 1},
        ),
        (
            "whisper",
            {"speech_encoder": WHISPER, "text_seq2seq": part(
                "TransformerSeq2Seq", vocab_size=20, dim=8, num_encoder_layers=0, activation="gelu",
                scale_embeddings=False, key_bias=False, max_positions=9,
            )},
            {"max_source_positions": 1500, "decoder_layers": 6},
        ),
        ("m2m_100", {"text_seq2seq": {**TEXT, "position_start": 1}}, {"encoder_layers": 6, "decoder_ffn_dim": 2048}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [{}, {"adaptor": NONE}])
def test_what_a_config_leaves_out_is_the_default(
    model_type: str, nodes: dict[str, Any], expected: dict[str, Any], beside: dict[str, Any]
):
    """And an adaptor that does nothing is none."""
    found = family_of(model_type, "export").settings({**beside, **nodes})
    assert {key: found[key] for key in expected} == expected


WHISPER_TEXT = part(
    "TransformerSeq2Seq", vocab_size=20, dim=8, num_encoder_layers=0, activation="gelu", scale_embeddings=False,
    key_bias=False, max_positions=9, pad_id=1,
)  # fmt: skip


class Model:
    """What `to_transformers` asks of a task, up to the choice of a layout."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self.config = nodes

    def parts(self) -> dict[str, Any]:
        return self.config


def test_the_only_layout_that_fits_is_chosen(tmp_path: Path):
    assert layout_of({"speech_encoder": WHISPER, "adaptor": NONE, "text_seq2seq": WHISPER_TEXT}) == "whisper"
    assert layout_of({"text_seq2seq": {**TEXT, "pad_id": 1}}) == "m2m_100"
    several = r"which published layout\? these have places for its parts: hubert, wav2vec2; say it with `--as hubert`"
    with pytest.raises(UserError, match=several):
        to_transformers(Model({"speech_encoder": WAV2VEC2}), tmp_path / "out")
    none = r"which published layout\? there are encodec, hubert, m2m_100, .*; say it with `--as whisper` .*which part"
    with pytest.raises(UserError, match=none):
        to_transformers(Model({"speech_encoder": WAV2VEC2, "adaptor": CONV}), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, r"adaptor\.num_heads=4: the published layout has only 2"),
        ({"ffn_dim": 16}, r"adaptor\.ffn_dim=16: the published layout has only 12"),
        ({"kernel_size": 8, "stride": 4}, "adapter_kernel_size=8 with adapter_stride=4"),
    ],
)
def test_an_adaptor_that_would_give_other_numbers_is_refused(change: dict[str, Any], message: str):
    """w2v-BERT 2.0 has one number of heads, and one width inside, for encoder and adaptor."""
    sizes = {"input_dim": 8, "output_dim": 8, "num_heads": 2, "ffn_dim": 12, "final_norm": False}
    nodes = {"speech_encoder": {**CONFORMER, "final_norm": False}, "adaptor": part("ConformerAdaptor", **sizes)}
    family = family_of("wav2vec2-bert", "export")
    assert family.settings(nodes)["add_adapter"]
    nodes["adaptor"].update(change)
    with pytest.raises(UserError, match=message):
        family.settings(nodes)
