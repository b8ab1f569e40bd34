"""Audio in tar files is the audio that was put in: bytes, samples, batches, plans and resumes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_corpora import clip, lines, tone
from voxzoo.components import Fbank
from voxzoo.components.errors import UserError
from voxzoo.datamodules import SpeechTranslationData, load_audio, read_manifest
from voxzoo.datamodules.archives import members
from voxzoo.datamodules.audio import AudioError, audio_blocks, audio_seconds
from voxzoo.datamodules.contract import examine_data
from voxzoo.datamodules.packing import pack, unpack
from voxzoo.datamodules.segments import Segment, segment_name, segment_of

SUFFIXES = ("wav", "flac", "ogg", "mp3")


def corpus(folder: Path, count: int = 12) -> Path:
    """Clips of four kinds, parts of a long recording of two channels, a row of text alone, target speech."""
    rows = []
    for n in range(count):
        path = clip(folder / "clips" / f"{n}.{SUFFIXES[n % 4]}", 0.4 + n / 20, 200 + 30 * n)
        row = {
            "id": f"c{n}",
            "audio": f"clips/{path.name}",
            "src_lang": "spa",
            "src_text": f"uno {n}",
            "tgt_lang": "eng",
        }
        rows.append({**row, "tgt_text": f"one {n}", "duration": round(soundfile.info(path).duration, 4), "gender": "f"})
    talk = np.stack([tone(3.0, 300), tone(3.0, 400)], 1).astype(np.float32)
    soundfile.write(folder / "talk.wav", talk, 16000)
    part = {"audio": "talk.wav", "src_lang": "spa", "src_text": "parte", "tgt_lang": "eng", "tgt_text": "part"}
    rows += [
        {**part, "id": "p0", "offset": 0.5, "duration": 1.0},
        {**part, "id": "p1", "offset": 1.25, "duration": 0.75, "channel": 1},
        {**part, "id": "p2", "channel": 0, "tgt_audio": "clips/0.wav"},
        {**part, "id": "p3", "audio": "talk.wav#t=0,1.5", "duration": 1.5},
        {"id": "t0", "src_lang": "spa", "src_text": "texto", "tgt_lang": "eng", "tgt_text": "text"},
    ]
    return lines(folder / "all.jsonl", *rows)


@pytest.mark.parametrize("most", [1 << 30, 20_000])
def test_there_and_back(tmp_path: Path, most: int):
    path = corpus(tmp_path)
    packed = pack(path, tmp_path / "packed", most)
    assert (packed.rows, packed.recordings) == (17, 13)
    assert packed.files == len(list((tmp_path / "packed").glob("*.tar")))
    assert (packed.files > 3) == (most < 1 << 30)
    assert packed.num_bytes == sum(
        one.stat().st_size for one in [*(tmp_path / "clips").iterdir(), tmp_path / "talk.wav"]
    )
    assert {each.name for each in (tmp_path / "packed").iterdir() if each.suffix != ".tar"} == {"manifest.jsonl"}
    for archive in (tmp_path / "packed").glob("*.tar"):
        with tarfile.open(archive) as opened:
            assert [one.name for one in opened] == [one.name for one in members(archive)]
    back = unpack(packed.manifest, tmp_path / "back")
    assert back.files == 13
    for other in (packed.manifest, back.manifest):
        same_rows(path, other)
    first = json.loads(packed.manifest.read_text().splitlines()[0])
    assert first["gender"] == "f"
    assert first["audio"].startswith("00000.tar#bytes=512,")
    assert json.loads(back.manifest.read_text().splitlines()[3])["audio"] == "audio/00/00000003.mp3"


def same_rows(path: Path, other: Path) -> None:
    """All that rows say, and all samples, are equal."""
    rows, others = read_manifest(path), read_manifest(other)
    assert len(rows) == len(others)
    for one, two in zip(rows, others):
        assert (one.id, one.duration, one.src_text, one.tgt_text) == (two.id, two.duration, two.src_text, two.tgt_text)
        for mine, yours in ((one.audio, two.audio), (one.tgt_audio, two.tgt_audio)):
            assert (mine is None) == (yours is None)
            if mine is not None and yours is not None:
                assert torch.equal(load_audio(mine), load_audio(yours))
                assert torch.equal(load_audio(mine, 8000), load_audio(yours, 8000))
                assert torch.equal(*(torch.cat([*audio_blocks(name, seconds=0.3)]) for name in (mine, yours)))
                assert audio_seconds(mine) == audio_seconds(yours)


def data(path: Path, cache: Path | None = None) -> SpeechTranslationData:
    return SpeechTranslationData(
        train=str(path),
        frontend=Fbank(),
        batch_size=3,
        batch_seconds=8.0,
        min_seconds=0.05,
        cache_dir=cache and str(cache),
    )


@pytest.mark.parametrize("cached", [False, True])
def test_training_from_shards_is_training_from_files(tmp_path: Path, cached: bool):
    path = corpus(tmp_path)
    packed = pack(path, tmp_path / "packed", 20_000)
    found = []
    for manifest in (path, packed.manifest):
        module = data(manifest, tmp_path / "cache" / manifest.stem if cached else None)
        module.needs = frozenset({"speech"})
        batches = []
        for epoch in (0, 1):
            batches += list(module.epoch_loader(epoch))
        found.append(batches)
    assert [batch.ids for batch in found[0]] == [batch.ids for batch in found[1]]
    for one, two in zip(*found):
        assert torch.equal(one.speech.data, two.speech.data)
        assert torch.equal(one.speech.lengths, two.speech.lengths)


def test_shards_keep_the_contract_of_data(tmp_path: Path):
    """Ranks, workers, restarts and moves to other numbers of ranks."""
    packed = pack(corpus(tmp_path), tmp_path / "packed", 20_000)
    outcomes = examine_data(lambda: data(packed.manifest), {"speech"})
    assert {outcome.name: outcome.fault for outcome in outcomes if outcome.fault} == {}
    assert {"ranks", "once", "resume", "plan", "workers", "audio"} <= {outcome.name for outcome in outcomes}


def test_packed_again(tmp_path: Path):
    path = corpus(tmp_path)
    pack(path, tmp_path / "a", 20_000)
    again = pack(tmp_path / "a" / "manifest.jsonl", tmp_path / "b")
    assert again.files == 1
    same_rows(path, again.manifest)


def test_recordings_that_are_not_there(tmp_path: Path):
    path = corpus(tmp_path)
    (tmp_path / "talk.wav").unlink()
    packed = pack(path, tmp_path / "packed")
    assert (packed.rows, packed.recordings) == (13, 12)
    assert packed.left_out == {"a recording that cannot be read": 4}
    assert packed.first["a recording that cannot be read"] == ["p0", "p1", "p2", "p3"]
    for each in (tmp_path / "clips").iterdir():
        each.unlink()
    (tmp_path / "none").mkdir()
    rows = [json.loads(line) for line in path.read_text().splitlines() if '"audio"' in line]
    with pytest.raises(UserError, match=r"none of its 16 rows has a recording that can be read"):
        pack(lines(tmp_path / "some.jsonl", *rows), tmp_path / "more")
    assert not (tmp_path / "more").exists()
    with pytest.raises(UserError, match=r"--out .*packed: is there already"):
        pack(path, tmp_path / "packed")


def test_a_member_that_is_no_audio(tmp_path: Path):
    packed = pack(corpus(tmp_path, 4), tmp_path / "packed")
    name = read_manifest(packed.manifest)[0].audio or ""
    (tmp_path / "packed" / "00000.tar").write_bytes(b"x" * 1_000_000)
    with pytest.raises(AudioError, match=r"00000\.tar#bytes=512,\d+: cannot be read as audio"):
        load_audio(name)
    with pytest.raises(AudioError, match=r"00000\.tar#bytes=5,0: the audio is empty"):
        load_audio(f"{tmp_path}/packed/00000.tar#bytes=5,0")
    with pytest.raises(AudioError, match=r"no such audio file"):
        load_audio(f"{tmp_path}/packed/00009.tar#bytes=5,7")


def test_a_member_that_is_cut_off(tmp_path: Path):
    """A part of its bytes is as a file that was cut there."""
    path = clip(tmp_path / "a.wav", 1.0)
    size = path.stat().st_size // 2
    (tmp_path / "half.wav").write_bytes(path.read_bytes()[:size])
    for name in (str(tmp_path / "half.wav"), f"{path}#bytes=0,{size}"):
        with pytest.raises(AudioError, match=r"the file is cut off: 0\.5 s of the 1\.0 s that its header promises"):
            load_audio(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.tar#bytes=1536,44", Segment("a.tar", place=(1536, 44))),
        ("a.tar#bytes=1536,44&t=0.5,2", Segment("a.tar", 0.5, 2.0, place=(1536, 44))),
        ("a.tar#bytes=1536,44&channel=1", Segment("a.tar", channel=1, place=(1536, 44))),
        ("a.tar#bytes=1536", Segment("a.tar#bytes=1536")),
        ("a.tar#bytes=-1,4", Segment("a.tar#bytes=-1,4")),
    ],
)
def test_names_of_members(name: str, meant: Segment):
    assert segment_of(name) == meant


def test_a_part_of_a_member_is_named_behind_it():
    assert segment_name("a.tar#bytes=0,9", 1.5, 2.0, None) == "a.tar#bytes=0,9&t=1.5,3.5"
    assert segment_name("a#b.wav", 1.5, None, 1) == "a#b.wav#t=1.5&channel=1"
