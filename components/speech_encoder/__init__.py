"""Speech encoders: features or samples to states."""

from .conformer import ConformerEncoder

__all__ = ["ConformerEncoder"]
