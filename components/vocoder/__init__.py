"""Unit vocoders: discrete units to a waveform."""

from .code_hifi_gan import CodeHiFiGAN
from .griffin_lim import GriffinLimVocoder
from .istft import ISTFTVocoder

__all__ = ["CodeHiFiGAN", "GriffinLimVocoder", "ISTFTVocoder"]
