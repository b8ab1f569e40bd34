"""w2v-BERT 2.0 (`Wav2Vec2BertModel`): a speech encoder, with an adaptor where the config asks for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .conformer import adaptor_rules, encoder_rules
from .family import Family, Nodes
from .keymap import KeyMap
from .masking import masked, span_masking, span_masking_settings
from .settings import encoder_alone, expect, fbank, parts_of, refuse_unless, value, write_fbank

_POSITIONS = {"relative_key": "relative_key", "relative": "relative", None: "none"}


class Wav2Vec2Bert(Family):
    model_types = ("wav2vec2-bert",)

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        position = settings.get("position_embeddings_type", "relative_key")
        if position not in _POSITIONS:
            raise UserError(f"position_embeddings_type={position!r}: expected one of relative_key, relative, null")
        refuse_unless(settings, "hidden_act", "swish", "silu")
        refuse_unless(settings, "layer_norm_eps", 1e-5)
        dim = value(settings, "hidden_size")
        nodes: Nodes = {
            "frontend": fbank(folder),
            "speech_encoder": {
                "_target_": "voxzoo.components.ConformerEncoder",
                "input_dim": value(settings, "feature_projection_input_dim"),
                "dim": dim,
                "num_layers": value(settings, "num_hidden_layers"),
                "num_heads": value(settings, "num_attention_heads"),
                "ffn_dim": value(settings, "intermediate_size"),
                "kernel_size": value(settings, "conv_depthwise_kernel_size"),
                "position": _POSITIONS[position],
                "left_context": value(settings, "left_max_position_embeddings"),
                "right_context": value(settings, "right_max_position_embeddings"),
                "causal_conv": True,
                "conv_norm": "layer",
                "final_norm": False,
                "intermediate_ffn": bool(settings.get("use_intermediate_ffn_before_adapter", False)),
                "input_dropout": settings.get("feat_proj_dropout", 0.0),
                "dropout": settings.get("hidden_dropout", 0.0),
                "attention_dropout": settings.get("attention_dropout", 0.0),
                "activation_dropout": settings.get("activation_dropout", 0.0),
                "conv_dropout": settings.get("conformer_conv_dropout", 0.1),
                "layer_drop": settings.get("layerdrop", 0.1),
                "mask_embedding": masked(settings),
                **span_masking(settings),
            },
        }
        if settings.get("add_adapter"):
            refuse_unless(settings, "adapter_act", "relu")
            kernel, stride = settings.get("adapter_kernel_size", 3), settings.get("adapter_stride", 2)
            _refuse_halves(kernel, stride)
            nodes["adaptor"] = {
                "_target_": "voxzoo.components.ConformerAdaptor",
                "input_dim": dim,
                "output_dim": settings.get("output_hidden_size") or dim,
                "kernel_size": kernel,
                "stride": stride,
                "num_layers": settings.get("num_adapter_layers", 1),
                "num_heads": value(settings, "num_attention_heads"),
                "ffn_dim": value(settings, "intermediate_size"),
                "dropout": settings.get("conformer_conv_dropout", 0.1),
                "ffn_inner_dropout": settings.get("activation_dropout", 0.0),
                "final_norm": False,
                "leak_padding": True,
            }
        return nodes

    def key_map(self, nodes: Nodes) -> KeyMap:
        rules = [*encoder_rules("", nodes["speech_encoder"].get("conv_norm", "layer")), *adaptor_rules("")]
        return KeyMap(rules, left=[r"(lm_head|projector|classifier)\..*"], rename=[(r"^wav2vec2_bert\.", "")])

    def kept(self, nodes: Nodes, came_from: bool) -> tuple[Nodes, dict[str, str]]:
        if not came_from:
            return nodes, {}
        # An adaptor with a decoder behind it is a new one, unless the layout could hold it.
        try:
            self.settings({role: nodes[role] for role in ("speech_encoder", "adaptor") if role in nodes})
            places = ("speech_encoder", "adaptor")
        except UserError:
            places = ("speech_encoder",)
        return encoder_alone(nodes, "wav2vec2-bert", places)

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        write_fbank(nodes, folder)

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        nodes = parts_of(nodes, "wav2vec2-bert", ("speech_encoder", "adaptor"))
        fixed = {"causal_conv": True, "conv_norm": "layer", "final_norm": False, "chunk_size": None}
        expect(nodes, "speech_encoder", "ConformerEncoder", **fixed)
        encoder, adaptor = nodes["speech_encoder"], nodes.get("adaptor")
        if adaptor is None:
            expect(nodes, "speech_encoder", "ConformerEncoder", intermediate_ffn=False)  # it comes with an adapter only
        else:
            shared = {"input_dim": encoder["dim"], "num_heads": encoder["num_heads"], "ffn_dim": encoder["ffn_dim"]}
            expect(nodes, "adaptor", "ConformerAdaptor", final_norm=False, **shared)
            _refuse_halves(adaptor["kernel_size"], adaptor["stride"])
        names = {ours: theirs for theirs, ours in _POSITIONS.items()}
        settings = {
            "architectures": ["Wav2Vec2BertModel"],
            "feature_projection_input_dim": encoder["input_dim"],
            "hidden_size": encoder["dim"],
            "num_hidden_layers": encoder["num_layers"],
            "num_attention_heads": encoder["num_heads"],
            "intermediate_size": encoder["ffn_dim"],
            "conv_depthwise_kernel_size": encoder["kernel_size"],
            "position_embeddings_type": names[encoder["position"] or "none"],
            "left_max_position_embeddings": encoder["left_context"],
            "right_max_position_embeddings": encoder["right_context"],
            "use_intermediate_ffn_before_adapter": encoder["intermediate_ffn"],
            "add_adapter": adaptor is not None,
        }
        settings.update(span_masking_settings(encoder))
        if adaptor is not None:
            settings.update(
                output_hidden_size=adaptor["output_dim"],
                adapter_kernel_size=adaptor["kernel_size"],
                adapter_stride=adaptor["stride"],
                num_adapter_layers=adaptor["num_layers"],
            )
        return settings


def _refuse_halves(kernel: int, stride: int) -> None:
    """The published code pads by one half and counts lengths with the other."""
    if kernel // 2 != stride // 2:
        raise UserError(
            f"adapter_kernel_size={kernel} with adapter_stride={stride}: expected the same when halved, "
            "as 3 and 2 are; for others the published code's lengths do not fit its states"
        )


FAMILY = Wav2Vec2Bert()
