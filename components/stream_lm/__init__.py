"""Codec streams from semantic units (role `StreamLM`)."""

from .transformer import TransformerStreamLM

__all__ = ["TransformerStreamLM"]
