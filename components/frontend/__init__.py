"""Front ends: a waveform to what the speech encoder reads."""

from .fbank import Fbank
from .raw import RawWaveform
from .whisper import WhisperLogMel

__all__ = ["Fbank", "RawWaveform", "WhisperLogMel"]
