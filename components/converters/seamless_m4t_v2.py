"""SeamlessM4T v2 (`SeamlessM4Tv2Model` and its classes for single tasks)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..layers.unit_vocabulary import OFFSET
from . import character_t2u
from .family import Nodes
from .keymap import Rule
from .seamless_m4t import UNIT_MATRICES, Fields, SeamlessM4T, dropouts, read, write
from .settings import expect, refuse_unless, value

_T2U: Fields = {
    "input_dim": "hidden_size",
    "num_units": "unit_hifi_gan_vocab_size",
    "dim": "hidden_size",
    "num_heads": "t2u_encoder_attention_heads",
    "ffn_dim": "t2u_encoder_ffn_dim",
    "num_encoder_layers": "t2u_encoder_layers",
    "num_decoder_layers": "t2u_decoder_layers",
    "num_characters": "char_vocab_size",
    "vocab_size": "t2u_vocab_size",
    "duration_dim": "t2u_variance_predictor_hidden_dim",
    "duration_kernel_size": "t2u_variance_predictor_kernel_size",
    "activation": "activation_function",
    "scale_embeddings": "scale_embedding",
}
_NO_CHUNKS = 1_000_000_000
"""A chunk that no speech fills: config.json has to have a number."""


class SeamlessM4Tv2(SeamlessM4T):
    """v2: clipped relative positions and causal convolution in the encoder, a non-autoregressive second pass."""

    model_types = ("seamless_m4t_v2",)
    name = "SeamlessM4Tv2"
    version = 2
    positions: ClassVar[dict[Any, str]] = {"relative_key": "relative_key", None: "none", "none": "none"}
    t2u_eos = "keep_shorter"
    unread_keys = UNIT_MATRICES[:1]

    def convolution(self, settings: dict[str, Any]) -> dict[str, Any]:
        fixed = {"causal_conv": True, "conv_norm": "layer"}
        if not settings:
            return fixed
        left = value(settings, "speech_encoder_left_chunk_num")
        return {
            **fixed,
            "left_context": value(settings, "left_max_position_embeddings"),
            "right_context": value(settings, "right_max_position_embeddings"),
            "chunk_size": value(settings, "speech_encoder_chunk_size"),
            "left_chunks": left if left >= 0 else None,
        }

    def t2u(self, settings: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
        for key, other in (
            ("t2u_decoder_attention_heads", "t2u_encoder_attention_heads"),
            ("t2u_variance_predictor_embed_dim", "hidden_size"),
        ):
            refuse_unless(settings, key, value(settings, other))
        return {
            "_target_": "voxzoo.components.UnitY2T2U",
            **read(settings, _T2U),
            "kernel_size": 7,
            "duration_dropout": settings.get("t2u_variance_pred_dropout", 0.5),
            **dropouts(settings),
            "conv_dropout": settings.get("dropout", 0.1),
            "vocoder_predicts_durations": True,
            "eos_as_unit": True,
            "label_smoothing": 0.0,
            "aligner": False,
        }

    def t2u_languages(self, generation: dict[str, Any]) -> list[str]:
        return []

    def t2u_output(self, settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        return {}

    def t2u_rules(self, nodes: Nodes, tie: bool) -> list[Rule]:
        return character_t2u.t2u_rules("t2u_model.", tie)

    def t2u_settings(self, settings: dict[str, Any], nodes: Nodes) -> None:
        expect(nodes, "t2u", "UnitY2T2U", kernel_size=7)
        if nodes["t2u"]["vocab_size"] is None:
            nodes["t2u"]["vocab_size"] = nodes["t2u"]["num_units"] + OFFSET
        write(settings, nodes, "t2u", _T2U)
        settings.update(
            t2u_decoder_attention_heads=nodes["t2u"]["num_heads"],
            t2u_variance_predictor_embed_dim=nodes["t2u"]["dim"],
            t2u_variance_pred_dropout=nodes["t2u"]["duration_dropout"],
        )

    def encoder_settings(self, encoder: dict[str, Any]) -> dict[str, Any]:
        left = encoder["left_chunks"]
        return {
            "left_max_position_embeddings": encoder["left_context"],
            "right_max_position_embeddings": encoder["right_context"],
            "speech_encoder_chunk_size": encoder["chunk_size"] or _NO_CHUNKS,
            "speech_encoder_left_chunk_num": -1 if left is None else left,
        }


FAMILY = SeamlessM4Tv2()
