"""One base class per role: of networks (`parts`), of what stands before them (`inputs`), and of data (`data`)."""

from __future__ import annotations

from .data import DataModule
from .inputs import Frontend, Tokenizer
from .parts import (
    Adaptor,
    Codec,
    DecoderState,
    Discriminator,
    Part,
    SpeechEncoder,
    SpeechLM,
    StreamLM,
    TextSeq2Seq,
    TextToUnit,
    UnitExtractor,
    UnitVocoder,
)

__all__ = [
    "ROLES",
    "Adaptor",
    "Codec",
    "DataModule",
    "DecoderState",
    "Discriminator",
    "Frontend",
    "Part",
    "SpeechEncoder",
    "SpeechLM",
    "StreamLM",
    "TextSeq2Seq",
    "TextToUnit",
    "Tokenizer",
    "UnitExtractor",
    "UnitVocoder",
]

ROLES: dict[str, type] = {
    "frontend": Frontend,
    "tokenizer": Tokenizer,
    "speech_encoder": SpeechEncoder,
    "adaptor": Adaptor,
    "text_seq2seq": TextSeq2Seq,
    "t2u": TextToUnit,
    "unit_extractor": UnitExtractor,
    "vocoder": UnitVocoder,
    "discriminator": Discriminator,
    "codec": Codec,
    "speech_lm": SpeechLM,
    "stream_lm": StreamLM,
    "data": DataModule,
}
"""Config key -> base class. `voxzoo check` refuses a part in the wrong slot by this table."""
