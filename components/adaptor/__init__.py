"""Length adaptors: encoder states to about the rate of text and the width of the decoder."""

from .conformer import ConformerAdaptor
from .conv import ConvAdaptor
from .ctc_shrink import CTCShrinkAdaptor
from .none import NoAdaptor
from .stack import StackAdaptor

__all__ = ["CTCShrinkAdaptor", "ConformerAdaptor", "ConvAdaptor", "NoAdaptor", "StackAdaptor"]
