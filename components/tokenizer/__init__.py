"""Tokenizers: text to ids and back."""

from .sentencepiece import SentencePieceTokenizer, train_sentencepiece

__all__ = ["SentencePieceTokenizer", "train_sentencepiece"]
