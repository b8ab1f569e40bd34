"""Speech encoders: features or samples to states."""

from .conformer import ConformerEncoder
from .wav2vec2 import Wav2Vec2Encoder
from .whisper import WhisperEncoder

__all__ = ["ConformerEncoder", "Wav2Vec2Encoder", "WhisperEncoder"]
