"""Unit vocoders: discrete units to a waveform."""

from .griffin_lim import GriffinLimVocoder
from .istft import ISTFTVocoder

__all__ = ["GriffinLimVocoder", "ISTFTVocoder"]
