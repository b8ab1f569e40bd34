"""The vocabulary of M2M-100 (2020): SentencePiece pieces with the ids of a vocab.json.

Letters: V rows of the vocabulary, N entries of vocab.json, L languages, C characters of the longest piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..languages import is_language, language_name, match
from ..lines import parse_json
from ..roles import Tokenizer
from .pieces import load_sentencepiece

VOCABULARY, PIECES = "vocab.json", "sentencepiece.bpe.model"
_MAGIC = b"voxzoo m2m_100\n"
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_OWN = {"ns": "nso", "tl": "tgl"}  # no code of two letters; and one that is a newer one for others


class M2M100Tokenizer(Tokenizer):
    """SentencePiece pieces, numbered as in vocab.json, and a token for each language behind them (Fan et al. 2020,
    arXiv 2010.11125).

        0 .. N-1     entries of vocab.json: <s>, <pad>, </s>, <unk>, then pieces, the frequent ones first
        N .. N+L-1   languages, in the order of `languages`
        N+L .. V-1   unused rows (8 in the published models)

    A piece that vocab.json lacks is <unk>. Text never becomes a special token or a language, whatever is written in it.

    Args:
        model: path of vocab.json; sentencepiece.bpe.model lies beside it.
        languages: the tokens behind the pieces, in order, as the vocabulary writes them (`af`, for `__af__`).
        vocab_size: V, the rows of the embedding.

    Raises:
        UserError: a file is missing or of another kind, a code that is no language, a language twice, or few rows.
    """

    unknown_character_id = 1
    """Character id of the unknown piece; 0 is no character."""

    def __init__(self, model: str, languages: list[str], vocab_size: int) -> None:
        path = Path(model)
        for file in (path, path.with_name(PIECES)):
            if not file.is_file():
                raise UserError(
                    f"tokenizer.model={model!r}: {file} is no file: give the {VOCABULARY} of an M2M-100 folder, with "
                    f"{PIECES} beside it"
                )
        self._load(path.read_bytes(), path.with_name(PIECES).read_bytes(), languages, vocab_size, str(model))

    @classmethod
    def from_bytes(cls, data: bytes | Tensor, languages: list[str], vocab_size: int) -> M2M100Tokenizer:
        """Build from what `to_bytes` gave: bytes, or the same as a (N,) uint8 tensor out of a checkpoint."""
        if isinstance(data, Tensor):
            data = data.detach().cpu().to(torch.uint8).numpy().tobytes()
        begin = len(_MAGIC) + 8
        if not data.startswith(_MAGIC):
            raise UserError("the tokenizer of this checkpoint is none of M2M-100: its first bytes are others")
        end = begin + int.from_bytes(data[begin - 8 : begin], "little")
        tokenizer = cls.__new__(cls)
        tokenizer._load(data[begin:end], data[end:], languages, vocab_size, f"{len(data)} bytes")
        return tokenizer

    def to_bytes(self) -> bytes:
        """Both files, one behind the other."""
        return _MAGIC + len(self.vocabulary).to_bytes(8, "little") + self.vocabulary + self.model

    def _load(self, vocabulary: bytes, model: bytes, languages: list[str], vocab_size: int, where: str) -> None:
        self.vocabulary, self.model = vocabulary, model
        """vocab.json and sentencepiece.bpe.model."""
        self._pieces = load_sentencepiece(model, where)
        ids = _read(vocabulary, where)
        self.bos_id, self.pad_id, self.eos_id, self.unk_id = (ids.pop(name) for name in _SPECIALS)
        self._ids = ids
        self.num_entries = len(ids) + len(_SPECIALS)
        """N."""
        self._texts = {number: piece for piece, number in ids.items()}
        self.codes = tuple(languages)
        """Languages as the vocabulary writes them."""
        odd = [code for code in self.codes if not is_language(_OWN.get(code, code))]
        if odd:
            raise UserError(f"tokenizer.languages: {odd[0]!r} is no code of a language, such as 'af'")
        self.languages = tuple(language_name(_OWN.get(code, code)) for code in self.codes)
        if len({*self.languages}) < len(self.languages):
            twice = next(name for name in self.languages if self.languages.count(name) > 1)
            raise UserError(f"tokenizer.languages names {twice} more than once")
        needed = self.num_entries + len(self.codes)
        if vocab_size < needed:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: {self.num_entries} entries of {VOCABULARY} + "
                f"{len(self.codes)} languages need {needed} rows"
            )
        self.vocab_size = vocab_size
        self._alphabet = {c: n for n, c in enumerate(sorted({c for text in ids for c in text}), start=2)}

    def encode(self, text: str) -> list[int]:
        get, unknown = self._ids.get, self.unk_id
        return [get(piece, unknown) for piece in self._pieces.EncodeAsPieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        pieces = [self._texts[int(number)] for number in ids if int(number) in self._texts]
        return self._pieces.DecodePieces(pieces).strip() if pieces else ""

    def lang_id(self, lang: str) -> int:
        found = match(lang, self.languages)
        if found is None:
            known = ", ".join(self.languages) or "none (tokenizer.languages is empty)"
            raise UserError(f"no token for language {lang!r}; tokenizer.languages: {known}")
        return self.num_entries + self.languages.index(found)

    def pieces(self) -> tuple[str, ...]:
        """Text of each id as the model writes it, word mark included; empty for specials, languages and unused rows."""
        return tuple(self._texts.get(number, "") for number in range(self.vocab_size))

    @property
    def num_characters(self) -> int:
        """Rows of a character embedding: 0 none, 1 unknown, then the characters of the pieces in code point order."""
        return 2 + len(self._alphabet)

    def piece_characters(self) -> Tensor:
        """(V, C) int64 character ids of each id, 0 beyond its end; 0 for specials, languages and unused rows."""
        rows = [[self._alphabet[character] for character in text] for text in self.pieces()]
        rows[self.unk_id] = [self.unknown_character_id]
        table = torch.zeros(self.vocab_size, max(map(len, rows)), dtype=torch.int64)
        for row, characters in zip(table, rows, strict=True):
            row[: len(characters)] = torch.tensor(characters, dtype=torch.int64)
        return table


def _read(data: bytes, where: str) -> dict[str, int]:
    """Piece -> id of a vocab.json.

    Raises:
        UserError: it is none, lacks a special, or its ids are not 0 to N - 1.
    """
    try:
        content = parse_json(data)
    except ValueError as error:
        raise UserError(f"tokenizer.model={where}: {error}") from None
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise UserError(f"tokenizer.model={where}: expected pieces and their ids, whole numbers")
    absent = [name for name in _SPECIALS if name not in content]
    if absent:
        raise UserError(f"tokenizer.model={where} is no vocabulary of M2M-100: it has no {', '.join(absent)}")
    if sorted(content.values()) != [*range(len(content))]:
        raise UserError(f"tokenizer.model={where}: expected the ids 0 to {len(content) - 1}, each once")
    return content
