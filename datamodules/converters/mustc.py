"""MuST-C (Di Gangi et al. 2019) and what is laid out like it: mTEDx, whose recordings are .flac where it says .wav.

    SRC-TGT/data/SPLIT/txt/SPLIT.yaml: - {duration: 4.1, offset: 16.08, rW: 9, uW: 0, speaker_id: spk.7, wav: ted_7.wav}
    SPLIT/txt/SPLIT.SRC, SPLIT.TGT: a line for each segment
    SPLIT/wav/ted_7.wav: whole talks

Line n of the texts belongs to segment n. The YAML of the training data has hundreds of thousands of items; it is read
one at a time. Layout: the README inside the corpus (https://mt.fbk.eu/must-c/), and `lhotse/recipes/must_c.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from ...components.errors import UserError
from ...components.languages import is_language, match
from .conversion import Asked, Row
from .tables import text_lines

_PAIR = re.compile(r"(?<![A-Za-z])([A-Za-z]{2,3})[-_]([A-Za-z]{2,3})(?![A-Za-z])")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a pair: of its folder, or of `data` in it."""
    folders = split_folders(source / "data" if (source / "data").is_dir() else source)
    if not folders:
        raise UserError(f"{source}: expected data/SPLIT/txt/SPLIT.yaml of a pair such as en-de")
    pair = pair_of(source)
    for folder in folders:
        if asked.wants(folder.name):
            yield from segments(folder, pair, asked)


def split_folders(source: Path) -> list[Path]:
    """Folders of splits, in their order."""
    return sorted(path for path in source.iterdir() if any(path.glob("txt/*.yaml"))) if source.is_dir() else []


def pair_of(folder: Path) -> tuple[str, str]:
    """The languages that a path is named after, `en-de` or `que_spa_clean`; ("", "") where none is."""
    for part in reversed(folder.resolve().parts):
        found = _PAIR.search(part)
        if found and is_language(found[1]) and is_language(found[2]):
            return found[1], found[2]
    return "", ""


def segments(folder: Path, pair: tuple[str, str], asked: Asked, audio: Path | None = None) -> Iterator[Row]:
    """Rows of a split.

    Args:
        folder: of the split, with `txt` and `wav`.
        pair: languages, as far as they are known.
        asked: what is asked.
        audio: folder of the recordings in place of `wav`.
    """
    (table, *_) = sorted(folder.glob("txt/*.yaml"))
    files = {path.name.removeprefix(f"{table.stem}."): path for path in table.parent.glob(f"{table.stem}.*")}
    files = {suffix: path for suffix, path in files.items() if is_language(suffix)}
    source, target = (asked.src_lang or pair[0]), (asked.tgt_lang or pair[1])
    texts = [_file_of(code, files) for code in (source, target)]
    if not any(texts):
        there = ", ".join(sorted(files)) or "none"
        raise UserError(
            f"{table.parent}: no text beside {table.name} is in {source or '?'} or {target or '?'}; there are texts in "
            f"{there}: say --src-lang and --tgt-lang"
        )
    audio = audio or folder / "wav"
    lines = [text_lines(path) if path else iter(()) for path in texts]
    told = recording = Path()
    for number, (item, *pairs) in enumerate(zip_longest(_items(table), *lines)):
        if item is None or any(line is None for line, path in zip(pairs, texts) if path):
            short = next(path for path, line in [(table, item), *zip(texts, pairs)] if path and line is None)
            raise UserError(f"{folder}: {short.name} ends behind line {number}, and others do not: nothing fits")
        if not isinstance(item, dict) or not item.get("wav"):
            asked.left_out(f"an item of {table.name} without wav", f"item {number + 1}")
            continue
        if audio / str(item["wav"]) != told:
            told = recording = audio / str(item["wav"])
            if not told.is_file() and told.with_suffix(".flac").is_file():
                recording = told.with_suffix(".flac")
        yield {
            "id": f"{folder.name}/{recording.stem}_{number}",
            "audio": str(recording),
            "offset": item.get("offset"),
            "duration": item.get("duration"),
            "src_lang": source,
            "tgt_lang": target,
            "src_text": pairs[0] or "",
            "tgt_text": pairs[1] or "",
            "speaker": _label(item.get("speaker_id")),
            "split": folder.name,
        }


def _file_of(code: str, files: dict[str, Path]) -> Path | None:
    found = match(code, files) if code else None
    return None if found is None else files[found]


def _label(value: Any) -> str | None:
    return None if value is None else str(value)


def _items(path: Path) -> Iterator[Any]:
    """Items of a list in YAML, one at a time. Raises UserError where it is none."""
    waiting: list[str] = []
    for line in text_lines(path):
        if line.startswith("- ") and waiting:
            yield from _parsed(path, waiting)
            waiting = []
        if line.strip() and not line.startswith(("#", "---")):
            waiting.append(line)
    if waiting:
        yield from _parsed(path, waiting)


def _parsed(path: Path, lines: list[str]) -> list[Any]:
    try:
        found = yaml.load("\n".join(lines), _LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {lines[0][:80]!r} is no YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(found, list):
        raise UserError(f"{path}: {lines[0][:80]!r}: expected a list of segments, each behind '- '")
    return found
