"""CVSS (Jia et al. 2022): English speech for the clips of CoVoST 2, as Google packs a pair, `cvss_c_SRC_en_v1.0`.

    {train,dev,test}.tsv: name of the clip, normalised translation; no header
    {train,dev,test}/common_voice_SRC_N.mp3.wav

The source speech and its sentences are those of Common Voice 4. Layout:
https://github.com/google-research-datasets/cvss.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...components.errors import UserError
from ..lookup import Lookup
from .common_voice import clip_seconds, clips, language_of
from .conversion import Asked, Row
from .tables import tsv_rows, unquoted

TAKES = ("beside",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows with speech on both sides."""
    voice = asked.needs_beside("cvss", "the folder of the language of Common Voice 4, with clips/ and validated.tsv")
    splits = [name for name in ("train", "dev", "test") if asked.wants(name) and (source / f"{name}.tsv").is_file()]
    if not splits:
        raise UserError(f"{source}: expected train.tsv, dev.tsv or test.tsv of CVSS")
    lengths = clip_seconds(voice, asked)
    sentences = Lookup((row["id"], row) for row in clips(voice, "validated", asked, lengths))
    for split in splits:
        for row in tsv_rows(source / f"{split}.tsv", asked.left_out, header=("path", "translation")):
            name = row["path"]
            known = sentences.get(name.removesuffix(".mp3"))
            if known is None:
                asked.left_out("a clip that validated.tsv of Common Voice does not have", name)
                continue
            yield {
                **known,
                "src_lang": known["src_lang"] or language_of(voice),
                "tgt_audio": str(source / split / f"{name}.wav"),
                "tgt_text": unquoted(row["translation"]),
                "tgt_lang": "eng",
                "split": split,
            }
