"""Reading audio."""

from __future__ import annotations

import math
import os
import time

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.datamodules.audio import AudioError, audio_blocks, audio_seconds, change_speed, level, load_audio


def tone(seconds, rate, frequency=440.0, gain=0.5):
    return gain * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def pitch(waveform, rate=16000):
    """Frequency of the strongest bin."""
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(len(waveform))))
    return spectrum.argmax() * rate / len(waveform)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("wav", {}), ("flac", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}), ("mp3", {})],
)
def test_every_format_gives_the_same_sound(tmp_path, suffix, options):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1, 48000), 48000, **options)
    waveform = load_audio(path)
    assert waveform.dtype == torch.float32
    assert abs(len(waveform) - 16000) < 1600  # mp3 pads
    assert pitch(waveform) == pytest.approx(440, abs=2)
    assert float(waveform.abs().max()) == pytest.approx(0.5, abs=0.06)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(1, 16000), np.zeros(16000)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "a.wav"), torch.from_numpy(stereo[:, 0] / 2).float())


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100])
def test_rates_keep_pitch_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1, rate), rate)
    waveform = load_audio(tmp_path / "a.wav")
    assert len(waveform) == 16000
    assert pitch(waveform) == pytest.approx(440, abs=1)
    assert audio_seconds(tmp_path / "a.wav") == 1


def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", tone(0.024, 16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    (tmp_path / "bytes.flac").write_bytes(b"no audio at all")
    (tmp_path / "nothing.flac").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "edge.wav", tone(0.025, 16000), 16000)
    for name, said in (
        ("empty.wav", "empty"),
        ("short.wav", "24.0 ms"),
        ("nan.wav", "not finite"),
        ("bytes.flac", "cannot be read"),
        ("nothing.flac", "empty"),
        ("folder.wav", "folder"),
        ("absent.wav", "no such"),
    ):
        with pytest.raises(AudioError, match=said) as error:
            load_audio(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert len(load_audio(tmp_path / "edge.wav")) == 400


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(3, 16000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:-64])
    assert len(load_audio(path)) == 3 * 16000 - 32
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"a\.\w+: the file is cut off: 1.5 s of the 3.0 s .* there; copy or"):
        load_audio(path)


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "opus", "w64", "au", "caf"])
@pytest.mark.parametrize("share", [1 / 3, 0.9])
def test_a_file_of_any_format_that_is_cut_off_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * 4)
    soundfile.write(path, noise, 16000, **options)
    content = path.read_bytes()
    assert len(load_audio(path)) == 4 * 16000
    path.write_bytes(content[: int(share * len(content))])
    for read in (load_audio, lambda path: list(audio_blocks(path))):
        with pytest.raises(AudioError, match=r"cut off|malformed") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_an_mp3_that_promises_nothing_is_what_is_there(tmp_path):
    """Streams without a header of their length are whole wherever they end."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000 * 4), 16000)
    content = path.read_bytes()
    begin = content.index(content[:2], 4)
    path.write_bytes(content[begin : begin + len(content) // 3])
    assert 0.5 < len(load_audio(path)) / 16000 < 2


def test_what_is_behind_an_ogg_file_does_not_make_it_a_cut_one(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, tone(1, 16000), 16000)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert len(load_audio(path)) == 16000


@pytest.mark.parametrize(
    ("name", "said"),
    [("a\0b.wav", "NUL"), ("x" * 300, "too long"), ("loop.wav", "symbolic links"), ("fifo", "regular")],
)
def test_a_name_that_leads_to_no_file_is_one_line(tmp_path, name, said):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "fifo")
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=said):
            read(str(tmp_path / name))


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0xFFFFFFDB, 0x7FFFFFFF])
def test_a_length_that_was_written_into_a_pipe_is_none(tmp_path, length):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(3, 16000), 16000)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(load_audio(path)) == 3 * 16000


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.03, 0.7, 1.0, 9.3])
def test_blocks_are_the_whole(tmp_path, rate, seconds):
    noise = 0.1 * np.random.default_rng(rate).standard_normal((int(seconds * rate) + 3, 2))
    soundfile.write(tmp_path / "a.wav", noise, rate)
    want = load_audio(tmp_path / "a.wav")
    for size in (0.01, 0.37, 1.0, 30.0):
        blocks = list(audio_blocks(tmp_path / "a.wav", seconds=size))
        found = torch.cat(blocks)
        assert found.dtype == torch.float32
        # Bit-equal where sums are computed in one order: always without resampling, and in blocks of a second.
        torch.testing.assert_close(found, want, rtol=0, atol=0 if rate == 16000 else 2e-7)
        assert max(map(len, blocks)) <= 3 * size * 16000 + 16000 / 10


def test_blocks_of_every_format_are_the_whole(tmp_path):
    for suffix, options in (("flac", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}), ("mp3", {})):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, tone(4, 48000), 48000, **options)
        blocks = list(audio_blocks(path, seconds=0.5))
        assert len(blocks) > 4
        torch.testing.assert_close(torch.cat(blocks), load_audio(path), rtol=0, atol=2e-7)


def test_blocks_say_what_is_wrong_as_the_whole_does(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", tone(0.024, 16000), 16000)
    wave = tone(3, 16000).astype(np.float32)
    soundfile.write(tmp_path / "cut.wav", wave, 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-40000])
    wave[100] = np.inf
    soundfile.write(tmp_path / "inf.wav", wave, 16000, subtype="FLOAT")
    (tmp_path / "bytes.flac").write_bytes(b"no audio at all")
    for name in ("empty.wav", "short.wav", "cut.wav", "inf.wav", "bytes.flac", "missing.wav"):
        with pytest.raises(AudioError) as want:
            load_audio(tmp_path / name)
        with pytest.raises(AudioError) as found:
            list(audio_blocks(tmp_path / name, seconds=0.5))
        assert str(found.value) == str(want.value)


def test_ten_minutes_load(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.tile(tone(1, 16000), 600), 16000)
    begin = time.process_time()
    assert len(load_audio(tmp_path / "long.flac")) == 600 * 16000
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_moves_length_and_pitch(factor):
    waveform = torch.from_numpy(tone(2, 16000)).float()
    played = change_speed(waveform, factor)
    assert len(played) == math.ceil(32000 / factor - 1e-9)
    assert pitch(played) == pytest.approx(440 * factor, abs=1)


def test_level():
    quiet = level(torch.full((16000,), 5e-4))
    assert quiet.silent
    assert not quiet.clipped
    loud = level(torch.from_numpy(np.clip(tone(1, 16000, gain=3.0), -1, 1)).float())
    assert loud.clipped
    assert not loud.silent
    fine = level(torch.from_numpy(tone(1, 16000)).float())
    assert not fine.silent
    assert not fine.clipped
    assert fine.peak == pytest.approx(0.5, abs=1e-3)
