"""Contract of tokenizers. Letters: V vocabulary, C characters of a token."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..roles import Tokenizer
from .outcome import Check
from .ways import returned

_TASKS = ("s2tt", "asr", "t2tt")


def checks_of_tokenizer(part: Tokenizer, again: Callable[[], Any] | None) -> Iterator[Check]:
    yield "runs", lambda: _runs(part)
    yield "specials", lambda: _specials(part)
    yield "round_trip", lambda: _round_trip(part)
    yield "languages", lambda: _languages(part)
    yield "prefix", lambda: _prefix(part)
    yield "characters", lambda: _characters(part)
    yield "pickle", lambda: _pickle(part)
    yield "bytes", lambda: _bytes(part)


def texts(part: Tokenizer) -> list[str]:
    """What it can write: a few of its own pieces in a row."""
    generator = torch.Generator().manual_seed(0)
    own = [number for number, piece in enumerate(part.pieces()) if piece][:4000]
    found = []
    for length in (1, 3, 6, 12, 25):
        chosen = torch.randint(len(own), (length,), generator=generator).tolist()
        text = part.decode([own[place] for place in chosen]).strip()
        if text and "\ufffd" not in text:
            found.append(text)
    return found


def _runs(part: Tokenizer) -> str | None:
    if not part.languages:
        return "it has no languages"
    returned(part.encode("a"), list, "a Tokenizer returns a list of int", "encode")
    return None


def _specials(part: Tokenizer) -> str | None:
    for name in ("pad_id", "unk_id", "bos_id", "eos_id"):
        value = getattr(part, name, None)
        if not isinstance(value, int) or not 0 <= value < part.vocab_size:
            return f"{name} must be an id of the vocabulary, 0 to {part.vocab_size - 1}; got {value!r}"
    if part.eos_id in map(part.lang_id, part.languages):
        return f"eos_id={part.eos_id} is also a language"
    return None


def _round_trip(part: Tokenizer) -> str | None:
    """What a decoded text becomes again."""
    if part.encode(""):
        return "the empty text has ids"
    special = {part.pad_id, part.bos_id, part.eos_id, *map(part.lang_id, part.languages)}
    for text in texts(part):
        ids = part.encode(text)
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            return "encode must give a list of int"
        wrong = [number for number in ids if not 0 <= number < part.vocab_size or number in special]
        if wrong:
            return f"encode({text!r}) holds {wrong[0]}, a special, a language or none of the {part.vocab_size} ids"
        again = part.decode(ids)
        if part.encode(again) != ids or (part.unk_id not in ids and again.strip() != text):
            return f"{text!r} becomes {again!r} by encode and decode"
        if part.decode([part.eos_id, part.lang_id(part.languages[0]), *ids, part.eos_id]) != again:
            return f"decode keeps specials or languages of a sequence around {text!r}: drop them"
        if part.decode(iter(ids)) != again or part.encode(text) != ids:
            return f"{text!r} gives something else the second time, or from an iterator"
    return None


def _languages(part: Tokenizer) -> str | None:
    if not isinstance(part.languages, tuple):
        return f"languages must be a tuple; got {type(part.languages).__name__}"
    ids = [part.lang_id(lang) for lang in part.languages]
    for lang, number in zip(part.languages, ids, strict=True):
        if not 0 <= number < part.vocab_size or not part.knows(lang):
            return f"the language {lang!r} has the id {number} of {part.vocab_size}, or is not known"
    try:
        part.lang_id("no such language")
    except ValueError as error:
        return None if part.languages[0] in str(error) else "the error of an unknown language must name those there are"
    return "lang_id of an unknown language must raise ValueError"


def _prefix(part: Tokenizer) -> str | None:
    text, lang = next(iter(texts(part)), "a"), part.languages[0]
    for task in _TASKS:
        src = part.languages[-1]
        prefix = part.prefix(lang, src, task)
        if len(prefix) != part.prefix_length:
            return f"prefix has {len(prefix)} ids, prefix_length says {part.prefix_length}"
        if part.target(text, lang, src, task) != [*prefix, *part.encode(text), part.eos_id]:
            return "target must be prefix, pieces, eos"
    if not set(part.encode(text)) <= set(part.source(text, lang)):
        return "source lacks pieces of the text"
    return None


def _characters(part: Tokenizer) -> str | None:
    table = part.piece_characters()
    if table.dtype != torch.int64 or table.dim() != 2 or len(table) != part.vocab_size:
        return f"piece_characters gives {table.dtype} {tuple(table.shape)} instead of (V={part.vocab_size}, C) int64"
    if bool((table < 0).any()) or bool(((table[:, :-1] == 0) & (table[:, 1:] != 0)).any()):
        return "piece_characters must hold ids from 1 on, and 0 beyond the end of a piece only"
    if len(part.pieces()) != part.vocab_size:
        return f"pieces gives {len(part.pieces())} texts for {part.vocab_size} ids"
    return None


def _pickle(part: Tokenizer) -> str | None:
    try:
        twin = pickle.loads(pickle.dumps(part))
    except Exception as error:
        text = " ".join(str(error).split())
        return f"it cannot be pickled, so data workers cannot have it ({text}): see __getstate__"
    for text in texts(part):
        if twin.encode(text) != part.encode(text):
            return f"behind pickling {text!r} has other ids"
    return None


def _bytes(part: Tokenizer) -> str | None:
    data = part.to_bytes()
    if not isinstance(data, bytes) or not data:
        return f"to_bytes must give the whole tokenizer as bytes; got {type(data).__name__}"
    if data != part.to_bytes() or data != pickle.loads(pickle.dumps(part)).to_bytes():
        return "to_bytes gives other bytes the second time, or behind pickling"
    if not hasattr(type(part), "from_bytes"):
        return "it has no classmethod from_bytes(data, **arguments), which reads what a checkpoint carries"
    return None
