"""CoVoST 2 (Wang et al. 2020): translations of sentences of Common Voice 4, beside its clips.

    covost_v2.SRC_TGT.{train,dev,test}.tsv: path, sentence, translation, client_id
    covost_v2.SRC_TGT.tsv: path, translation, split, as it is downloaded

The first are what `get_covost_splits.py` of https://github.com/facebookresearch/covost makes of the second and of
validated.tsv; either is read here. A row of the split `train_covost` is trained on, as that program does; such rows are
of no other split. No quoting, backslash before quotation marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ..lookup import Lookup
from .common_voice import clip_seconds, clips
from .conversion import Asked, Row
from .tables import require_columns, tsv_rows, unquoted

_NAME = re.compile(r"covost_v2\.(?P<src>[A-Za-z-]+)_(?P<tgt>[A-Za-z-]+)(?:\.(?P<split>train|dev|test))?\.tsv$")
_SPLITS = {"train_covost": "train"}

TAKES = ("beside",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of the tables in a folder, or of one of them."""
    voice = asked.needs_beside("covost2", "the folder of the language of Common Voice 4, with clips/ and validated.tsv")
    named = [(path, found) for path in _tables(source) if (found := _NAME.search(path.name))]
    if not named:
        raise UserError(f"{source}: expected covost_v2.SRC_TGT.tsv, or covost_v2.SRC_TGT.train.tsv and so on")
    if any(found["split"] for _, found in named):
        named = [(path, found) for path, found in named if found["split"]]
    lengths = clip_seconds(voice, asked)
    for path, found in named:
        languages = {"src_lang": found["src"], "tgt_lang": found["tgt"]}
        made = _of_split(path, voice, asked, lengths) if found["split"] else _joined(path, voice, asked, lengths)
        for row in made:
            split = row.pop("split", None) or found["split"]
            if asked.wants(split):
                yield {**row, **languages, "split": split}


def _tables(source: Path) -> list[Path]:
    return sorted(source.glob("covost_v2.*.tsv")) if source.is_dir() else [source]


def _of_split(path: Path, voice: Path, asked: Asked, lengths: Lookup) -> Iterator[Row]:
    checked = False
    for row in tsv_rows(path, asked.left_out):
        if not checked:
            require_columns(path, row, ("path", "sentence", "translation", "client_id"))
            checked = True
        yield {
            "id": row["path"].removesuffix(".mp3"),
            "audio": str(voice / "clips" / row["path"]),
            "duration": lengths.get(row["path"]),
            "src_text": unquoted(row["sentence"]),
            "tgt_text": unquoted(row["translation"]),
            "speaker": row["client_id"],
        }


def _joined(path: Path, voice: Path, asked: Asked, lengths: Lookup) -> Iterator[Row]:
    """Translations joined with the sentences of validated.tsv."""
    translations, checked, waiting = Lookup(), False, 0
    for row in tsv_rows(path, asked.left_out):
        if not checked:
            require_columns(path, row, ("path", "translation", "split"))
            checked = True
        split = _SPLITS.get(row["split"], row["split"])
        if split not in ("train", "dev", "test"):
            asked.left_out(f"of the split {split}, of the first version", row["path"])
            continue
        waiting += asked.wants(split)
        translations.add(row["path"].removesuffix(".mp3"), [unquoted(row["translation"]), split])
    for row in clips(voice, "validated", asked, lengths):
        found = translations.get(row["id"])
        if found is not None:
            waiting -= asked.wants(found[1])
            yield {**row, "tgt_text": found[0], "split": found[1]}
    if waiting > 0:
        asked.said.append(f"{waiting} translations are of clips that {voice}/validated.tsv does not have")
