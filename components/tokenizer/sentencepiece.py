"""SentencePiece with the id layout of SeamlessM4T, and the training of its models.

Letters: V rows of the vocabulary, P pieces of the SentencePiece model (its <unk>, <s>, </s> included), L languages,
C characters of the longest piece.

Layout (SeamlessM4T, arXiv 2308.11596; the "fairseq offset"):

    id           meaning
    0            pad
    1, 2, 3      unk, bos, eos: pieces 0, 1, 2 of the SentencePiece model
    4 .. P       ordinary pieces; id = piece + 1
    P+1 .. P+L   languages, in the order of `languages`
    P+L+1 .. V-1 unused rows (a published model keeps a few; a trained model may have fewer pieces than asked for)

Languages sit right after the last piece, not at the end of the rows: so do they in the published vocabularies, and so
the id of a language does not change when rows are added.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import sentencepiece
import torch
from torch import Tensor

from ..errors import UserError
from ..roles import Tokenizer

_NUM_CONTROLS = 3  # <unk>, <s>, </s> of the SentencePiece model


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece model plus one token per language.

    Normalisation (NFKC and white space) is what the model was trained with; nothing is added here.

    Args:
        model: path of a SentencePiece model whose unk, s and /s are 0, 1 and 2 (`train_sentencepiece` makes them so).
        languages: ISO 639-3 codes; the id of a language follows from its place in this list.
        vocab_size: V, the rows of the embedding.

    Raises:
        UserError: no such file, not a SentencePiece model, another order of controls, a language twice, or few rows.
    """

    pad_id = 0
    unk_id = 1
    bos_id = 2
    eos_id = 3
    unknown_character_id = 1
    """Character id of the unknown piece and of byte pieces; 0 is no character."""

    def __init__(self, model: str, languages: list[str], vocab_size: int) -> None:
        path = Path(model)
        if not path.is_file():
            raise UserError(
                f"tokenizer.model={model!r} is no file: give the path of a SentencePiece model, or let `voxzoo train` "
                "train one from the texts of the data"
            )
        self._load(path.read_bytes(), languages, vocab_size, where=str(model))

    @classmethod
    def from_bytes(cls, data: bytes | Tensor, languages: list[str], vocab_size: int) -> SentencePieceTokenizer:
        """Build from what `to_bytes` gave: bytes, or the same as a (N,) uint8 tensor out of a checkpoint."""
        if isinstance(data, Tensor):
            data = data.detach().cpu().to(torch.uint8).numpy().tobytes()
        tokenizer = cls.__new__(cls)
        tokenizer._load(data, languages, vocab_size, where=f"{len(data)} bytes")
        return tokenizer

    def to_bytes(self) -> bytes:
        """The SentencePiece model as bytes; `torch.frombuffer(bytearray(...), dtype=torch.uint8)` fits a checkpoint."""
        return self._model.serialized_model_proto()

    def _load(self, data: bytes, languages: list[str], vocab_size: int, where: str) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise UserError(f"tokenizer.model={where} is not a SentencePiece model: {error}") from None
        controls = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        if controls != (0, 1, 2):
            raise UserError(
                f"tokenizer.model={where} has unk, s, /s at {controls}, expected (0, 1, 2): train it with "
                "--unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1"
            )
        self.num_pieces = self._model.GetPieceSize()
        """P."""
        self.languages = tuple(languages)
        repeated = sorted({lang for lang in self.languages if self.languages.count(lang) > 1})
        if repeated:
            raise UserError(f"tokenizer.languages names {', '.join(repeated)} more than once")
        needed = 1 + self.num_pieces + len(self.languages)
        if vocab_size < needed:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: {self.num_pieces} pieces (unk, bos and eos included) "
                f"+ 1 pad + {len(self.languages)} languages need {needed} rows"
            )
        self.vocab_size = vocab_size
        self._first_language = 1 + self.num_pieces
        self._lang_ids = {lang: self._first_language + place for place, lang in enumerate(self.languages)}
        self._characters: dict[str, int] | None = None

    def encode(self, text: str) -> list[int]:
        return [piece + 1 for piece in self._model.EncodeAsIds(text)]

    def decode(self, ids: Iterable[int]) -> str:
        # The unknown piece is dropped with the other specials: SentencePiece would write it as a visible mark.
        pieces = [int(i) - 1 for i in ids if _NUM_CONTROLS < int(i) <= self.num_pieces]
        return self._model.DecodeIds(pieces) if pieces else ""

    def lang_id(self, lang: str) -> int:
        if lang not in self._lang_ids:
            known = ", ".join(self.languages) if self.languages else "none (tokenizer.languages is empty)"
            raise UserError(f"no token for language {lang!r}; tokenizer.languages: {known}")
        return self._lang_ids[lang]

    def lang_of(self, token: int) -> str | None:
        """The language whose token this is, or None."""
        place = token - self._first_language
        return self.languages[place] if 0 <= place < len(self.languages) else None

    # Characters, for text-to-unit models that make room by characters. As in SeamlessM4T the word mark is one of them.

    @property
    def num_characters(self) -> int:
        """Rows of a character embedding: 0 none, 1 unknown, then the characters of the pieces in code point order."""
        return 2 + len(self._alphabet())

    def piece_characters(self) -> Tensor:
        """(V, C) int64 character ids of each id, 0 beyond its end; 0 for pad, bos, eos, languages, unused rows."""
        alphabet = self._alphabet()
        rows = [[alphabet[c] for c in text] if text else [] for text in self._texts()]
        rows[self.unk_id] = [self.unknown_character_id]
        for piece in range(_NUM_CONTROLS, self.num_pieces):
            if self._model.IsByte(piece):
                rows[piece + 1] = [self.unknown_character_id]
        table = torch.zeros(self.vocab_size, max(map(len, rows)), dtype=torch.int64)
        for row, characters in zip(table, rows, strict=False):
            row[: len(characters)] = torch.tensor(characters, dtype=torch.int64)
        return table

    def piece_lengths(self) -> Tensor:
        """(V,) int64 characters of each id: 1 for unk, 0 for pad, bos, eos, languages and unused rows."""
        return (self.piece_characters() > 0).sum(1)

    def _texts(self) -> list[str]:
        """Text of ids 0..P; empty for controls and bytes."""
        ordinary = range(_NUM_CONTROLS, self.num_pieces)
        pieces = ["" if self._model.IsByte(piece) else self._model.IdToPiece(piece) for piece in ordinary]
        return [""] * (1 + _NUM_CONTROLS) + pieces

    def _alphabet(self) -> dict[str, int]:
        if self._characters is None:
            characters = sorted({character for text in self._texts() for character in text})
            self._characters = {character: number for number, character in enumerate(characters, start=2)}
        return self._characters


def train_sentencepiece(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    num_languages: int,
    model_type: Literal["bpe", "unigram", "char"] = "bpe",
    character_coverage: float = 1.0,
    seed: int = 0,
) -> Path:
    """Train a SentencePiece model that fits `SentencePieceTokenizer`; the same texts give the same file.

    Args:
        texts: sentences; empty ones are skipped.
        path: where the model goes. It appears complete or not at all.
        vocab_size: V of the tokenizer that will read it; a small corpus gives fewer pieces.
        num_languages: L, the language tokens that V must hold too: P is at most V - 1 - L.
        model_type: how pieces are found.
        character_coverage: share of the characters that get a piece; the rest becomes unk. 0.9995 for Chinese.
        seed: for the sampling inside SentencePiece.

    Returns:
        `path`.

    Raises:
        UserError: no text, or V too small for the characters.
    """
    sentences = [text.strip() for text in texts if text.strip()]
    if not sentences:
        raise UserError("a tokenizer cannot be trained on no text: the texts are empty")
    pieces = vocab_size - 1 - num_languages
    if pieces <= _NUM_CONTROLS:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} leaves no piece beside 4 specials and {num_languages} languages"
        )
    sentencepiece.set_random_generator_seed(seed)
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=buffer,
            vocab_size=pieces,
            model_type=model_type,
            character_coverage=character_coverage,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            hard_vocab_limit=False,
            num_threads=1,  # the order in which threads finish may change the result
            minloglevel=2,
        )
    except RuntimeError as error:
        characters = len({character for text in sentences for character in text})
        raise UserError(
            f"SentencePiece cannot train {pieces} pieces on {len(sentences)} sentences with {characters} different "
            f"characters (choose another tokenizer.vocab_size): {str(error).rpartition('] ')[2]}"
        ) from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(buffer.getvalue())
    os.replace(part, path)
    return path
