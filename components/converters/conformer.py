"""Key rules of the Conformer encoder and its adaptor, shared by w2v-BERT 2.0 and SeamlessM4T v1 and v2."""

from __future__ import annotations

from .keymap import Rule, same, squeeze, stack, within

_FFN = [same("inner.~", "intermediate_dense.~"), same("outer.~", "output_dense.~")]

_ATTENTION = [
    stack("qkv.weight", "linear_q.weight", "linear_k.weight", "linear_v.weight"),
    stack("qkv.bias", "linear_q.bias", "linear_k.bias", "linear_v.bias"),
    same("out.~", "linear_out.~"),
    same("pos.~", "linear_pos.~"),
    same("bias_u", "pos_bias_u"),
    same("bias_v", "pos_bias_v"),
    same("distance", "distance_embedding.weight"),
]

_BLOCK = [
    same("ffn1_norm.~", "ffn1_layer_norm.~"),
    *within("ffn1.", "ffn1.", _FFN),
    same("attention_norm.~", "self_attn_layer_norm.~"),
    *within("attention.", "self_attn.", _ATTENTION),
    same("conv.norm.~", "conv_module.layer_norm.~"),
    squeeze("conv.pointwise1.weight", "conv_module.pointwise_conv1.weight"),
    same("conv.depthwise.~", "conv_module.depthwise_conv.~"),
    squeeze("conv.pointwise2.weight", "conv_module.pointwise_conv2.weight"),
    same("ffn2_norm.~", "ffn2_layer_norm.~"),
    *within("ffn2.", "ffn2.", _FFN),
    same("final_norm.~", "final_layer_norm.~"),
]

_ADAPTOR_LAYER = [
    same("residual_norm.~", "residual_layer_norm.~"),
    same("residual_conv.~", "residual_conv.~"),
    same("attention_norm.~", "self_attn_layer_norm.~"),
    same("attention_conv.~", "self_attn_conv.~"),
    *within("attention.", "self_attn.", _ATTENTION),
    same("ffn_norm.~", "ffn_layer_norm.~"),
    *within("ffn.", "ffn.", _FFN),
]


def encoder_rules(prefix: str, conv_norm: str) -> list[Rule]:
    """`speech_encoder` of a model whose published keys begin with `prefix`."""
    norm = "batch_norm" if conv_norm == "batch" else "depthwise_layer_norm"
    block = [*_BLOCK, same("conv.depthwise_norm.~", f"conv_module.{norm}.~")]
    rules = [
        same("input_norm.~", "feature_projection.layer_norm.~"),
        same("input_projection.~", "feature_projection.projection.~"),
        *within("layers.*.", "encoder.layers.*.", block),
        same("final_norm.~", "encoder.layer_norm.~"),
        *within("intermediate_ffn.", "intermediate_ffn.", _FFN),
        same("mask_embedding", "masked_spec_embed"),
    ]
    return within("speech_encoder.", prefix, rules)


def adaptor_rules(prefix: str) -> list[Rule]:
    """`adaptor` of a model whose published keys begin with `prefix`."""
    rules = [
        *within("layers.*.", "adapter.layers.*.", _ADAPTOR_LAYER),
        same("projection_norm.~", "adapter.proj_layer_norm.~"),
        same("projection.~", "adapter.proj.~"),
        same("final_norm.~", "inner_layer_norm.~"),
    ]
    return within("adaptor.", prefix, rules)
