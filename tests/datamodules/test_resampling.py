"""Rates that have little in common are resampled like all others, in little memory."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.transforms import Resample
from voxzoo.components.layers.resampling import Interpolation, resampler
from voxzoo.datamodules.audio import AudioError, audio_blocks, load_audio


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 16000), (3, 2)])
def test_it_is_what_torchaudio_computes(rate: int, new_rate: int):
    samples = torch.randn(5003, generator=torch.Generator().manual_seed(0))
    # Its own table in float32 is off by up to 3e-5.
    expected = Resample(rate, new_rate, dtype=torch.float64)(samples.double())
    found = Interpolation(rate, new_rate)(samples)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("rate", [44101, 44099, 15999, 192001, 767999])
def test_a_tone_stays_a_tone_at_odd_rates(rate: int):
    assert isinstance(resampler(rate, 16000), Interpolation)
    samples = torch.sin(2 * math.pi * 440 * torch.arange(rate // 2) / rate)
    found = resampler(rate, 16000)(samples)
    assert len(found) == math.ceil(rate // 2 * 16000 / rate)
    inner = slice(200, len(found) - 200)
    torch.testing.assert_close(
        found[inner], torch.sin(2 * math.pi * 440 * torch.arange(len(found)) / 16000)[inner], atol=3e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("rate", "kind"), [(44100, Resample), (48000, Resample), (11025, Resample), (44101, Interpolation)]
)
def test_usual_rates_keep_the_table(rate: int, kind: type):
    assert type(resampler(rate, 16000)) is kind


def test_blocks_of_an_odd_rate_are_the_whole(tmp_path: Path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 150_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 44101)
    whole = load_audio(tmp_path / "a.wav")
    torch.testing.assert_close(torch.cat(list(audio_blocks(tmp_path / "a.wav", seconds=0.5))), whole, atol=1e-6, rtol=0)
    assert len(whole) == math.ceil(150_000 * 16000 / 44101)


def test_a_small_file_that_promises_hours_takes_no_memory(tmp_path: Path):
    """119 minutes of 8 channels at 192 kHz would be 44 GB; of them a few hundred bytes are there."""
    soundfile.write(tmp_path / "a.flac", np.zeros((4096, 8), np.float32), 192_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    frames = 119 * 60 * 192_000
    content[21] = (content[21] & 0xF0) | (frames >> 32)
    content[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    (tmp_path / "a.flac").write_bytes(content)
    assert soundfile.info(tmp_path / "a.flac").frames == frames
    tracemalloc.start()
    with pytest.raises(AudioError) as error:
        load_audio(tmp_path / "a.flac")
    with pytest.raises(AudioError):
        list(audio_blocks(tmp_path / "a.flac"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a.flac" in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < 100 << 20


def test_what_is_there_of_many_channels_is_read(tmp_path: Path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (60_000, 8)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    assert torch.equal(load_audio(tmp_path / "a.wav"), torch.from_numpy(wave).mean(1))
