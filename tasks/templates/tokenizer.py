"""A tokenizer. Letters: V vocabulary, C characters of a piece."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from voxzoo.components.roles import Tokenizer

_BYTES = 4  # id of byte 0, behind the controls


class MineTokenizer(Tokenizer):
    """The bytes of UTF-8: ids 0..3 are controls, 4..259 bytes, then the languages. It needs no training.

    Args:
        languages: codes of the languages, in the order of their ids.
        vocab_size: V; at least 260 and a place for each language. Decoders take their size from this name: keep it.
    """

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, languages: Sequence[str], vocab_size: int = 300) -> None:
        if vocab_size < _BYTES + 256 + len(languages):
            raise ValueError(f"vocab_size must be at least {_BYTES + 256 + len(languages)}; got {vocab_size}")
        self.languages, self.vocab_size = tuple(languages), vocab_size

    def encode(self, text: str) -> list[int]:
        """Text to ids, no special tokens."""
        return [_BYTES + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; special and language tokens are dropped, and so are bytes that are no text."""
        return bytes(i - _BYTES for i in ids if _BYTES <= i < _BYTES + 256).decode(errors="ignore")

    def lang_id(self, lang: str) -> int:
        """Id of a language token."""
        if lang not in self.languages:
            raise ValueError(f"{lang!r} is not one of the languages: {', '.join(self.languages)}")
        return _BYTES + 256 + self.languages.index(lang)

    def pieces(self) -> tuple[str, ...]:
        """Text of each of the V ids, "" for specials, languages and bytes that are no character alone."""
        return tuple(self.decode([i]) for i in range(self.vocab_size))

    def piece_characters(self) -> Tensor:
        """(V, 1) int64: one character a byte, numbered from 1; 0 for the rest."""
        table = torch.zeros(self.vocab_size, 1, dtype=torch.int64)
        table[_BYTES : _BYTES + 256, 0] = torch.arange(1, 257)
        return table

    def to_bytes(self) -> bytes:
        """The whole tokenizer, so that a checkpoint can carry it."""
        return json.dumps({"languages": self.languages, "vocab_size": self.vocab_size}).encode()

    @classmethod
    def from_bytes(cls, content: bytes, **settings: object) -> MineTokenizer:
        """What `to_bytes` gave; `settings` are those of the config, which it holds already."""
        return cls(**json.loads(content))
