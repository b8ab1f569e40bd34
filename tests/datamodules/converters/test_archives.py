"""Corpora in tar and arrow files: WebDataset, Lhotse Shar, datasets saved to disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from small_corpora import clip, converted, encoded, tar
from voxzoo.components.errors import UserError
from voxzoo.datamodules import load_audio, read_manifest


def sample(name: str, pitch: float = 300.0, suffix: str = "flac", **about: object) -> dict[str, bytes]:
    return {f"{name}.{suffix}": encoded(suffix, pitch=pitch), f"{name}.json": json.dumps(about).encode()}


@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3", "ogg"])
def test_webdataset(tmp_path: Path, suffix: str):
    about = {"text": "hola", "translation": "hello", "lang": "es", "tgt_lang": "en", "speaker": "ana"}
    long = "a folder that has a very long name indeed " * 3 + "/a2"  # a header of its own in the tar file
    tar(
        tmp_path / "wds" / "train" / "000000.tar",
        {**sample("a1", 300, suffix, **about), **sample(long, 500, suffix, **about), "a3.txt": b"nada", "a4.cls": b"1"},
    )
    rows, result = converted("webdataset", tmp_path / "wds", tmp_path / "m.jsonl", src_lang="spa")
    assert [row["id"] for row in rows] == ["a1", long, "a3"]
    assert (rows[0]["split"], rows[0]["tgt_text"], rows[0]["speaker"]) == ("train", "hello", "ana")
    assert rows[0]["audio"].startswith("wds/train/000000.tar#bytes=")
    assert rows[2]["src_text"] == "nada"
    assert result.left_out == {"a sample without audio and text": 1}
    for row, pitch in zip(read_manifest(tmp_path / "m.jsonl"), (300, 500)):
        path = tmp_path / f"alone.{suffix}"
        path.write_bytes(encoded(suffix, pitch=pitch))
        assert torch.equal(load_audio(row.audio or ""), load_audio(path))


def test_target_speech_in_webdataset(tmp_path: Path):
    both = {"a.wav": encoded("wav"), "a.tgt.wav": encoded("wav", 0.7), "a.json": b'{"lang": "es", "tgt_lang": "en"}'}
    rows, _ = converted("webdataset", tar(tmp_path / "0.tar", both), tmp_path / "m.jsonl")
    assert rows[0]["tgt_lang"] == "eng"
    assert len(load_audio(str(tmp_path / rows[0]["tgt_audio"]))) == 0.7 * 16000


def test_tar_files_that_cannot_be_read_in_place(tmp_path: Path):
    packed = tar(tmp_path / "0.tar", sample("a"), "w:gz")
    with pytest.raises(UserError, match=r"0\.tar: compressed by gzip, so that nothing in it can be read in place"):
        converted("webdataset", packed, tmp_path / "m.jsonl", src_lang="spa")
    whole = tar(tmp_path / "1.tar", sample("a", suffix="wav")).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:9000])
    with pytest.raises(UserError, match=r"1\.tar: (the tar file is cut off|no tar file, or a damaged one)"):
        converted("webdataset", tmp_path / "1.tar", tmp_path / "m.jsonl", src_lang="spa")


def test_a_tar_file_that_was_cut_off_since(tmp_path: Path):
    path = tar(tmp_path / "0.tar", {**sample("a"), **sample("b")})
    converted("webdataset", path, tmp_path / "m.jsonl", src_lang="spa")
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(UserError, match=r"0\.tar#bytes=\d+,\d+: lies beyond the 4,096 bytes of the file"):
        load_audio(read_manifest(tmp_path / "m.jsonl")[1].audio or "")


def shar(folder: Path, *, names: tuple[str, ...] = ("c1", "c2", "c3")) -> Path:
    spoken = {
        "id": "s",
        "recording_id": "r",
        "start": 0,
        "duration": 0.5,
        "channel": 0,
        "text": "hola",
        "language": "es",
    }
    folder.mkdir(parents=True)
    with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as out:
        for name in ("c1", "c2", "c3"):
            placed = {"id": "r", "sources": [{"type": "shar", "channels": [0], "source": ""}], "duration": 0.5}
            about = {"id": name, "start": 0, "duration": 0.5, "channel": 0, "supervisions": [spoken], "type": "MonoCut"}
            out.write(json.dumps({**about, "recording": placed}) + "\n")
    stored = {}
    for place, name in enumerate(names):
        ends = ("nodata", "nometa") if place == 1 else ("flac", "json")
        stored |= {f"{name}.{ends[0]}": b"" if place == 1 else encoded(pitch=300 + place), f"{name}.{ends[1]}": b"{}"}
    tar(folder / "recording.000000.tar", stored)
    return folder


def test_shar(tmp_path: Path):
    rows, result = converted("shar", shar(tmp_path / "shar" / "train"), tmp_path / "m.jsonl")
    assert [(row["id"], row["src_text"], row["duration"]) for row in rows] == [("c1", "hola", 0.5), ("c3", "hola", 0.5)]
    assert result.left_out == {"a cut without a recording": 1}
    rows, result = converted("shar", tmp_path / "shar", tmp_path / "n.jsonl")
    assert result.splits == {"train": 2}


def test_shards_that_do_not_fit(tmp_path: Path):
    with pytest.raises(UserError, match=r"c9\.flac stands where the cut 'c3' is expected"):
        converted("shar", shar(tmp_path / "a", names=("c1", "c2", "c9")), tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"fewer recordings than cuts in recording\.000000\.tar"):
        converted("shar", shar(tmp_path / "b", names=("c1", "c2")), tmp_path / "m.jsonl")


def saved(folder: Path, inside: bool) -> Path:
    """As `DatasetDict.save_to_disk` writes it."""
    pa = pytest.importorskip("pyarrow", reason="the extra arrow is not installed")
    for split in ("train", "test"):
        sounds = []
        for number in range(3):
            path = clip(folder / "wav" / f"{split}{number}.wav", 0.5 + number / 10)
            sounds.append({"bytes": path.read_bytes() if inside else None, "path": path.name if inside else str(path)})
        columns = {
            "audio": sounds,
            "translation": [{"es": f"hola {number}", "en": f"hello {number}"} for number in range(3)],
            "client_id": ["ana", "eva", "ana"],
        }
        batch = pa.Table.from_pydict(columns)
        (folder / "d" / split).mkdir(parents=True)
        path = folder / "d" / split / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, batch.schema) as stream:
            stream.write_table(batch, max_chunksize=2)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / "d" / split / "state.json").write_text(json.dumps(state))
    (folder / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder / "d"


@pytest.mark.parametrize("inside", [True, False])
def test_a_saved_dataset(tmp_path: Path, inside: bool):
    folder = saved(tmp_path, inside)
    rows, result = converted("saved_dataset", folder, tmp_path / "m.jsonl", src_lang="spa", tgt_lang="eng")
    assert [(row["id"], row["src_text"], row["tgt_text"], row["speaker"]) for row in rows[:2]] == [
        ("train-0", "hola 0", "hello 0", "ana"),
        ("train-1", "hola 1", "hello 1", "eva"),
    ]
    assert result.splits == {"train": 3, "test": 3}
    if inside:
        assert rows[0]["audio"].startswith("m-audio/00000.tar#bytes=")
        assert "in 1 tar files" in result.said[0]
    rows, _ = converted("saved_dataset", folder / "test", tmp_path / "n.jsonl", src_lang="spa", tgt_lang="eng")
    assert {row["split"] for row in rows} == {"test"}
    with pytest.raises(UserError, match=r"no split 'dev'; there are train, test"):
        converted("saved_dataset", folder, tmp_path / "o.jsonl", split="dev")


def test_parquet_files(tmp_path: Path):
    pa = pytest.importorskip("pyarrow", reason="the extra arrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"audio": [{"bytes": encoded(), "path": "a.flac"}], "text": ["hola"], "lang": ["es"]}
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pydict(columns), tmp_path / "data" / "train-00000-of-00001.parquet")
    rows, _ = converted("saved_dataset", tmp_path, tmp_path / "m.jsonl")
    assert (rows[0]["id"], rows[0]["src_text"], rows[0]["split"]) == ("train-0", "hola", "train")
