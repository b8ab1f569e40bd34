"""Tokenizer files of M2M-100 folders of 2020 (vocab.json, sentencepiece.bpe.model) as a config node, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tokenizer.m2m_100 import PIECES, VOCABULARY, M2M100Tokenizer
from .settings import read_json_if

_CLASS, _CONFIG = "M2M100Tokenizer", "tokenizer_config.json"
_SPARE = 64  # rows that a model may have beyond its tokenizer

# Languages of the published models in the order of their ids, by the name that `language_codes` has for them.
_LANGUAGES = {
    "m2m100": [
        "af",
        "am",
        "ar",
        "ast",
        "az",
        "ba",
        "be",
        "bg",
        "bn",
        "br",
        "bs",
        "ca",
        "ceb",
        "cs",
        "cy",
        "da",
        "de",
        "el",
        "en",
        "es",
        "et",
        "fa",
        "ff",
        "fi",
        "fr",
        "fy",
        "ga",
        "gd",
        "gl",
        "gu",
        "ha",
        "he",
        "hi",
        "hr",
        "ht",
        "hu",
        "hy",
        "id",
        "ig",
        "ilo",
        "is",
        "it",
        "ja",
        "jv",
        "ka",
        "kk",
        "km",
        "kn",
        "ko",
        "lb",
        "lg",
        "ln",
        "lo",
        "lt",
        "lv",
        "mg",
        "mk",
        "ml",
        "mn",
        "mr",
        "ms",
        "my",
        "ne",
        "nl",
        "no",
        "ns",
        "oc",
        "or",
        "pa",
        "pl",
        "ps",
        "pt",
        "ro",
        "ru",
        "sd",
        "si",
        "sk",
        "sl",
        "so",
        "sq",
        "sr",
        "ss",
        "su",
        "sv",
        "sw",
        "ta",
        "th",
        "tl",
        "tn",
        "tr",
        "uk",
        "ur",
        "uz",
        "vi",
        "wo",
        "xh",
        "yi",
        "yo",
        "zh",
        "zu",
    ],
    "wmt21": ["en", "ha", "is", "ja", "cs", "ru", "zh", "de"],
}


def is_of_2020(folder: Path) -> bool:
    """Whether a folder's tokenizer is M2M-100's own."""
    kind = str(read_json_if(folder, _CONFIG).get("tokenizer_class") or "")
    return kind == _CLASS or (not kind and (folder / VOCABULARY).exists() and (folder / PIECES).exists())


def vocabulary_node(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Config node of the tokenizer in a folder.

    Raises:
        UserError: a file is missing or damaged, languages of no published list, or a vocabulary of another size than
            the model's.
    """
    absent = [name for name in (VOCABULARY, PIECES) if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder}: its tokenizer is a {_CLASS}, but there is no {' and no '.join(absent)}")
    config = read_json_if(folder, _CONFIG)
    name = str(config.get("language_codes") or "m2m100")
    if name not in _LANGUAGES:
        raise UserError(
            f"{folder / _CONFIG}: language_codes={name!r}: expected one of {', '.join(map(repr, _LANGUAGES))}, the "
            "published lists of languages"
        )
    codes = _LANGUAGES[name]
    vocabulary = read_json_if(folder, VOCABULARY)
    rows = len(vocabulary) + len(codes)
    given = settings.get("vocab_size")
    vocab_size = rows if given is None else int(given)
    if not rows <= vocab_size <= rows + _SPARE:
        raise UserError(
            f"{folder / VOCABULARY}: the tokenizer has {rows} ids ({len(vocabulary)} pieces and specials, {len(codes)} "
            f"languages), but the model's vocab_size is {vocab_size}: they do not belong together"
        )
    node = {
        "_target_": "voxzoo.components.M2M100Tokenizer",
        "model": str((folder / VOCABULARY).absolute()),
        "languages": codes,
        "vocab_size": vocab_size,
    }
    tokenizer = M2M100Tokenizer(node["model"], codes, vocab_size)
    ids = {
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.eos_id,
        "decoder_start_token_id": tokenizer.eos_id,
    }
    for file in ("config.json", "generation_config.json"):
        content = settings if file == "config.json" else read_json_if(folder, file)
        for key, number in ids.items():
            if content.get(key) not in (None, number):
                raise UserError(
                    f"{folder}: {file} has {key}={content[key]}, but in {VOCABULARY} that is {number}: the files are "
                    "of different models"
                )
    return node


def export_vocabulary(tokenizer: M2M100Tokenizer, folder: Path) -> None:
    """Write the files from which transformers loads the same vocabulary.

    Raises:
        UserError: other languages than those of its class, which has them by heart.
    """
    name = next((name for name, codes in _LANGUAGES.items() if [*tokenizer.codes] == codes), None)
    if name is None:
        raise UserError(
            f"tokenizer.languages: {len(tokenizer.codes)} languages; the published layout has the 100 of M2M-100, or "
            "the 8 of WMT 21, in their order"
        )
    (folder / VOCABULARY).write_bytes(tokenizer.vocabulary)
    (folder / PIECES).write_bytes(tokenizer.model)
    content = {
        "tokenizer_class": _CLASS,
        "language_codes": name,
        "src_lang": tokenizer.codes[0],
        "tgt_lang": tokenizer.codes[-1],
        "num_madeup_words": tokenizer.vocab_size - tokenizer.num_entries - len(tokenizer.codes),
    }
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n")
