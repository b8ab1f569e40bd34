"""Tokenizers: text to ids and back."""

from .m2m_100 import M2M100Tokenizer
from .sentencepiece import SentencePieceTokenizer
from .vocabulary import train_sentencepiece
from .whisper import WhisperTokenizer

__all__ = ["M2M100Tokenizer", "SentencePieceTokenizer", "WhisperTokenizer", "train_sentencepiece"]
