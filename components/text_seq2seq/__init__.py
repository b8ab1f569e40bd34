"""Text encoder and autoregressive text decoder over one vocabulary (role `TextSeq2Seq`)."""

from .transformer import TransformerSeq2Seq

__all__ = ["TransformerSeq2Seq"]
