"""A dataset of Hugging Face `datasets`, saved to disk, or as parquet files, as the hub has it.

    dataset_dict.json and a folder for each split, or one split alone: state.json, dataset_info.json, data-N-of-M.arrow
    data/SPLIT-N-of-M.parquet

Arrow files are streams of record batches, read one at a time by pyarrow (`pip install voxzoo[arrow]`); `datasets` is
not needed. A column of audio is a struct of `bytes` and `path`: where the bytes are inside, they are written into tar
files beside the manifest (`NAME-audio/00000.tar`), as they are; else the path is taken. Other columns become keys by
their usual names or by --column; a column of translations, `{"en": ..., "fr": ...}`, gives both texts, by --src-lang
and --tgt-lang. Layout: `Dataset.save_to_disk` and the features of https://huggingface.co/docs/datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ...components.languages import match
from ...components.lines import read_json
from ..archives import ShardWriter, audio_suffix
from ..segments import member_name
from .conversion import Asked, Row
from .tables import named_values

_BATCH = 256  # rows of a parquet file that are held
_SPLIT = re.compile(r"(?P<split>[\w.]+?)-\d+-of-\d+")

TAKES = ("columns",)


def rows(source: Path, asked: Asked) -> Iterator[Row]:
    """Rows of all splits, or of one."""
    files = _files(source)
    if not files:
        raise UserError(f"{source}: expected dataset_dict.json, state.json with .arrow files, or .parquet files")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(f"{source}: to read arrow and parquet files: pip install 'voxzoo[arrow]'") from None
    wanted = [(split, path) for split, path in files if not split or asked.wants(split)]
    if not wanted:
        there = ", ".join(dict.fromkeys(split for split, _ in files))
        raise UserError(f"{source}: no split {asked.split!r}; there are {there}")
    folder = asked.out.parent / f"{asked.out.stem}-audio"
    with ShardWriter(folder) as shards:
        number = 0
        for split, path in wanted:
            for row in _table(path):
                made = _row(row, f"{split or 'row'}-{number}", shards, asked)
                number += 1
                yield {"split": split, **made}
        if shards.count:
            asked.said.append(f"its audio, {shards.written / 1e6:.1f} MB, is in {shards.count} tar files in {folder}")


def _files(source: Path) -> list[tuple[str, Path]]:
    """(split, file) of each file, in order."""
    if source.is_file():
        return [("", source)] if source.suffix in (".arrow", ".parquet") else []
    if (source / "dataset_dict.json").is_file():
        splits = read_json(source / "dataset_dict.json").get("splits", [])
        return [(str(split), path) for split in splits for path in _saved(source / str(split))]
    if (source / "state.json").is_file():
        info = source / "dataset_info.json"
        named = read_json(source / "state.json").get("_split") or (
            read_json(info).get("splits") if info.is_file() else None
        )
        split = named if isinstance(named, str) else ""
        return [(split, path) for path in _saved(source)]
    found = []
    for path in sorted(source.rglob("*.parquet")):
        name = _SPLIT.match(path.name)
        found.append((name["split"] if name else path.stem, path))
    return found


def _saved(folder: Path) -> list[Path]:
    files = read_json(folder / "state.json").get("_data_files", [])
    return [folder / Path(str(one["filename"])).name for one in files]


def _table(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    yield from _rows_of(batch)
        else:
            with pa.memory_map(str(path)) as content, pa.ipc.open_stream(content) as stream:
                for batch in stream:
                    yield from _rows_of(batch)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, though state.json names it") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def _rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, 64):  # a batch may hold gigabytes of audio
        yield from batch.slice(start, 64).to_pylist()


def _row(row: dict[str, Any], name: str, shards: ShardWriter, asked: Asked) -> Row:
    sounds = {key: value for key, value in row.items() if isinstance(value, dict) and {"bytes", "path"} >= value.keys()}
    plain = {key: value for key, value in row.items() if key not in sounds}
    columns = {key: column for key, column in asked.columns.items() if column not in sounds}
    made = named_values(plain, columns)
    made.pop("audio", None)
    made.pop("tgt_audio", None)
    pair = plain.get(asked.columns.get("tgt_text", "translation"))
    if isinstance(pair, dict):
        made.pop("tgt_text", None)
        for key, lang, code in (("src_text", "src_lang", asked.src_lang), ("tgt_text", "tgt_lang", asked.tgt_lang)):
            found = match(code, pair) if code else None
            if found is None:
                raise UserError(f"{name}: its texts are in {', '.join(pair)}: say --{lang.replace('_', '-')} CODE")
            made[key], made[lang] = pair[found], found
    made["id"] = str(made.get("id", name))
    for key in ("audio", "tgt_audio"):
        column = asked.columns.get(key) or ("audio" if key == "audio" else "tgt_audio")
        sound = sounds.get(column)
        if sound is None and key == "audio" and not asked.columns.get(key) and len(sounds) == 1:
            sound = next(iter(sounds.values()))
        if sound is None:
            continue
        content = sound.get("bytes")
        if content:
            suffix = audio_suffix(content[:8])
            side = "" if key == "audio" else ".tgt"
            shard, place, size = shards.add(f"{shards.count:05d}-{name}{side}{suffix}", content)
            made[key] = member_name(str(shards.folder / shard), place, size)
        elif sound.get("path"):
            made[key] = sound["path"]
    return {key: value for key, value in made.items() if not isinstance(value, dict)}
