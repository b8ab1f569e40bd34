"""Data in folders of audio files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxzoo.components.errors import UserError
from voxzoo.datamodules import Utterance, UtteranceData

_SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "dev"), "test": ("test",)}
_METADATA = ("metadata.csv", "metadata.jsonl")
_AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class MineData(UtteranceData):
    """Clips in folders, as Hugging Face's audiofolder has them.

    ROOT/train, ROOT/valid (validation, dev) and ROOT/test are splits; without any of them all of ROOT is for training.
    A split holds `metadata.csv` or `metadata.jsonl` with a `file_name` for each clip, or, without, clips in a folder
    for each language (`spa/a.wav`), with what is said beside them (`spa/a.txt`).

    Args:
        root: the folder.
        src_lang, tgt_lang: ISO 639-3 codes, where the metadata have no `src_lang` or `tgt_lang`.
        text: column of what is said; "" leaves it out.
        translation: column of its translation; "" leaves it out.
        options: see `voxzoo.datamodules.UtteranceData`.

    Raises:
        UserError: the folder is not there; later, metadata that name no clip.
    """

    def __init__(
        self,
        *,
        root: str,
        src_lang: str = "spa",
        tgt_lang: str = "eng",
        text: str = "text",
        translation: str = "translation",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"data.root={root}: no such folder; expected one with train/metadata.csv and clips")
        self.src_lang, self.tgt_lang = src_lang, tgt_lang
        self.columns = {"src_text": text, "tgt_text": translation}
        there = {split: [self.root / name for name in names] for split, names in _SPLITS.items()}
        self.folders = {split: path for split, paths in there.items() for path in paths if path.is_dir()}
        if not self.folders:
            self.folders = {"train": self.root}

    def splits(self) -> tuple[str, ...]:
        """Those that there are folders for."""
        return tuple(self.folders)

    def source(self) -> str:
        """The folder, for messages."""
        return str(self.root)

    def read(self, split: str) -> Iterator[Utterance]:
        """The clips of a split, by their names; durations are read from the headers of their files."""
        folder = self.folders[split]
        metadata = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
        return self._listed(metadata) if metadata is not None else self._found(folder)

    def _listed(self, metadata: Path) -> Iterator[Utterance]:
        with metadata.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines) if metadata.suffix == ".csv" else map(json.loads, lines)
            for number, row in enumerate(rows, 1):
                name = row.get("file_name")
                if not name:
                    raise UserError(f"{metadata}: row {number} has no file_name; it has {', '.join(map(str, row))}")
                texts = {key: row.get(column) or "" for key, column in self.columns.items()}
                yield Utterance(
                    id=(metadata.parent / name).relative_to(self.root).as_posix(),
                    audio=str(metadata.parent / name),
                    src_lang=row.get("src_lang") or self.src_lang,
                    tgt_lang=row.get("tgt_lang") or self.tgt_lang,
                    speaker=row.get("speaker") or None,
                    **texts,
                )

    def _found(self, folder: Path) -> Iterator[Utterance]:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in _AUDIO):
            beside = path.with_suffix(".txt")
            yield Utterance(
                id=path.relative_to(self.root).as_posix(),
                audio=str(path),
                src_lang=self.src_lang if path.parent == folder else path.parent.name,
                src_text=beside.read_text(encoding="utf-8") if beside.is_file() else "",
            )
