"""Search over an autoregressive decoder: beam search, greedy decoding and sampling in one loop."""

from .generate import Hypothesis, IncrementalDecoder, SearchOptions, generate

__all__ = ["Hypothesis", "IncrementalDecoder", "SearchOptions", "generate"]
