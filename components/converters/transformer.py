"""Key rules of the Transformer encoder and decoder (layers/transformer.py), shared by SeamlessM4T's text stacks, its
autoregressive text-to-unit model, M2M-100 and NLLB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Size, Tensor

from .keymap import Rule, same, stack, tied, within

Names = Literal["m4t", "m2m"]
"""How the published layers are called: `m4t` SeamlessM4T (v1 and v2), `m2m` M2M-100 and NLLB."""

# Ours -> theirs, where the two differ: attention over the memory, its norm, the FFN's norm, the FFN.
_MEMORY = {"m4t": "cross_attention", "m2m": "encoder_attn"}
_FFN_NORM = {"m4t": "ffn_layer_norm", "m2m": "final_layer_norm"}
_FFN = {"m4t": "ffn.", "m2m": ""}


def encoder_rules(ours: str, theirs: str, names: Names) -> list[Rule]:
    """`TransformerEncoder` under the prefix `ours`; published keys begin with `theirs`. Prefixes end in a dot."""
    rules = [*within("layers.*.", "layers.*.", _layer(names)), same("norm.~", "layer_norm.~")]
    return within(ours, theirs, rules)


def decoder_rules(ours: str, theirs: str, names: Names) -> list[Rule]:
    """`TransformerDecoder` without its embedding and output layer (`embedding_rules`)."""
    memory = _MEMORY[names]
    layer = [
        *_layer(names),
        same("memory_attention_norm.~", f"{memory}_layer_norm.~"),
        same("memory_attention.q.~", f"{memory}.q_proj.~"),
        *(stack(f"memory_attention.kv.{k}", f"{memory}.k_proj.{k}", f"{memory}.v_proj.{k}") for k in _KINDS),
        same("memory_attention.out.~", f"{memory}.out_proj.~"),
    ]
    rules = [*within("layers.*.", "layers.*.", layer), same("norm.~", "layer_norm.~")]
    return within(ours, theirs, rules)


def embedding_rules(ours: str, *theirs: str, output: str, tie_output: bool = True) -> list[Rule]:
    """Embedding and output layer of a `TransformerDecoder`.

    Args:
        ours: prefix of the decoder.
        theirs: names of the published embedding matrix, all of them one; the first is the one that is written.
        output: name of the published output layer.
        tie_output: the output layer is the embedding matrix too.
    """
    embedding = f"{ours}embed.embedding.weight"
    if tie_output:
        return [tied(embedding, *theirs, output)]
    return [tied(embedding, *theirs), same(f"{ours}output.weight", output)]


_KINDS = ("weight", "bias")


def _layer(names: Names) -> list[Rule]:
    """What layers of encoder and decoder have in common."""
    return [
        same("self_attention_norm.~", "self_attn_layer_norm.~"),
        *(
            stack(f"self_attention.qkv.{k}", f"self_attn.q_proj.{k}", f"self_attn.k_proj.{k}", f"self_attn.v_proj.{k}")
            for k in _KINDS
        ),
        same("self_attention.out.~", "self_attn.out_proj.~"),
        same("ffn_norm.~", f"{_FFN_NORM[names]}.~"),
        same("ffn.inner.~", f"{_FFN[names]}fc1.~"),
        same("ffn.outer.~", f"{_FFN[names]}fc2.~"),
    ]


_EMBEDDING = "decoder.embed.embedding.weight"
_COPIES = ("encoder_embed.embedding.weight", "decoder.output.weight")
"""Matrices that a text model may share or not: of one that shares them, one that does not begins with copies."""


def with_source(wanted: Mapping[str, Size]) -> dict[str, Size]:
    """Keys and shapes of a text model, with that which others of them may be copies of."""
    shape = next((shape for key, shape in wanted.items() if key in _COPIES), None)
    return {**({} if shape is None else {_EMBEDDING: shape}), **wanted}


def fill_copies(state: dict[str, Tensor], wanted: Iterable[str]) -> list[str]:
    """Give a text model that shares fewer matrices than the one that `state` is of its own copies of them, in place.
    Returns their keys."""
    copied = [key for key in wanted if key in _COPIES and key not in state and _EMBEDDING in state]
    state.update({key: state[_EMBEDDING].clone() for key in copied})
    return copied
