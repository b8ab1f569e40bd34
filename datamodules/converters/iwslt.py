"""The low-resource tracks of IWSLT, 2022 to 2026, as their organisers pack them.

    SPLIT/txt/SPLIT.yaml, SPLIT.LANG and SPLIT/wav, as MuST-C (Tamasheq `taq_fra_clean`, Quechua `que_spa_clean`,
        Marathi, Bhojpuri, Irish); where the recordings lie elsewhere (`all_files`): --with
    SPLIT/stm/*.stm without txt: file, channel, speaker, begin, end, <labels>, translation
    SPLIT.jsonl, rows with the keys of a manifest, audio beside them

A test set has one text, or none: rows without a translation stay, for `translate`. Layouts: the repositories of the
organisers, such as https://github.com/Llamacha/IWSLT2023_Quechua_data, https://github.com/mzboito/IWSLT2022_Tamasheq_data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from .conversion import Asked, Row
from .mustc import pair_of, segments, split_folders
from .tables import json_lines, text_lines

_TOLD = ("id", "audio", "tgt_audio", "offset", "duration", "channel", "src_lang", "tgt_lang", "src_text", "tgt_text")

TAKES = ("beside",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of all splits that there are."""
    if asked.beside is not None:
        asked.needs_beside("iwslt", "the folder of the recordings")
    pair, any_split = pair_of(source), False
    for folder in split_folders(source):
        any_split = True
        if asked.wants(folder.name):
            yield from segments(folder, pair, asked, asked.beside)
    tables = sorted(source.glob("*.jsonl")) if source.is_dir() else []
    for table in () if any_split else tables:
        any_split = True
        if asked.wants(table.stem):
            yield from _prepared(table, asked)
    recorded = sorted({path.parent.parent for path in source.glob("*/stm/*.stm")}) if source.is_dir() else []
    for folder in () if any_split else recorded:
        any_split = True
        if asked.wants(folder.name):
            yield from _marked(folder, pair, asked)
    if not any_split:
        raise UserError(
            f"{source}: expected SPLIT/txt/SPLIT.yaml, SPLIT/stm/*.stm or SPLIT.jsonl, of train, valid or test"
        )


def _prepared(table: Path, asked: Asked) -> Iterator[Row]:
    for row in json_lines(table, asked.left_out):
        made: Row = {key: row[key] for key in (*_TOLD, "speaker") if key in row}
        for key in ("audio", "tgt_audio"):
            if made.get(key):
                made[key] = str(table.parent / made[key])
        yield {**made, "split": row.get("split") or table.stem}


def _marked(folder: Path, pair: tuple[str, str], asked: Asked) -> Iterator[Row]:
    """Rows of STM, whose text is the translation."""
    audio = asked.beside or folder / "wav"
    for table in sorted(folder.glob("stm/*.stm")):
        for number, line in enumerate(text_lines(table), 1):
            if not line.strip() or line.startswith(";;"):
                continue
            words = line.split(None, 5)
            if len(words) < 5:
                asked.left_out(f"a line of {table.name} with fewer than five fields", f"line {number}")
                continue
            name, _, speaker, begin, end = words[:5]
            text = words[5] if len(words) > 5 else ""
            if text.startswith("<"):
                text = text.partition(">")[2]
            try:
                offset, seconds = float(begin), float(end) - float(begin)
            except ValueError:
                asked.left_out(f"a line of {table.name} without times", f"line {number}")
                continue
            recording = audio / (name if Path(name).suffix else f"{name}.wav")
            yield {
                "id": f"{folder.name}/{Path(name).stem}_{number - 1}",
                "audio": str(recording),
                "offset": offset,
                "duration": seconds,
                "src_lang": pair[0],
                "tgt_lang": pair[1],
                "tgt_text": text,
                "speaker": speaker,
                "split": folder.name,
            }
