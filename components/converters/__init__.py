"""Published checkpoints in and out: `from_transformers(folder)` gives parts, `to_transformers(model, folder)` writes
them back. A family is a module here with a key map that is read in both directions."""

from ..online import online
from .encodec import from_encodec, to_encodec
from .fairseq2 import from_fairseq2
from .fairseq_hubert import from_fairseq_encoder
from .original import from_original
from .published import PublishedModel, describe, from_transformers, to_transformers

__all__ = [
    "PublishedModel",
    "describe",
    "from_encodec",
    "from_fairseq2",
    "from_fairseq_encoder",
    "from_original",
    "from_transformers",
    "online",
    "to_encodec",
    "to_transformers",
]
