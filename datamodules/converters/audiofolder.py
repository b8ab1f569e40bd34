"""An audiofolder of Hugging Face `datasets`: audio with a table beside it.

    metadata.csv or metadata.jsonl, or one in each of train/, validation/, test/: file_name, and any other column

`file_name` is relative to the table; other columns become keys of a manifest by their usual names (`text`, `sentence`,
`translation`, `speaker_id` ...) or by --column. Layout: https://huggingface.co/docs/datasets/audio_dataset.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from .conversion import Asked, Row
from .tables import json_lines, named_values, require_columns, text_lines

_TABLES = ("metadata.csv", "metadata.jsonl")

TAKES = ("columns",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of the tables of a folder and of those below it."""
    tables = sorted(path for name in _TABLES for path in source.rglob(name)) if source.is_dir() else []
    if not tables:
        parquet = ", or `saved_dataset` for its parquet files" if any(source.rglob("*.parquet")) else ""
        raise UserError(f"{source}: expected metadata.csv or metadata.jsonl with file_name and texts{parquet}")
    for table in tables:
        inside = table.parent.relative_to(source)
        split = inside.parts[0] if inside.parts else ""
        if split and not asked.wants(split):
            continue
        for place, row in enumerate(_table(table, asked)):
            if place == 0:
                require_columns(table, row, ("file_name",))
            made = named_values(row, asked.columns)
            made.setdefault("split", split)
            if asked.split and made["split"] != asked.split:
                continue
            made["audio"] = str(table.parent / str(row["file_name"]))
            if made.get("tgt_audio"):
                made["tgt_audio"] = str(table.parent / str(made["tgt_audio"]))
            made.setdefault("id", (inside / str(row["file_name"])).with_suffix("").as_posix())
            yield made


def _table(path: Path, asked: Asked) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        yield from json_lines(path, asked.left_out)
        return
    # A quoted text may have line breaks, so that lines are given with their ends.
    table = csv.DictReader(f"{line}\n" for line in text_lines(path))
    while True:
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {table.line_num}: no CSV ({error})") from None
        if None in row or None in row.values():
            asked.left_out(f"a row of {path.name} with too many or too few columns", f"line {table.line_num}")
        else:
            yield row
