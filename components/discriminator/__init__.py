"""Discriminators: what a vocoder is trained against."""

from .hifi_gan import HiFiGANDiscriminator
from .ms_stft import MSSTFTDiscriminator

__all__ = ["HiFiGANDiscriminator", "MSSTFTDiscriminator"]
