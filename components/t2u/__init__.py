"""Text-to-unit models, the second pass of UnitY."""

from .autoregressive import AutoregressiveT2U
from .ctc import CTCT2U
from .unity2 import UnitY2T2U

__all__ = ["CTCT2U", "AutoregressiveT2U", "UnitY2T2U"]
