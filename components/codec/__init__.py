"""Neural audio codecs: speech to streams of codes and back (role `Codec`)."""

from .encodec import EnCodec

__all__ = ["EnCodec"]
