"""Tar files of WebDataset: members of one sample follow each other and share a name up to its first dot.

    000000.tar: a1.flac, a1.json, a1.txt, a2.flac ...

`.wav`, `.flac`, `.ogg`, `.opus` or `.mp3` is the source speech, the same behind `.tgt` (`a1.tgt.flac`) the target
speech; `.txt` the transcript; `.json` any keys, by their usual names or by --column. The audio stays where it is: rows
name bytes of the tar file. Layout: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ...components.lines import parse_json
from ..archives import Stored, members, read_member
from ..segments import member_name
from .conversion import Asked, Row
from .tables import named_values

AUDIO = ("wav", "flac", "ogg", "opus", "mp3")
_TEXT = ("txt", "text", "transcript")

TAKES = ("columns",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a tar file, or of those of a folder."""
    paths = sorted(source.rglob("*.tar")) if source.is_dir() else [source]
    if not paths:
        packed = next(source.rglob("*.tar.*"), None)
        why = f"; {packed.name} is compressed, and is to be unpacked to a plain .tar" if packed else ""
        raise UserError(f"{source}: no .tar in it{why}")
    for path in paths:
        split = path.relative_to(source).parts[0] if source.is_dir() and path.parent != source else ""
        if split and not asked.wants(split):
            continue
        for name, parts in _samples(path):
            made = _row(path, name, parts, asked)
            if made is not None:
                yield {"split": split, **made}


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Stored]]]:
    """Members that follow each other under one name, by what stands behind its first dot."""
    name, parts = "", dict[str, Stored]()
    for one in members(path):
        folder, _, file = one.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem or not suffix:
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != name and parts:
            yield name, parts
            parts = {}
        name = key
        parts[suffix.lower()] = one
    if parts:
        yield name, parts


def _row(path: Path, name: str, parts: dict[str, Stored], asked: Asked) -> Row | None:
    about: dict[str, Any] = {}
    if "json" in parts:
        try:
            found = parse_json(read_member(path, parts["json"]))
        except ValueError as error:
            asked.left_out("a .json that cannot be read", f"{path.name}: {name}: {error}")
            return None
        about = found if isinstance(found, dict) else {}
    made = named_values(about, asked.columns) if about or not asked.columns else {}
    for key in ("audio", "tgt_audio"):
        made.pop(key, None)  # where it was once, not where it is
    text = next((parts[suffix] for suffix in _TEXT if suffix in parts), None)
    if text is not None and "src_text" not in made:
        try:
            made["src_text"] = read_member(path, text).decode()
        except UnicodeDecodeError:
            asked.left_out("a text that is not UTF-8", f"{path.name}: {name}")
            return None
    for key, before in (("audio", ""), ("tgt_audio", "tgt.")):
        one = next((parts[before + suffix] for suffix in AUDIO if before + suffix in parts), None)
        if one is not None:
            made[key] = member_name(str(path), one.place, one.size)
    if "audio" not in made and "src_text" not in made:
        asked.left_out("a sample without audio and text", f"{path.name}: {name} ({', '.join(parts)})")
        return None
    made.setdefault("id", name)
    return made
