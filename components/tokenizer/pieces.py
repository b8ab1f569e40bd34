"""The vocabulary of pieces behind a tokenizer: a SentencePiece model, or a tokenizer.json.

Letters: P pieces, <unk>, <s> and </s> included. Pieces are numbered as in the SentencePiece model: unk 0, s 1, /s 2.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from typing import Any, Literal

import sentencepiece

from ..errors import UserError
from ..lines import parse_json
from .normalise import MARK, Charsmap, nllb, seamless_m4t

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
        is_unigram: pieces are found by their probabilities, not by merging pairs.
    """

    size: int
    data: bytes
    is_unigram: bool = False

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
        bare = normaliser == "transformers"
        self._model = load_sentencepiece(data + _BARE if bare else data, where)
        controls = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if controls != (0, 1, 2):
            raise UserError(
                f"tokenizer.model={where} has unk, s, /s at {controls}, expected (0, 1, 2): train it with "
                "--unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1"
            )
        self.size = self._model.GetPieceSize()
        self.data = data
        self.is_unigram = _is_unigram(data)
        self._normalise = _Normalise(layout, _charsmap(data)) if bare else None

    def encode(self, text: str) -> list[int]:
        return self._model.EncodeAsIds(text if self._normalise is None else self._normalise(text))

    def decode(self, pieces: list[int]) -> str:
        if self._normalise is None:
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
        except ImportError:
            raise UserError(f"tokenizer.model={where} needs the tokenizers library: pip install voxzoo[hub]") from None
        content = read_fast(data, where)
        self.size = first_added(content) - 1
        self.data = data
        try:
            self._normalise = _Normalise(layout, _fast_charsmap(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"tokenizer.model={where}: its normalizer cannot be read ({reason})") from None
        model = {**content["model"], "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": False, "dropout": None}
        bare = {"version": content.get("version", "1.0"), "added_tokens": [], "model": model}
        try:
            self._model = tokenizers.Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"tokenizer.model={where} is no tokenizer.json that can be read: {error}") from None
        # The text is marked already; cut into words it is cached.
        self._model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="never")

    def encode(self, text: str) -> list[int]:
        return [max(number - 1, 0) if number > NUM_CONTROLS else 0 for number in self._ids(text)]

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(self._normalise(text), add_special_tokens=False).ids

    def decode(self, pieces: list[int]) -> str:
        return _joined([self.text(piece) for piece in pieces])

    def text(self, piece: int) -> str:
        return "" if piece < NUM_CONTROLS else self._model.id_to_token(piece + 1) or ""

    def is_byte(self, piece: int) -> bool:
        return False


def read_fast(data: bytes, where: str) -> dict[str, Any]:
    """The content of a tokenizer.json with byte-pair encoding.

    Raises:
        UserError: it is none.
    """
    try:
        content = parse_json(data)
        vocab = content["model"]["vocab"]
        if content["model"]["type"] != "BPE" or not isinstance(vocab, dict):
            raise ValueError(f"its model is {content['model']['type']}")
        if not vocab or not all(type(number) is int and number >= 0 for number in vocab.values()):
            raise ValueError("its vocab must be pieces and their ids, whole numbers; at least one")
        for token in content.get("added_tokens") or []:
            if type(token["id"]) is not int or not isinstance(token["content"], str):
                raise ValueError(f"among its added_tokens is {token}; expected an id and a content")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"tokenizer.model={where}: expected a tokenizer.json with byte-pair encoding "
            f"({type(error).__name__}: {error})"
        ) from None
    return content


def first_added(content: dict[str, Any]) -> int:
    """The first id behind the ordinary pieces of a tokenizer.json. Languages stand there: among the added tokens, and
    in files of older versions in the vocabulary too."""
    added = [int(token["id"]) for token in content.get("added_tokens") or []]
    size = max(content["model"]["vocab"].values()) + 1
    return min([number for number in added if number > NUM_CONTROLS] + [size])


def load_sentencepiece(data: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model of the bytes of its file. Raises UserError where they are none."""
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise UserError(f"tokenizer.model={where} is not a SentencePiece model: {error}") from None
    return model


class _Normalise:
    """A layout's normalisation; an object, so that a tokenizer can be pickled for data workers."""

    def __init__(self, layout: Layout, charsmap: bytes) -> None:
        self.layout = layout
        self.charsmap = Charsmap(charsmap) if charsmap and layout == "nllb" else None

    def __call__(self, text: str) -> str:
        return nllb(text, self.charsmap) if self.layout == "nllb" else seamless_m4t(text)


def _joined(pieces: list[str]) -> str:
    """Pieces as transformers writes them: marks are spaces, but not in the first piece."""
    return "".join([pieces[0].replace(MARK, ""), *(piece.replace(MARK, " ") for piece in pieces[1:])] if pieces else [])


def _charsmap(data: bytes) -> bytes:
    """`precompiled_charsmap` (field 2) of the normaliser (field 3) of a SentencePiece model, or nothing."""
    return b"".join(field for field in _fields(_message(data, 3), 2) if isinstance(field, bytes))


def _is_unigram(data: bytes) -> bool:
    """Whether `model_type` (field 3) of the trainer (field 2) of a SentencePiece model is 1, its default."""
    return (_fields(_message(data, 2), 3) or [1])[-1] == 1


def _message(data: bytes, wanted: int) -> bytes:
    """A message inside a message; parts of it are merged by standing one behind the other."""
    return b"".join(field for field in _fields(data, wanted) if isinstance(field, bytes))


def _fields(data: bytes, wanted: int) -> list[bytes | int]:
    """The fields of a number in a protocol buffer message: whole numbers, and what has a length."""
    found: list[bytes | int] = []
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        value: bytes | int = 0
        if tag & 7 == 2:
            length, place = _varint(data, place)
            value, place = data[place : place + length], place + length
        elif tag & 7 == 0:
            value, place = _varint(data, place)
        else:
            place += 8 if tag & 7 == 1 else 4
        if tag >> 3 == wanted:
            found.append(value)
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _fast_charsmap(content: dict[str, Any]) -> bytes:
    normaliser = content.get("normalizer") or {}
    for step in normaliser.get("normalizers", [normaliser]):
        if step.get("type") == "Precompiled":
            return base64.b64decode(step["precompiled_charsmap"])
    return b""
