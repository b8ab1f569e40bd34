"""SeamlessM4T v2 (`SeamlessM4Tv2Model` and its classes for single tasks)."""

from __future__ import annotations

from typing import Any

from .family import Nodes
from .seamless_m4t import SeamlessM4T
from .settings import value

_NO_CHUNKS = 1_000_000_000
"""A chunk that no speech fills: config.json has to have a number."""


class SeamlessM4Tv2(SeamlessM4T):
    """v2: clipped relative positions and causal convolution in the encoder, a non-autoregressive second pass."""

    model_types = ("seamless_m4t_v2",)
    name = "SeamlessM4Tv2"
    version = 2
    positions = {"relative_key": "relative_key", None: "none"}
    t2u_eos = "keep_shorter"

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


FAMILY = SeamlessM4Tv2()
