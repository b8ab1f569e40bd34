"""Any damage of an audio file is heard as what is left, or said with the file's name; other files are still served."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from .attempts import Attempt, share
from .damage import CUTS, EDITS, edited

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "ex.wav": ("WAVEX", "PCM_24"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
}
PROMISES = st.one_of(st.none(), st.none(), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 44101, 2**31, 2**32 - 1]))
"""A number of four bytes somewhere in a header."""


@pytest.fixture(scope="module")
def sounds(clip: Path) -> dict[str, bytes]:
    samples, rate = soundfile.read(clip)
    found = {}
    for name, (kind, coding) in FORMATS.items():
        path = clip.with_name(f"sound.{name}")
        soundfile.write(path, samples, rate, coding, format=kind)
        found[name] = path.read_bytes()
    return found


def wav(channels: int, rate: int, size: int, samples: bytes = b"\0\0" * 800) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, (2 * rate * channels) % 2**32, 2 * channels % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


DAMAGED = given(
    kind=st.sampled_from(sorted(FORMATS)), edits=EDITS, cut=CUTS, promise=PROMISES, place=st.integers(0, 60)
)


def damaged(sound: bytes, edits: list, cut: int | None, promise: int | None, place: int) -> bytes:
    content = edited(sound, edits, cut)
    return content if promise is None else content[:place] + struct.pack("<I", promise) + content[place + 4 :]


@DAMAGED
@example(kind="flac", edits=[(18, 3, b"\xff\xff\xff")], cut=None, promise=None, place=0)
@example(kind="mp3", edits=[], cut=700, promise=None, place=0)
def test_manifests_of_damaged_files(kind, edits, cut, promise, place, sounds, tmp_path: Path, attempt: Attempt):
    name = f"sound.{kind}"
    (tmp_path / name).write_bytes(damaged(sounds[kind], edits, cut, promise, place))
    row = {"id": "a", "src_lang": "spa", "tgt_lang": "eng", "tgt_text": "x", "audio": name}
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(row).encode())
    attempt("data", "validate", tmp_path / "rows.jsonl", names=("a",))


@share(0.5)
@DAMAGED
def test_translating_damaged_files(kind, edits, cut, promise, place, sounds, clip, fuzz_runs, tmp_path, attempt):
    name = f"sound.{kind}"
    (tmp_path / name).write_bytes(damaged(sounds[kind], edits, cut, promise, place))
    words = ["--task", "s2tt", "--to", "eng", "--batch-size", "2"]
    done = attempt("translate", fuzz_runs["speech"], tmp_path / name, clip, *words, names=(name,))
    served = [json.loads(line)["input"] for line in done.out.splitlines()]
    assert str(clip) in served, "the good file was not served"


@pytest.mark.parametrize("channels", [0, 1, 300, 65535])
@pytest.mark.parametrize("rate", [0, 1, 15, 44100, 2**32 - 1])
def test_odd_numbers_in_a_header(channels, rate, clip, fuzz_runs, tmp_path, attempt):
    (tmp_path / "odd.wav").write_bytes(wav(channels, rate, 1600))
    words = ["--task", "s2tt", "--to", "eng"]
    done = attempt("translate", fuzz_runs["speech"], tmp_path / "odd.wav", clip, *words, names=("odd.wav",))
    assert str(clip) in done.out


def test_an_odd_rate(clip, fuzz_runs, tmp_path, attempt):
    (tmp_path / "odd.wav").write_bytes(wav(1, 44101, 2**32 - 1, b"\1\0" * 8000))
    attempt("translate", fuzz_runs["speech"], tmp_path / "odd.wav", "--task", "s2tt", "--to", "eng", names=("odd.wav",))
