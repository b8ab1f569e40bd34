"""Text-to-unit models, the second pass of UnitY."""

from .ctc import CTCT2U

__all__ = ["CTCT2U"]
