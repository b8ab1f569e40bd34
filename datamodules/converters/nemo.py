"""A manifest of NVIDIA NeMo, and its tarred form.

    {"audio_filepath": "a.wav", "duration": 3.2, "offset": 0.0, "text": "..."}
    Canary: also source_lang, target_lang, and `answer` for the text, or text; of version 1 taskname (`asr`, `ast`, or
        `s2t_translation`)
    tarred: {"audio_filepath": "a.wav", "shard_id": 0, ...} beside audio_0.tar, audio_1.tar ...

Where source and target language differ, the text is the translation. A path is relative to the manifest. Layout:
https://docs.nvidia.com/nemo/speech/latest/asr/datasets.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ..archives import members
from ..lookup import Lookup
from ..segments import member_name
from .conversion import Asked, Row
from .tables import json_lines

_SHARD = re.compile(r"(\d+)\.tar$")

TAKES = ("beside",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a manifest."""
    if source.is_dir():
        raise UserError(f"{source}: a folder; expected the manifest itself, a file of JSON lines")
    stored: Lookup | None = None
    for row in json_lines(source, asked.left_out):
        name = row.get("audio_filepath")
        if not isinstance(name, str) or not name:
            asked.left_out("a row without audio_filepath", str(row)[:60])
            continue
        if row.get("shard_id") is not None and stored is None:
            folder = asked.beside or source.parent
            stored = Lookup(_stored(folder))
            if not len(stored):
                raise UserError(f"{folder}: the manifest names shards, and there is no audio_N.tar: say --with FOLDER")
        if stored is None:
            audio = str(source.parent / name)
        else:
            audio = stored.get(f"{row.get('shard_id')}/{name}")
            if audio is None:
                asked.left_out("audio that its shard does not have", name)
                continue
        source_lang = row.get("source_lang") or row.get("lang")
        target_lang = row.get("target_lang") or source_lang
        text, answer = row.get("text"), row.get("answer")
        made: Row = {
            "id": _id(name, row),
            "audio": audio,
            "duration": row.get("duration"),
            "offset": row.get("offset"),
            "src_lang": source_lang,
            "speaker": row.get("speaker"),
        }
        if asked.tgt_lang or (target_lang and target_lang != source_lang):
            made.update(tgt_lang=target_lang, tgt_text=answer or text)
            if answer and text and answer != text:
                made["src_text"] = text
        else:
            made["src_text"] = answer or text
        if made["offset"] is not None and made["duration"] is None:
            del made["offset"]
            asked.left_out("a row with an offset and no duration", made["id"])
            continue
        yield made


def _id(name: str, row: Row) -> str:
    """Its own, or the file without its suffix and where the part begins."""
    if row.get("id"):
        return str(row["id"])
    stem = str(Path(name).with_suffix(""))
    parts = [stem, f"{row['offset']:g}" if isinstance(row.get("offset"), int | float) and row["offset"] else ""]
    language = row.get("target_lang")
    if language and language != row.get("source_lang"):
        parts.append(str(language))
    return "-".join(filter(None, parts))


def _stored(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.tar")):
        number = _SHARD.search(path.name)
        if number:
            for one in members(path):
                yield f"{int(number[1])}/{one.name}", member_name(str(path), one.place, one.size)
