"""Whisper's byte-level BPE and its prefix of language and task. Letters: V rows of the vocabulary, C characters of a
piece."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, few
from ..languages import is_same, match
from ..lines import parse_json
from ..roles import Tokenizer
from .languages import WHISPER_LANGUAGES

_END, _START, _PLAIN = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
_TRANSCRIBE, _TRANSLATE = "<|transcribe|>", "<|translate|>"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
_INTO = "eng"  # Whisper translates into English alone


class WhisperTokenizer(Tokenizer):
    """Byte-level BPE of Whisper (Radford et al. 2022, arXiv 2212.04356, section 2.3), read from its tokenizer.json.

    Languages have their ISO 639-3 names here, as everywhere in voxzoo: `spa` is Whisper's `<|es|>`. Text never turns
    into special tokens, whatever is written in it. Whisper begins what it hears with a space: `decode` takes it off.

    What comes first (`prefix`) says what is spoken and what to do with it:

        English written down from another language, or task `s2tt` into `eng`:  start, source, translate, no timestamps
        everything else:                                                        start, target, transcribe, no timestamps
        an English-only vocabulary:                                             start, no timestamps

    Whisper was trained to translate into English alone; asked to write another language than the one that is spoken,
    it is told to transcribe that language, which is all there is for it.

    Args:
        model: path of tokenizer.json, or of vocab.json with merges.txt beside it (and added_tokens.json).
        vocab_size: V, the rows of the embedding: 51865, 51866 (large-v3), 51864 (English-only).
        languages: ISO 639-3 codes to know; empty: all that the vocabulary has a token for.
        multilingual: False for the English-only models (`tiny.en` and so on).

    Raises:
        UserError: `tokenizers` is not installed, no such file, not Whisper's, or another size than `vocab_size`.
    """

    def __init__(
        self, model: str, vocab_size: int = 51865, languages: list[str] | None = None, multilingual: bool = True
    ) -> None:
        path = Path(model)
        if not path.is_file():
            raise UserError(f"tokenizer.model={model!r} is no file: give the tokenizer.json of a Whisper model")
        self._load(tokenizer_json(path), vocab_size, languages, multilingual, where=str(model))

    @classmethod
    def from_bytes(
        cls,
        data: bytes | Tensor,
        vocab_size: int = 51865,
        languages: list[str] | None = None,
        multilingual: bool = True,
    ) -> WhisperTokenizer:
        """Build from what `to_bytes` gave: bytes, or the same as a (N,) uint8 tensor out of a checkpoint."""
        if isinstance(data, Tensor):
            data = data.detach().cpu().to(torch.uint8).numpy().tobytes()
        tokenizer = cls.__new__(cls)
        tokenizer._load(data, vocab_size, languages, multilingual, where=f"{len(data)} bytes")
        return tokenizer

    def to_bytes(self) -> bytes:
        """tokenizer.json, as it was read or as it was made of vocab.json and merges.txt."""
        return self._data

    def _load(self, data: bytes, vocab_size: int, languages: list[str] | None, multilingual: bool, where: str) -> None:
        self._data = data
        self._model = _read(data, where)
        ids: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        wanted = [_END, _START, _PLAIN, *([_TRANSCRIBE, _TRANSLATE] if multilingual else [])]
        absent = [token for token in wanted if token not in ids]
        if absent:
            raise UserError(f"tokenizer.model={where} is not Whisper's: it has no {', '.join(absent)}")
        if max(ids.values()) >= vocab_size:
            raise UserError(
                f"tokenizer.model={where} has ids up to {max(ids.values())}, too many for "
                f"tokenizer.vocab_size={vocab_size}: it belongs to another model"
            )
        self.vocab_size = vocab_size
        self.multilingual = multilingual
        self.eos_id = ids[_END]
        self.pad_id = self.unk_id = self.eos_id  # bytes spell everything, and published models pad with eos
        self.bos_id = ids[_START]
        self._ids = ids
        names = {name: ids[f"<|{code}|>"] for name, code in WHISPER_LANGUAGES.items() if f"<|{code}|>" in ids}
        # Codes of three letters are ISO 639-3 already: large-v3 has a token for Cantonese.
        names.update({name: ids[f"<|{name}|>"] for name in names if f"<|{name}|>" in ids})
        self._languages = names if multilingual else {_INTO: self.bos_id}
        unknown = [lang for lang in languages or () if match(lang, self._languages) is None]
        if unknown:
            raise UserError(
                f"tokenizer.languages: Whisper has no {few(unknown)}; it has {', '.join(sorted(self._languages))}"
            )
        self.languages = tuple(match(lang, self._languages) or lang for lang in languages or self._languages)
        self.prefix_length = len(self.prefix(self.languages[0]))
        self._alphabet: dict[str, int] | None = None

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        # Ordinary pieces come first; specials, languages and timestamps stand behind them, from eos on.
        kept = [int(i) for i in ids if 0 <= int(i) < self.eos_id]
        return self._model.decode(kept, skip_special_tokens=False).removeprefix(" ")

    def lang_id(self, lang: str) -> int:
        """Id of a language's token (of the start, in an English-only vocabulary). Raises UserError naming the languages
        there are."""
        found = match(lang, self.languages)
        if found is None:
            raise UserError(f"no token for language {lang!r}; tokenizer.languages: {', '.join(self.languages)}")
        return self._languages[found]

    def prefix(self, lang: str, src_lang: str | None = None, task: str | None = None) -> list[int]:
        """First decoder tokens; see the class.

        Raises:
            UserError: a language without a token, or task `s2tt` into English without `src_lang`: Whisper must be told
                what is spoken.
        """
        target = self.lang_id(lang)
        if not self.multilingual:
            return [self.bos_id, self._ids[_PLAIN]]
        if is_same(lang, _INTO) and task == "s2tt" and not src_lang:
            raise UserError("Whisper must be told what is spoken to translate it: give the source language (--from)")
        translates = is_same(lang, _INTO) and task != "asr" and bool(src_lang) and not is_same(src_lang, lang)
        spoken = self.lang_id(src_lang) if translates and src_lang else target
        return [self.bos_id, spoken, self._ids[_TRANSLATE if translates else _TRANSCRIBE], self._ids[_PLAIN]]

    def generation_ids(self) -> dict[str, Any]:
        """The ids that generation_config.json of a published folder names."""
        found: dict[str, Any] = {"no_timestamps_token_id": self._ids[_PLAIN]}
        if self.multilingual:
            tokens = [f"<|{code}|>" for code in sorted({*WHISPER_LANGUAGES, *WHISPER_LANGUAGES.values()})]
            found["lang_to_id"] = {token: self._ids[token] for token in tokens if token in self._ids}
            found["task_to_id"] = {"transcribe": self._ids[_TRANSCRIBE], "translate": self._ids[_TRANSLATE]}
        return found

    # Characters, for text-to-unit models that make room by characters. The space before a word is one of them.

    unknown_character_id = 1
    """Character id of pieces that are no whole characters; 0 is no character."""

    @property
    def num_characters(self) -> int:
        """Rows of a character embedding: 0 none, 1 unknown, then the characters of the pieces in code point order."""
        return 2 + len(self._characters())

    def piece_characters(self) -> Tensor:
        """(V, C) int64 character ids of each id, 0 beyond its end; [1] for part of a character, 0 for specials."""
        alphabet = self._characters()
        rows = [[alphabet[c] for c in text] if text else [self.unknown_character_id] for text in self._texts()]
        table = torch.zeros(self.vocab_size, max(map(len, rows)), dtype=torch.int64)
        for row, characters in zip(table, rows, strict=False):
            row[: len(characters)] = torch.tensor(characters, dtype=torch.int64)
        return table

    def _texts(self) -> list[str]:
        """Text of ids 0 .. eos - 1; empty where the bytes are no whole characters."""
        byte_of = _byte_alphabet()
        texts = [""] * self.eos_id
        for piece, number in self._model.get_vocab(with_added_tokens=False).items():
            if number < self.eos_id:
                try:
                    texts[number] = bytes(byte_of[c] for c in piece).decode("utf-8")
                except (UnicodeDecodeError, KeyError):
                    texts[number] = ""
        return texts

    def _characters(self) -> dict[str, int]:
        if self._alphabet is None:
            characters = sorted({character for text in self._texts() for character in text})
            self._alphabet = {character: number for number, character in enumerate(characters, start=2)}
        return self._alphabet


def tokenizer_json(path: Path) -> bytes:
    """A tokenizer.json: the file itself, or what a vocab.json and the files beside it say.

    vocab.json has the ids of the pieces, merges.txt the pairs that they are made of, the best first, and
    added_tokens.json (or tokenizer_config.json) what is no piece of a text: controls, languages, timestamps.

    Raises:
        UserError: a vocab.json without merges.txt, or files that are not of this form.
    """
    if path.name != VOCABULARY:
        return path.read_bytes()
    merges = path.with_name(MERGES)
    if not merges.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.iterdir())[:12])
        raise UserError(f"{path}: expected {MERGES} beside it; there are {there}")
    vocabulary = _json(path)
    lines = merges.read_bytes().decode("utf-8", "replace").split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"{merges}: expected two pieces in each line; got {' '.join(wrong)[:60]!r}")
    added = {str(token): number for token, number in _json(path.with_name("added_tokens.json")).items()}
    listed = _json(path.with_name("tokenizer_config.json")).get("added_tokens_decoder") or {}
    try:
        added.update({str(token["content"]): int(number) for number, token in listed.items()})
        added.update({token: number for token, number in vocabulary.items() if token.startswith("<|")})
        pieces = {token: int(number) for token, number in vocabulary.items() if token not in added}
        tokens = sorted((int(number), token) for token, number in added.items())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}, or a tokenizer file beside it: {type(error).__name__}: {error}") from None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **plain, "special": True} for number, token in tokens],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": pieces,
                  "merges": pairs},
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False).encode()


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; it holds a {type(content).__name__}")
    return content


def token_ids(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json (or vocab.json), read without the library.

    Raises:
        UserError: it is none.
    """
    try:
        content = parse_json(tokenizer_json(path))
        ids = {str(token): int(number) for token, number in content["model"]["vocab"].items()}
        ids.update({str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or ()})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no tokenizer.json of Whisper ({type(error).__name__}: {error})") from None
    return ids


def _read(data: bytes, where: str) -> Any:
    """The `tokenizers.Tokenizer` in a tokenizer.json."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError:
        raise UserError("Whisper's tokenizer needs the package tokenizers: pip install voxzoo[eval]") from None
    try:
        model = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # its parser raises bare Exceptions
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"tokenizer.model={where} is no tokenizer.json ({reason})") from None
    model.encode_special_tokens = True
    model.no_padding()
    model.no_truncation()
    return model


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes of Latin-1 stand for themselves, the others, in order, for
    the code points from 256 on (Radford et al. 2019, as published with GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
