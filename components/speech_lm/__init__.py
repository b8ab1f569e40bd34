"""Autoregressive decoder-only models over one joint vocabulary of units and codes (role `SpeechLM`)."""

from .transformer import TransformerSpeechLM

__all__ = ["TransformerSpeechLM"]
