"""Neural audio codecs: speech to streams of codes and back (role `Codec`)."""

from .encodec import EnCodec
from .spectral import SpectralCodec

__all__ = ["EnCodec", "SpectralCodec"]
