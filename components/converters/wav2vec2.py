"""wav2vec 2.0 and XLS-R (`Wav2Vec2Model`), and what HuBERT shares with them: a speech encoder over samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .family import Family, Nodes
from .keymap import KeyMap, same, stack, within
from .masking import masked, span_masking, span_masking_settings
from .settings import activation, encoder_alone, expect, parts_of, read_json_if, refuse_unless, value, write_json

_ATTENTION = [
    stack("qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight"),
    stack("qkv.bias", "q_proj.bias", "k_proj.bias", "v_proj.bias"),
    same("out.~", "out_proj.~"),
]
_RULES = [
    same("convs.*.conv.~", "feature_extractor.conv_layers.*.conv.~"),
    same("convs.*.norm.~", "feature_extractor.conv_layers.*.layer_norm.~"),
    same("input_norm.~", "feature_projection.layer_norm.~"),
    same("input_projection.~", "feature_projection.projection.~"),
    same("mask_embedding", "masked_spec_embed"),
    same("position.g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    same("position.v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    same("position.bias", "encoder.pos_conv_embed.conv.bias"),
    same("norm.~", "encoder.layer_norm.~"),
    *within("layers.*.attention.", "encoder.layers.*.attention.", _ATTENTION),
    same("layers.*.attention_norm.~", "encoder.layers.*.layer_norm.~"),
    same("layers.*.ffn.inner.~", "encoder.layers.*.feed_forward.intermediate_dense.~"),
    same("layers.*.ffn.outer.~", "encoder.layers.*.feed_forward.output_dense.~"),
    same("layers.*.ffn_norm.~", "encoder.layers.*.final_layer_norm.~"),
]
# Heads of pre-training, recognition and classification.
_LEFT = [
    r"(lm_head|quantizer|project_q|project_hid|projector|classifier|tdnn|objective)\..*",
    r"feature_extractor\.(weight|bias)",
    r"layer_weights",
]
# Weight normalisation before torch 2.1, and the prefix of classes with a head.
_RENAME = [
    (r"^(wav2vec2|hubert)\.", ""),
    (r"(pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
    (r"(pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
]


class Wav2Vec2(Family):
    model_types = ("wav2vec2",)
    architecture = "Wav2Vec2Model"

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        self.refuse(settings)
        norm = settings.get("feat_extract_norm", "group")
        if norm not in ("group", "layer"):
            raise UserError(f"feat_extract_norm={norm!r}: expected group or layer")
        reader = read_json_if(folder, "preprocessor_config.json")
        encoder = {
            "_target_": "voxzoo.components.Wav2Vec2Encoder",
            "dim": value(settings, "hidden_size"),
            "num_layers": value(settings, "num_hidden_layers"),
            "num_heads": value(settings, "num_attention_heads"),
            "ffn_dim": value(settings, "intermediate_size"),
            "conv_dims": list(value(settings, "conv_dim")),
            "conv_kernels": list(value(settings, "conv_kernel")),
            "conv_strides": list(value(settings, "conv_stride")),
            "conv_bias": settings.get("conv_bias", False),
            "conv_norm": norm,
            "norm_first": settings.get("do_stable_layer_norm", False),
            "input_norm": settings.get("feat_proj_layer_norm", True),
            "position_kernel": settings.get("num_conv_pos_embeddings", 128),
            "position_groups": settings.get("num_conv_pos_embedding_groups", 16),
            "activation": activation(settings, "hidden_act", "gelu"),
            "leak_padding": _leak(norm, reader),
            "input_dropout": settings.get("feat_proj_dropout", 0.0),
            "dropout": settings.get("hidden_dropout", 0.1),
            "attention_dropout": settings.get("attention_dropout", 0.1),
            "activation_dropout": settings.get("activation_dropout", 0.1),
            "layer_drop": settings.get("layerdrop", 0.1),
            "mask_embedding": masked(settings),
            **span_masking(settings),
        }
        frontend = {
            "_target_": "voxzoo.components.RawWaveform",
            "sample_rate": reader.get("sampling_rate", 16000),
            "normalise": reader.get("do_normalize", True),
            "output_dim": 1,
        }
        return {"frontend": frontend, "speech_encoder": encoder}

    def refuse(self, settings: dict[str, Any]) -> None:
        """Refuse settings that no part has."""
        if settings.get("add_adapter"):
            raise UserError(
                "add_adapter=True: the convolutions behind such a model have no part here; expected False (take the "
                "model without them and put adaptor=conv behind it)"
            )
        if settings.get("adapter_attn_dim") is not None:
            raise UserError(
                f"adapter_attn_dim={settings['adapter_attn_dim']}: adapters inside the blocks have no part here; "
                "expected null"
            )
        refuse_unless(settings, "feat_extract_activation", "gelu")
        refuse_unless(settings, "layer_norm_eps", 1e-5)

    def key_map(self, nodes: Nodes) -> KeyMap:
        return KeyMap(within("speech_encoder.", "", _RULES), left=_LEFT, rename=_RENAME)

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        nodes = parts_of(nodes, self.model_types[0], ("speech_encoder",))
        expect(nodes, "speech_encoder", "Wav2Vec2Encoder")
        encoder = nodes["speech_encoder"]
        if encoder["norm_first"] and encoder["layer"] == encoder["num_layers"]:
            # Any other inner layer is one of `hidden_states` there.
            expect(nodes, "speech_encoder", "Wav2Vec2Encoder", layer=None)
        convs = {key: list(encoder[key]) for key in ("conv_dims", "conv_kernels", "conv_strides")}
        return {
            "architectures": [self.architecture],
            "hidden_size": encoder["dim"],
            "num_hidden_layers": encoder["num_layers"],
            "num_attention_heads": encoder["num_heads"],
            "intermediate_size": encoder["ffn_dim"],
            "conv_dim": convs["conv_dims"],
            "conv_kernel": convs["conv_kernels"],
            "conv_stride": convs["conv_strides"],
            "num_feat_extract_layers": len(convs["conv_dims"]),
            "conv_bias": encoder["conv_bias"],
            "feat_extract_norm": encoder["conv_norm"],
            "do_stable_layer_norm": encoder["norm_first"],
            "num_conv_pos_embeddings": encoder["position_kernel"],
            "num_conv_pos_embedding_groups": encoder["position_groups"],
            "hidden_act": encoder["activation"],
            **span_masking_settings(encoder),
            **self.own_settings(encoder),
        }

    def kept(self, nodes: Nodes, came_from: bool) -> tuple[Nodes, dict[str, str]]:
        return encoder_alone(nodes, self.model_types[0], ("speech_encoder",)) if came_from else (nodes, {})

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        frontend = nodes.get("frontend") or {}
        if not frontend.get("_target_"):
            return
        content = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": frontend.get("sample_rate", 16000),
            "do_normalize": frontend.get("normalise", False),
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": nodes["speech_encoder"].get("leak_padding", "none") != "all",
        }
        write_json(folder / "preprocessor_config.json", content)

    def notes(self, nodes: Nodes) -> list[str]:
        encoder = nodes["speech_encoder"]
        layer = encoder.get("layer")
        if layer is None or layer == encoder["num_layers"]:
            return []
        return [
            f"speech_encoder.layer={layer}: here the encoder returns the states behind that block; in transformers "
            f"they are hidden_states[{layer}], with output_hidden_states=True"
        ]

    def own_settings(self, encoder: dict[str, Any]) -> dict[str, Any]:
        """What config.json of this model type alone has."""
        refuse_unless(encoder, "input_norm", True)
        return {}


def _leak(norm: str, reader: dict[str, Any]) -> str:
    """What transformers lets leak: its feature extractors say whether the model gets an attention mask at all. Those of
    models with `feat_extract_norm: group` say no, also where there is no file to ask."""
    told = reader.get("return_attention_mask", norm == "layer")
    return "all" if not told else "norm" if norm == "group" else "none"


FAMILY = Wav2Vec2()
