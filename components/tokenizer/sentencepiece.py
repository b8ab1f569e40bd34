"""SentencePiece vocabularies of SeamlessM4T and NLLB.

Letters: V rows of the vocabulary, P pieces of the SentencePiece model (its <unk>, <s>, </s> included), L languages,
C characters of the longest piece.

Layouts (SeamlessM4T, arXiv 2308.11596; NLLB, arXiv 2207.04672; the "fairseq offset"):

    id           seamless_m4t       nllb
    0            pad                bos
    1            unk                pad
    2            bos                eos
    3            eos                unk
    4 .. P       ordinary pieces; id = piece + 1
    P+1 .. P+L   languages and controls, in the order of `languages`
    P+L+1 .. V-1 unused rows (a published model keeps a few; a trained model may have fewer pieces than asked for)

Languages sit right after the last piece, not at the end of the rows: so do they in the published vocabularies, and so
the id of a language does not change when rows are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..languages import match
from ..lines import parse_json
from ..roles import Tokenizer
from .pieces import NUM_CONTROLS, FastPieces, Layout, Normaliser, Pieces, SentencePieces
from .vocabulary import Normalisation

_MAGIC = b"voxzoo tokenizer\n"


@dataclass(frozen=True)
class _Specials:
    pad: int
    unk: int
    bos: int
    eos: int


SPECIALS = {"seamless_m4t": _Specials(0, 1, 2, 3), "nllb": _Specials(1, 3, 0, 2)}


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece model plus one token per language.

    Args:
        model: path of a SentencePiece model whose unk, s and /s are 0, 1 and 2 (`train_sentencepiece` makes them so),
            or of a tokenizer.json with byte-pair encoding.
        languages: the tokens behind the pieces, in order; the id of a language follows from its place. ISO 639-3 codes,
            with the script where one language has several (`cmn`, `cmn_Hant`) or always (`eng_Latn`, NLLB). A name in
            angle brackets (`<mask>`) is a control that takes a row and is no language.
        vocab_size: V, the rows of the embedding.
        layout: ids of the specials, see above; `nllb` also writes languages as `eng_Latn`.
        normaliser: how text is prepared. `sentencepiece`: as the model was trained (the original implementations);
            `transformers`: as its tokenizers do it, which differ in white space at the end, control characters and
            letters with several marks.
        legacy_source: source text is pieces, eos, lang (the first release of NLLB in transformers) rather than lang,
            pieces, eos.
        characters: path of a JSON file with `char_to_id` and `id_to_text`, the character vocabulary of SeamlessM4T v2
            (its generation_config.json); None: characters of the pieces in code point order.
        train: `voxzoo train` may train the model where the file is missing; false for published vocabularies.
        normalisation: of a model that is trained: what is done to a text before it is cut into pieces, as SentencePiece
            names it. `identity` changes nothing: `nmt_nfkc`, SentencePiece's own default, drops joiners that some
            scripts cannot be read without, and turns "10½ km²" into "101⁄2 km2".

    Raises:
        UserError: no such file, not a SentencePiece model, another order of controls, a language twice, or few rows.
    """

    unknown_character_id = 1
    """Character id of the unknown piece, of unknown characters and of byte pieces; 0 is no character."""

    def __init__(
        self,
        model: str,
        languages: list[str],
        vocab_size: int,
        layout: Layout = "seamless_m4t",
        normaliser: Normaliser = "sentencepiece",
        legacy_source: bool = False,
        characters: str | None = None,
        train: bool = True,
        normalisation: Normalisation = "identity",
    ) -> None:
        path = Path(model)
        if not path.is_file():
            todo = ", or let `voxzoo train` train one from the texts of the data" if train else ""
            raise UserError(f"tokenizer.model={model!r} is no file: give the path of a SentencePiece model{todo}")
        data, table = _unpack(path.read_bytes())  # also what `to_bytes` gave
        if characters is not None:
            table = _character_file(Path(characters))
        self._load(data, table, languages, vocab_size, layout, normaliser, legacy_source, str(model))

    @classmethod
    def from_bytes(
        cls,
        data: bytes | Tensor,
        languages: list[str],
        vocab_size: int,
        layout: Layout = "seamless_m4t",
        normaliser: Normaliser = "sentencepiece",
        legacy_source: bool = False,
        characters: str | None = None,
        train: bool = True,
        normalisation: Normalisation = "identity",
    ) -> SentencePieceTokenizer:
        """Build from what `to_bytes` gave: bytes, or the same as a (N,) uint8 tensor out of a checkpoint. The contents
        of the file `characters` are in the bytes, so its path counts for nothing here."""
        if isinstance(data, Tensor):
            data = data.detach().cpu().to(torch.uint8).numpy().tobytes()
        tokenizer = cls.__new__(cls)
        model, table = _unpack(data)
        where = f"{len(model)} bytes"
        tokenizer._load(model, table, languages, vocab_size, layout, normaliser, legacy_source, where)
        return tokenizer

    def to_bytes(self) -> bytes:
        """The model's file as bytes (`torch.frombuffer(bytearray(...), dtype=torch.uint8)` fits a checkpoint), with the
        character vocabulary behind it where there is one."""
        if self._table is None:
            return self.model.data
        table = json.dumps(self._table, ensure_ascii=False).encode()
        return _MAGIC + len(self.model.data).to_bytes(8, "little") + self.model.data + table

    def _load(
        self,
        data: bytes,
        table: dict[str, Any] | None,
        languages: list[str],
        vocab_size: int,
        layout: Layout,
        normaliser: Normaliser,
        legacy_source: bool,
        where: str,
    ) -> None:
        for name, chosen, known in (("layout", layout, [*SPECIALS]), ("normaliser", normaliser, _NORMALISERS)):
            if chosen not in known:
                raise UserError(f"tokenizer.{name}={chosen!r}: expected one of {', '.join(known)}")
        read = FastPieces if data.lstrip()[:1] == b"{" else SentencePieces
        self.model: Pieces = read(data, layout, normaliser, where)
        """The pieces alone."""
        specials = SPECIALS[layout]
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = specials.pad, specials.unk, specials.bos, specials.eos
        self.layout: Layout = layout
        self.legacy_source = legacy_source
        self.num_pieces = self.model.size
        """P."""
        self.added = tuple(languages)
        """Tokens behind the pieces, languages and controls, as they were given."""
        repeated = sorted({name for name in self.added if self.added.count(name) > 1})
        if repeated:
            raise UserError(f"tokenizer.languages names {', '.join(repeated)} more than once")
        needed = 1 + self.num_pieces + len(self.added)
        if vocab_size < needed:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: {self.num_pieces} pieces (unk, bos and eos included) "
                f"+ 1 pad + {len(self.added)} languages need {needed} rows"
            )
        self.vocab_size = vocab_size
        self._lang_ids: dict[str, int] = {}
        self._lang_names: dict[int, str] = {}
        for number, name in enumerate(self.added, start=1 + self.num_pieces):
            if name.startswith("<"):
                continue
            self._lang_ids[name] = number
            # Without its script a code is the first one listed: `ace` is ace_Arab, and ace_Latn is said in full.
            short = name.partition("_")[0]
            if short != name and (short in self.added or self._lang_ids.setdefault(short, number) != number):
                short = name
            self._lang_names[number] = short
        self.languages = tuple(self._lang_names.values())
        self._table = table
        self.characters: dict[str, int] | None = None if table is None else table["char_to_id"]
        """Published character vocabulary, or None."""
        self._characters = self.characters

    def encode(self, text: str) -> list[int]:
        return [piece + 1 if piece else self.unk_id for piece in self.model.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        # The unknown piece is dropped with the other specials: SentencePiece would write it as a visible mark.
        return self.model.decode([int(i) - 1 for i in ids if NUM_CONTROLS < int(i) <= self.num_pieces])

    def source(self, text: str, lang: str) -> list[int]:
        if self.legacy_source:
            return [*self.encode(text), self.eos_id, self.lang_id(lang)]
        return super().source(text, lang)

    def lang_id(self, lang: str) -> int:
        found = match(lang, self._lang_ids)
        if found is None:
            near = get_close_matches(lang, self._lang_ids, n=3)
            known = ", ".join(self.languages) if self.languages else "none (tokenizer.languages is empty)"
            hint = f" (did you mean {' or '.join(near)}?)" if near and len(self.languages) > 20 else ""
            raise UserError(f"no token for language {lang!r}{hint}; tokenizer.languages: {known}")
        return self._lang_ids[found]

    def knows(self, lang: str) -> bool:
        return match(lang, self._lang_ids) is not None

    def lang_of(self, token: int) -> str | None:
        """The language whose token this is, or None."""
        return self._lang_names.get(token)

    # Characters, for text-to-unit models that make room by characters. As in SeamlessM4T the word mark is one of them.

    @property
    def num_characters(self) -> int:
        """Rows of a character embedding: 0 none, 1 unknown, then the characters of the pieces in code point order, or
        those of the published vocabulary."""
        return 1 + max([self.unknown_character_id, *self._alphabet().values()])

    def piece_characters(self) -> Tensor:
        """(V, C) int64 character ids of each id, 0 beyond its end; 0 for pad, bos, eos, languages, unused rows."""
        alphabet, unknown = self._alphabet(), self.unknown_character_id
        rows = [[alphabet.get(character, unknown) for character in text] for text in self.pieces()]
        rows[self.unk_id] = [unknown]
        for piece in range(NUM_CONTROLS, self.num_pieces):
            if self.model.is_byte(piece):
                rows[piece + 1] = [unknown]
        lengths = torch.tensor([len(row) for row in rows])
        table = torch.zeros(self.vocab_size, int(lengths.max()), dtype=torch.int64)
        table[torch.arange(table.shape[1]) < lengths[:, None]] = torch.tensor([*chain.from_iterable(rows)])
        return table

    def piece_lengths(self) -> Tensor:
        """(V,) int64 characters of each id: 1 for unk, 0 for pad, bos, eos, languages and unused rows."""
        return (self.piece_characters() > 0).sum(1)

    def pieces(self) -> tuple[str, ...]:
        """Text of each id as the model writes it, word mark included; empty for specials, bytes, languages and unused
        rows. What a published character vocabulary says of a piece comes first."""
        written = {} if self._table is None else self._table["id_to_text"]
        texts = [""] * self.vocab_size
        for piece in range(NUM_CONTROLS, self.num_pieces):
            texts[piece + 1] = written.get(str(piece + 1)) or self.model.text(piece)
        return tuple(texts)

    def _alphabet(self) -> dict[str, int]:
        if self._characters is None:
            characters = sorted({character for text in self.pieces() for character in text})
            self._characters = {character: number for number, character in enumerate(characters, start=2)}
        return self._characters


_NORMALISERS = ("sentencepiece", "transformers")


def _character_file(path: Path) -> dict[str, Any]:
    """`char_to_id` and `id_to_text` of a generation_config.json.

    Raises:
        UserError: no such file, or it has none.
    """
    try:
        content = parse_json(path.read_bytes())
        characters = {str(key): int(number) for key, number in content["char_to_id"].items()}
        texts = {str(key): str(text) for key, text in (content.get("id_to_text") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"tokenizer.characters={str(path)!r}: expected a JSON file with char_to_id and id_to_text, as the "
            f"generation_config.json of SeamlessM4T v2 ({type(error).__name__}: {error})"
        ) from None
    return {"char_to_id": characters, "id_to_text": texts}


def _unpack(data: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """Model and character vocabulary of what `to_bytes` gave."""
    if not data.startswith(_MAGIC):
        return data, None
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(data[start - 8 : start], "little")
    return data[start:end], json.loads(data[end:])
