"""Tokenizers: text to ids and back."""

from .sentencepiece import SentencePieceTokenizer
from .vocabulary import train_sentencepiece
from .whisper import WhisperTokenizer

__all__ = ["SentencePieceTokenizer", "WhisperTokenizer", "train_sentencepiece"]
