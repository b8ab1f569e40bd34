"""A row that names a part of a recording hears that part and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components import Fbank
from voxzoo.components.errors import UserError
from voxzoo.datamodules import SpeechTranslationData, read_manifest, write_manifest
from voxzoo.datamodules.audio import AudioError, audio_blocks, audio_seconds, load_audio
from voxzoo.datamodules.feature_cache import FeatureCache
from voxzoo.datamodules.segments import Segment, segment_name, segment_of

RATE = 22050
CUTS = [(0.0, 0.5, None), (0.731, 1.2345, 1), (1.25, None, 0), (2.0, 0.75, None), (0.0, None, 1)]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s of two channels of noise, and each cut of it as a file of its own."""
    folder = tmp_path_factory.mktemp("talk")
    samples = 0.2 * np.random.default_rng(0).standard_normal((3 * RATE, 2)).astype(np.float32)
    soundfile.write(folder / "talk.wav", samples, RATE, subtype="FLOAT")
    for number, (offset, duration, channel) in enumerate(CUTS):
        last = None if duration is None else round((offset + duration) * RATE)
        part = samples[round(offset * RATE) : last]
        soundfile.write(folder / f"{number}.wav", part if channel is None else part[:, channel], RATE, subtype="FLOAT")
    return folder


@pytest.mark.parametrize("number", range(len(CUTS)))
def test_a_part_equals_a_file_cut_by_hand(talk: Path, number: int):
    name = segment_name(str(talk / "talk.wav"), *CUTS[number])
    alone = str(talk / f"{number}.wav")
    assert torch.equal(load_audio(name, RATE), load_audio(alone, RATE))
    assert torch.equal(load_audio(name), load_audio(alone))
    blocks = [torch.cat(list(audio_blocks(path, seconds=0.3))) for path in (name, alone)]
    assert torch.equal(*blocks)
    assert audio_seconds(name) == audio_seconds(alone)


def test_rows_of_one_recording_become_batches_and_cache_entries_of_their_own(talk: Path, tmp_path: Path):
    rows = []
    for number, (offset, duration, channel) in enumerate(CUTS):
        row = {"id": f"r{number}", "audio": str(talk / "talk.wav"), "src_lang": "spa", "src_text": "x"}
        row |= {"offset": offset}
        row |= {"duration": duration} if duration is not None else {}
        rows.append(row | ({"channel": channel} if channel is not None else {}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_manifest(tmp_path / "rows.jsonl")
    write_manifest(tmp_path / "again.jsonl", read)
    assert [row.audio for row in read_manifest(tmp_path / "again.jsonl")] == [row.audio for row in read]
    data = SpeechTranslationData(
        train=str(tmp_path / "again.jsonl"), frontend=Fbank(), batch_size=5, cache_dir=str(tmp_path / "cache")
    )
    data.needs = frozenset({"speech"})
    for _ in range(2):  # computed, and out of the cache
        batch = next(iter(data.loader("train", tasks=["asr"])))
        for place, name in enumerate(batch.ids):
            want = Fbank()(load_audio(talk / f"{name[1:]}.wav"))
            assert torch.equal(batch.speech.unpad()[place], want), name
    cache = FeatureCache(tmp_path / "keys", "x")
    assert len({cache.key(str(row.audio), 1.0) for row in read}) == len(read)


@pytest.mark.parametrize(
    ("offset", "duration", "channel", "said"),
    [(3.5, 1, None, "beyond its end"), (2.5, 1, None, "beyond its end"), (0, 1, 2, "channel 2 of a file with 2")],
)
def test_what_the_file_has_not_is_refused(talk: Path, offset, duration, channel, said):
    name = segment_name(str(talk / "talk.wav"), offset, duration, channel)
    for read in (load_audio, audio_seconds, lambda path: list(audio_blocks(path))):
        with pytest.raises(AudioError, match=said):
            read(name)


def test_a_file_of_that_very_name_comes_first(tmp_path: Path):
    odd = tmp_path / "a#t=1,2"
    odd.write_bytes(b"")
    assert segment_of(odd) == Segment(str(odd))
    assert segment_of("a.wav#t=1,2.5&channel=1") == Segment("a.wav", 1.0, 2.5, 1)
    assert segment_of("a.wav#channel=0") == Segment("a.wav", channel=0)
    for plain in ("a.wav", "a#b.wav", "a.wav#", "a.wav#t=x", "a.wav#t=-1"):
        assert segment_of(plain) == Segment(plain)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"offset": -1}, "offset: -1: expected seconds from 0"),
        ({"offset": "soon"}, "offset: 'soon': expected seconds"),
        ({"channel": 0.5}, "channel: 0.5: expected a whole number"),
        ({"channel": True}, "channel: True: expected"),
        ({"start": 1.5}, "start: not read here: say offset"),
        ({"end": 2.5}, r"end: not read here: say duration \(seconds\)"),
        ({"audio": None, "audio_filepath": "a.wav"}, "audio_filepath: not read here: say audio"),
        ({"src_text": None, "sentence": "x"}, "sentence: not read here: say src_text"),
    ],
)
def test_keys_that_change_what_a_row_means_are_never_passed_over(tmp_path: Path, row: dict, said: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "a", "audio": "a.wav", "src_lang": "spa", "src_text": "x", **row}) + "\n")
    with pytest.raises(UserError, match=said):
        read_manifest(path)


def test_beside_the_right_key_another_name_is_no_fault(tmp_path: Path):
    row = {
        "id": "a",
        "audio": "a.wav",
        "src_lang": "spa",
        "src_text": "x",
        "path": "/somewhere",
        "offset": 0,
        "start": 3,
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert dict(read_manifest(path).extra) == {"path": 1, "start": 1}
