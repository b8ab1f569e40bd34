"""Speech encoders: features or samples to states."""

from .conformer import ConformerEncoder
from .whisper import WhisperEncoder

__all__ = ["ConformerEncoder", "WhisperEncoder"]
