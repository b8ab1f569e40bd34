"""The vocabulary of pieces behind a tokenizer: a SentencePiece model, or a tokenizer.json.

Letters: P pieces, <unk>, <s> and </s> included. Pieces are numbered as in the SentencePiece model: unk 0, s 1, /s 2.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Literal

import sentencepiece

from ..errors import UserError

Layout = Literal["seamless_m4t", "nllb"]
Normaliser = Literal["sentencepiece", "transformers"]
NUM_CONTROLS = 3  # <unk>, <s>, </s> of the SentencePiece model

# NormalizerSpec (field 3 of the model): no dummy prefix (3), white space as it is (4), no character map (2). Protocol
# buffers that stand one behind the other are merged, so these lines at the end of a model change nothing else in it.
_BARE = b"\x1a\x06\x12\x00\x18\x00\x20\x00"


class Pieces(ABC):
    """Text to pieces and back.

    Attributes:
        size: P.
        data: the file.
    """

    size: int
    data: bytes

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text; a run of unknown characters is one 0."""

    @abstractmethod
    def decode(self, pieces: list[int]) -> str:
        """Text of ordinary pieces."""

    @abstractmethod
    def text(self, piece: int) -> str:
        """A piece as it is written, word mark included; empty for controls and bytes."""

    @abstractmethod
    def is_byte(self, piece: int) -> bool:
        """Whether a piece is one byte of a character that has no piece."""


class SentencePieces(Pieces):
    """A SentencePiece model.

    Raises:
        UserError: it is none, or has another order of controls.
    """

    def __init__(self, data: bytes, layout: Layout, normaliser: Normaliser, where: str) -> None:
        self._model = _load(data, where)
        controls = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if controls != (0, 1, 2):
            raise UserError(
                f"tokenizer.model={where} has unk, s, /s at {controls}, expected (0, 1, 2): train it with "
                "--unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1"
            )
        self.size = self._model.GetPieceSize()
        self.data = data
        self._bare: sentencepiece.SentencePieceProcessor | None = None
        if normaliser == "transformers":
            self._bare = _load(data + _BARE, where)
            self._normalise = _normalise(layout, _charsmap(data))

    def encode(self, text: str) -> list[int]:
        if self._bare is None:
            return self._model.EncodeAsIds(text)
        return self._bare.EncodeAsIds(self._normalise(text))

    def decode(self, pieces: list[int]) -> str:
        if self._bare is None:
            return self._model.DecodeIds(pieces) if pieces else ""
        return _joined([self._model.IdToPiece(piece) for piece in pieces])

    def text(self, piece: int) -> str:
        return "" if piece < NUM_CONTROLS or self.is_byte(piece) else self._model.IdToPiece(piece)

    def is_byte(self, piece: int) -> bool:
        return self._model.IsByte(piece)


class FastPieces(Pieces):
    """The byte-pair encoding of a tokenizer.json, through the `tokenizers` library. Its added tokens (languages and
    controls) are left out: text never becomes one of them.

    Raises:
        UserError: no such library, not such a file, or another normaliser than transformers'.
    """

    def __init__(self, data: bytes, layout: Layout, normaliser: Normaliser, where: str) -> None:
        if normaliser != "transformers":
            raise UserError(f"tokenizer.model={where}: a tokenizer.json needs tokenizer.normaliser=transformers")
        try:
            import tokenizers
            from tokenizers import decoders, normalizers, pre_tokenizers
        except ImportError:
            raise UserError(f"tokenizer.model={where} needs the tokenizers library: pip install voxzoo[hub]") from None
        content = fast_content(data, where)
        added = {int(token["id"]) for token in content.get("added_tokens") or []}
        self.size = first_added(content) - 1
        self.data = data
        charsmap = _fast_charsmap(content)
        kept = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        kept.update(normalizer=None, pre_tokenizer=None, decoder=None)
        try:
            self._model = tokenizers.Tokenizer.from_str(json.dumps({**content, **kept}))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"tokenizer.model={where} is no tokenizer.json that can be read: {error}") from None
        assert added or self.size
        steps: list[Any]
        if layout == "nllb":
            steps = [] if charsmap is None else [normalizers.Precompiled(charsmap)]
            steps += [normalizers.Replace(tokenizers.Regex(" {2,}"), " ")] if steps else []
