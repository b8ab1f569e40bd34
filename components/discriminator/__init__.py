"""Discriminators: what a vocoder is trained against."""

from .hifi_gan import HiFiGANDiscriminator

__all__ = ["HiFiGANDiscriminator"]
