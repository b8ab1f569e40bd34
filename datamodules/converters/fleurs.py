"""FLEURS (Conneau et al. 2022): one language as it is released, `LANG` such as `es_419`, `cmn_hans_cn`.

    LANG/{train,dev,test}.tsv, without a header: id, file_name, raw_transcription, transcription, characters,
        num_samples (at 16 kHz), gender
    LANG/audio/{train,dev,test}/FILE.wav (on the hub packed, audio/SPLIT.tar.gz: unpack it)

The id is that of the sentence, the same in all languages and often read by several speakers; so rows are named by their
file. A row's target is the sentence of its id in the other language; its target speech is the first recording of it.
Layout: `fleurs.py` of https://huggingface.co/datasets/google/fleurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ...components.languages import is_language
from ..lookup import Lookup
from .conversion import Asked, Row
from .tables import tsv_rows

_SPLITS = ("train", "dev", "test")
_COLUMNS = ("id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender")
_RATE = 16000

TAKES = ("beside",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of a language, with the sentences and recordings of another beside them."""
    splits = [name for name in _SPLITS if asked.wants(name) and (source / f"{name}.tsv").is_file()]
    if not splits:
        raise UserError(f"{source}: expected the folder of a language of FLEURS, with train.tsv, dev.tsv or test.tsv")
    other = asked.beside
    if other is not None and not any((other / f"{name}.tsv").is_file() for name in splits):
        raise UserError(f"--with {other}: expected the folder of another language of FLEURS, with {splits[0]}.tsv")
    for split in splits:
        targets = Lookup(_sentences(other, split, asked)) if other is not None else Lookup()
        for row in tsv_rows(source / f"{split}.tsv", asked.left_out, header=_COLUMNS):
            made: Row = {
                "id": Path(row["file_name"]).stem,
                "audio": str(source / "audio" / split / row["file_name"]),
                "duration": int(row["num_samples"]) / _RATE if row["num_samples"].isdigit() else None,
                "src_lang": language_of(source),
                "src_text": row["raw_transcription"],
                "split": split,
            }
            if other is not None:
                found = targets.get(row["id"])
                if found is None:
                    asked.left_out(f"a sentence that {other.name} does not have", made["id"])
                    continue
                made.update(tgt_text=found[0], tgt_audio=found[1], tgt_lang=language_of(other))
            yield made


def _sentences(folder: Path, split: str, asked: Asked) -> Iterator[tuple[str, list[str]]]:
    if (folder / f"{split}.tsv").is_file():
        for row in tsv_rows(folder / f"{split}.tsv", asked.left_out, header=_COLUMNS):
            audio = folder / "audio" / split / row["file_name"]
            yield row["id"], [row["raw_transcription"], str(audio) if audio.is_file() else ""]


def language_of(folder: Path) -> str:
    """The language of a folder such as `es_419`, `ckb_iq`, `cmn_hans_cn`; "" where it has another name."""
    name = folder.resolve().name
    return name if is_language(name) else ""
