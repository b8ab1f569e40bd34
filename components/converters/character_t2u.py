"""Key rules of the non-autoregressive, character-level text-to-unit model (UnitY2) of SeamlessM4T v2."""

from __future__ import annotations

from .keymap import Rule, same, stack, tied, within
from .transformer import encoder_rules

DURATION_PREDICTOR = [
    same("conv1.~", "conv1.~"),
    same("norm1.~", "ln1.~"),
    same("conv2.~", "conv2.~"),
    same("norm2.~", "ln2.~"),
    same("proj.~", "proj.~"),
]

_LAYER = [
    stack("self_attention.qkv.weight", *(f"self_attn.{name}_proj.weight" for name in "qkv")),
    stack("self_attention.qkv.bias", *(f"self_attn.{name}_proj.bias" for name in "qkv")),
    same("self_attention.out.~", "self_attn.out_proj.~"),
    same("self_attention_norm.~", "self_attn_layer_norm.~"),
    same("conv1.~", "conv1.~"),
    same("conv2.~", "conv2.~"),
    same("conv_norm.~", "conv_layer_norm.~"),
]


def t2u_rules(prefix: str, tie: bool = True) -> list[Rule]:
    """`t2u` of a model whose published keys begin with `prefix` (`t2u_model.`). The aligner has no published keys.

    Args:
        tie: the published embedding and output layer of units are one matrix. It is the output layer that counts, and
            the embedding is read by nothing.
    """
    decoder = f"{prefix}model.decoder."
    embedding = [f"{decoder}embed_tokens.weight"] if tie else []
    return [
        *encoder_rules("t2u.encoder.", f"{prefix}model.encoder.", "m4t"),
        tied("t2u.output.weight", *embedding, f"{prefix}lm_head.weight"),
        same("t2u.character_embedding.weight", f"{decoder}embed_char.weight"),
        same("t2u.character_alpha", f"{decoder}pos_emb_alpha_char"),
        same("t2u.unit_alpha", f"{decoder}pos_emb_alpha"),
        *within("t2u.duration.", f"{decoder}duration_predictor.", DURATION_PREDICTOR),
        *within("t2u.layers.*.", f"{decoder}layers.*.", _LAYER),
        same("t2u.norm.~", f"{decoder}layer_norm.~"),
    ]
