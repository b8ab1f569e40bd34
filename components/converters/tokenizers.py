"""Tokenizer files of NLLB and SeamlessM4T folders as a config node, and back.

Letters: V rows of the model's vocabulary.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tokenizer import SentencePieceTokenizer
from ..tokenizer.pieces import Layout, SentencePieces, first_added, read_fast
from ..tokenizer.sentencepiece import SPECIALS
from .settings import read_json_if

_MODEL, _FAST, _CONFIG = "sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json"
_CLASSES: dict[Layout, str] = {"nllb": "NllbTokenizer", "seamless_m4t": "SeamlessM4TTokenizer"}
_SPARE = 64  # rows that a model may have beyond its tokenizer: vocabularies are rounded up to multiples of up to 64
_NLLB_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_M4T_LANGUAGE = re.compile(r"__(.+)__")


def tokenizer_node(folder: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Config node of the tokenizer whose files are in a folder; empty where there are none of a kind that voxzoo has.

    Args:
        folder: with sentencepiece.bpe.model or tokenizer.json, tokenizer_config.json, generation_config.json.
        settings: config.json.

    Raises:
        UserError: damaged files, or a tokenizer of another vocabulary than the model's; names both sizes.
    """
    path = next((folder / name for name in (_MODEL, _FAST) if folder is not None and (folder / name).exists()), None)
    if folder is None or path is None:
        return {}
    try:
        return _node(folder, path, settings)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path}, or a tokenizer file beside it, is not in the form of transformers "
            f"({type(error).__name__}: {error}): fetch the files again"
        ) from None


def _node(folder: Path, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    config, generation = (read_json_if(folder, name) for name in (_CONFIG, "generation_config.json"))
    layout = _layout(str(config.get("tokenizer_class") or ""), settings)
    if layout is None:
        return {}
    fast = read_fast((folder / _FAST).read_bytes(), str(folder / _FAST)) if (folder / _FAST).exists() else {}
    if path.name == _MODEL:
        first = 1 + SentencePieces(path.read_bytes(), layout, "sentencepiece", str(path)).size
    else:
        first = first_added(fast)
    given = settings.get("vocab_size")
    added = _added(folder, config, fast, layout, first, None if given is None else int(given))
    _check_languages(generation, added, layout, first, folder)
    _check_specials({"config.json": settings, "generation_config.json": generation}, layout, folder)
    rows = first + len(added)
    vocab_size = rows if given is None else int(given)
    if not rows <= vocab_size <= rows + _SPARE:
        raise UserError(
            f"{path}: the tokenizer has {rows} ids ({first} pieces and specials, {len(added)} languages and controls), "
            f"but the model's vocab_size is {vocab_size}: they do not belong together"
        )
    return {
        "_target_": "voxzoo.components.SentencePieceTokenizer",
        "model": str(path.absolute()),
        "languages": added,
        "vocab_size": vocab_size,
        "layout": layout,
        "normaliser": "transformers",
        "legacy_source": bool(config.get("legacy_behaviour", False)),
        "characters": str((folder / "generation_config.json").absolute()) if "char_to_id" in generation else None,
        "train": False,
    }


def export_tokenizer_files(tokenizer: SentencePieceTokenizer, folder: Path) -> None:
    """Write the files from which transformers loads the same vocabulary: the model and tokenizer_config.json.

    Raises:
        UserError: a unigram model, which its classes would read as byte-pair encoding.
    """
    if tokenizer.model.is_unigram:
        raise UserError(
            "tokenizer: a unigram SentencePiece model; the published layout has byte-pair encoding alone "
            "(train_sentencepiece with model_type=bpe)"
        )
    fast = tokenizer.model.data.lstrip()[:1] == b"{"
    (folder / (_FAST if fast else _MODEL)).write_bytes(tokenizer.model.data)
    specials = {tokenizer.bos_id: "<s>", tokenizer.pad_id: "<pad>", tokenizer.eos_id: "</s>", tokenizer.unk_id: "<unk>"}
    first = 1 + tokenizer.num_pieces
    names = [_token(name, tokenizer.layout) for name in tokenizer.added]
    tokens = {**dict(sorted(specials.items())), **dict(enumerate(names, start=first))}
    content: dict[str, Any] = {
        "tokenizer_class": _CLASSES[tokenizer.layout],
        "added_tokens_decoder": {
            str(number): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, name in tokens.items()
        },
        "additional_special_tokens": [name for name in names if name != "<mask>"],
    }
    languages = [name for name, lang in zip(names, tokenizer.added, strict=True) if not lang.startswith("<")]
    if languages:  # those that the classes begin with need not be in this vocabulary
        content.update(src_lang=languages[0], tgt_lang=languages[-1])
    if tokenizer.layout == "nllb":
        content["legacy_behaviour"] = tokenizer.legacy_source
    (folder / _CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def generation_entries(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """What generation_config.json of SeamlessM4T says of its tokenizer: ids of the languages and, where there is a
    published character vocabulary (v2), its characters and the text of each id."""
    entries: dict[str, Any] = {
        "text_decoder_lang_to_code_id": {
            name: tokenizer.lang_id(name) for name in tokenizer.added if not name.startswith("<")
        }
    }
    if tokenizer.characters is not None:
        entries["char_to_id"] = tokenizer.characters
        entries["id_to_text"] = {str(number): text for number, text in enumerate(tokenizer.pieces()) if text}
        entries["id_to_text"][str(tokenizer.unk_id)] = "<unk>"
    return entries


def _layout(name: str, settings: dict[str, Any]) -> Layout | None:
    """By the tokenizer's class, or by the model where no file names one. M2M-100's own is none of voxzoo's."""
    for layout, known in _CLASSES.items():
        if name.removesuffix("Fast") == known:
            return layout
    if name not in ("", "PreTrainedTokenizerFast", "TokenizersBackend"):
        return None
    return (
        "nllb" if settings.get("model_type") == "m2m_100" and settings.get("pad_token_id", 1) == 1 else "seamless_m4t"
    )


def _added(
    folder: Path, config: dict[str, Any], fast: dict[str, Any], layout: Layout, first: int, vocab_size: int | None
) -> list[str]:
    """Tokens behind the pieces, in order, as `SentencePieceTokenizer.languages` writes them."""
    found = {int(token["id"]): str(token["content"]) for token in fast.get("added_tokens") or []}
    found.update({int(number): _content(token) for number, token in (config.get("added_tokens_decoder") or {}).items()})
    found.update({int(number): name for name, number in read_json_if(folder, "added_tokens.json").items()})
    found = {number: name for number, name in found.items() if number >= first}
    if not found:
        # Before ids were written down, these tokens stood behind the pieces in the order of the list.
        special = {**read_json_if(folder, "special_tokens_map.json"), **config}
        listed = special.get("additional_special_tokens") or special.get("extra_special_tokens") or []
        names = [_content(token) for token in listed]
        if layout == "nllb" and names and "<mask>" not in names:
            names.append("<mask>")
        found = dict(enumerate(names, start=first))
    end = max(found, default=first - 1) + 1
    if end > (first + len(found) + _SPARE if vocab_size is None else max(vocab_size, first + len(found)) + _SPARE):
        raise UserError(
            f"{folder}: {found[end - 1]} has the id {end - 1} in the tokenizer's files, behind {first} pieces and "
            f"specials and {len(found) - 1} other tokens; the model's vocab_size is {vocab_size or 'not given'}: they "
            "do not belong together"
        )
    return [_name(found.get(number), number, layout) for number in range(first, end)]


def _name(token: str | None, number: int, layout: Layout) -> str:
    """A token as an entry of `languages`: a code, or a control in angle brackets."""
    if token is None:
        return f"<unused{number}>"
    match = (_NLLB_LANGUAGE if layout == "nllb" else _M4T_LANGUAGE).fullmatch(token)
    if match is not None:
        return match.group(match.lastindex or 0)
    return token if token.startswith("<") else f"<{token}>"


def _token(name: str, layout: Layout) -> str:
    return name if name.startswith("<") or layout == "nllb" else f"__{name}__"


def _content(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _check_languages(generation: dict[str, Any], added: list[str], layout: Layout, first: int, folder: Path) -> None:
    """generation_config.json and the tokenizer have to agree on the ids of languages."""
    if layout != "seamless_m4t":
        return
    ids = {name: number for number, name in enumerate(added, start=first)}
    for name, number in (generation.get("text_decoder_lang_to_code_id") or {}).items():
        if ids.get(name) != number:
            raise UserError(
                f"{folder}: generation_config.json says that {name} is {number}, but in the tokenizer it is "
                f"{ids.get(name, 'no language')}: the files are of different models"
            )


def _check_specials(files: dict[str, dict[str, Any]], layout: Layout, folder: Path) -> None:
    """A sentence ends and is padded with the tokenizer's ids; transformers would go by these files."""
    ids = SPECIALS[layout]
    expected = {"pad_token_id": ids.pad, "eos_token_id": ids.eos, "decoder_start_token_id": ids.eos}
    for name, content in files.items():
        for key, number in expected.items():
            if content.get(key) not in (None, number):
                raise UserError(
                    f"{folder}: {name} has {key}={content[key]}, but in the tokenizer of the {layout} layout that is "
                    f"{number}: the files are of different models"
                )
