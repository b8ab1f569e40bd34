"""Common Voice (Ardila et al. 2020), one language as Mozilla packs it: `cv-corpus-VERSION/LANG`.

    LANG/clips/common_voice_LANG_N.mp3
    LANG/{train,dev,test}.tsv, validated.tsv, other.tsv, invalidated.tsv
    LANG/clip_durations.tsv (since version 15): clip, duration[ms]

Columns: client_id, path, sentence, then by version sentence_id, up_votes, down_votes, age, gender, accents, variant,
locale, segment. The files are tab-separated without quoting as a rule, but sentences with quotation marks were written
as CSV, or with backslashes, by some releases. Layout: the README of https://github.com/common-voice/cv-dataset, and
`CorporaCreator` of the same organisation, which writes the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ...components.languages import is_language
from ..lookup import Lookup
from .conversion import Asked, Row
from .tables import require_columns, tsv_rows, unquoted

SPLITS = ("train", "dev", "test")


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of the official splits, or of the one that is asked for: also `validated`, `other`, `invalidated`."""
    splits = (asked.split,) if asked.split else tuple(name for name in SPLITS if (source / f"{name}.tsv").is_file())
    if not splits:
        there = ", ".join(sorted(path.stem for path in source.glob("*.tsv"))) or "no .tsv at all"
        raise UserError(
            f"{source}: expected the folder of a language of Common Voice, with train.tsv, dev.tsv and test.tsv; there "
            f"is {there}; of these --split takes one"
        )
    lengths = clip_seconds(source, asked)
    for split in splits:
        for row in clips(source, split, asked, lengths):
            yield {**row, "split": split}


def clips(folder: Path, table: str, asked: Asked, lengths: Lookup) -> Iterator[Row]:
    """Rows of one table of a language, without a split."""
    path = folder / f"{table}.tsv"
    checked = False
    for row in tsv_rows(path, asked.left_out):
        if not checked:
            require_columns(path, row, ("client_id", "path", "sentence"))
            checked = True
        name = row["path"] if row["path"].endswith(".mp3") else f"{row['path']}.mp3"  # of the first releases
        yield {
            "id": name.removesuffix(".mp3"),
            "audio": str(folder / "clips" / name),
            "duration": lengths.get(name),
            "src_lang": row.get("locale") or language_of(folder),
            "src_text": unquoted(row["sentence"]),
            "speaker": row["client_id"],
        }


def language_of(folder: Path) -> str:
    """The language that a folder is named after, "" where it is named after none."""
    name = folder.resolve().name
    return name if is_language(name) else ""


def clip_seconds(folder: Path, asked: Asked) -> Lookup:
    """Clip -> seconds, where the release says them."""
    path = folder / "clip_durations.tsv"
    found = Lookup()
    if path.is_file():
        for row in tsv_rows(path, asked.left_out):
            clip, length = row.get("clip"), row.get("duration[ms]", "")
            if clip and length.isdigit() and int(length):
                found.add(clip, int(length) / 1000)
    return found
