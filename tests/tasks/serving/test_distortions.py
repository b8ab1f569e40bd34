"""Noise at the ratio that was asked for, measured; codecs that keep time, length and band."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from voxzoo.components.errors import UserError
from voxzoo.datamodules.audio import AudioFiles
from voxzoo.tasks.serving.choices import CODECS
from voxzoo.tasks.serving.distortions import Codec, Condition, DistortedAudio, Noise, conditions_of


def speech(seconds: float = 2.0, seed: int = 0) -> Tensor:
    """A gliding tone with pauses, in a little noise."""
    times = torch.arange(int(16000 * seconds)) / 16000
    generator = torch.Generator().manual_seed(seed)
    tone = torch.sin(2 * math.pi * (300 * times + 60 * torch.sin(9 * times)))
    envelope = (torch.sin(2 * math.pi * (1.5 + seed) * times) > -0.3).float()
    return 0.3 * tone * envelope + 0.005 * torch.randn(len(times), generator=generator)


def decibels(signal: Tensor, noise: Tensor) -> float:
    """The ratio of two powers, by their definition."""
    return 10 * math.log10(float((signal.double() ** 2).sum()) / float((noise.double() ** 2).sum()))


@pytest.fixture
def recordings(tmp_path: Path) -> list[str]:
    names = []
    for n in range(8):
        names.append(str(tmp_path / f"u{n}.wav"))
        soundfile.write(names[-1], speech(1.0 + 0.3 * n, n).numpy(), 16000)
    return names


def test_0_db_is_0_db(recordings, tmp_path):
    folder = tmp_path / "noises" / "deep"
    folder.mkdir(parents=True)
    soundfile.write(folder / "hum.flac", 0.05 * np.sin(np.arange(4410) * 0.03), 44100)  # shorter, of another rate
    wave = speech()
    for kind in ("white", "pink", "babble", str(tmp_path / "noises")):
        for snr in (20.0, 0.0, -7.5):
            noisy = Noise(kind, snr, recordings)(wave, 16000, "u0.wav")
            assert decibels(wave, noisy - wave) == pytest.approx(snr, abs=1e-3), kind


@pytest.mark.parametrize("kind", ["white", "pink", "babble"])
def test_an_utterance_has_the_same_noise_at_every_ratio_and_others_another(kind, recordings):
    wave = speech()
    loud, quiet, again = (Noise(kind, snr, recordings)(wave, 16000, "a") - wave for snr in (0, 10, 0))
    assert torch.equal(loud, again)
    assert torch.allclose(quiet * 10**0.5, loud, atol=1e-5)
    assert not torch.allclose(Noise(kind, 0, recordings)(wave, 16000, "b") - wave, loud, atol=1e-3)
    assert not torch.allclose(Noise(kind, 0, recordings, seed=2)(wave, 16000, "a") - wave, loud, atol=1e-3)


def test_pink_noise_falls_by_3_db_an_octave_and_white_noise_does_not():
    wave = torch.full((1 << 17,), 0.1)
    for kind, slope in (("white", 0.0), ("pink", -3.01)):
        power = torch.fft.rfft((Noise(kind, 0)(wave, 16000, "a") - wave).double()).abs() ** 2
        octaves = [10 * math.log10(float(power[2**n : 2 ** (n + 1)].mean())) for n in range(8, 16)]
        assert np.polyfit(range(8), octaves, 1)[0] == pytest.approx(slope, abs=0.15)


def test_babble_is_of_others(recordings):
    wave = speech()
    alone = Noise("babble", 0, recordings[:2])(wave, 16000, "u0.wav") - wave
    other = torch.from_numpy(soundfile.read(recordings[1], dtype="float32")[0])
    doubled = torch.cat([other] * 3)
    match = max(
        float(torch.nn.functional.cosine_similarity(alone, doubled[start : start + len(alone)], dim=0))
        for start in range(len(doubled) - len(alone))
        if start < len(other)
    )
    assert match == pytest.approx(1, abs=1e-3)


def test_silence_stays_silent_and_silent_noise_is_refused(tmp_path):
    silence = torch.zeros(16000)
    assert torch.equal(Noise("pink", 0)(silence, 16000, "a"), silence)
    soundfile.write(tmp_path / "none.wav", np.zeros(16000), 16000)
    with pytest.raises(UserError, match=r"20 stretches in a row are silent, the last of .*none\.wav"):
        Noise(str(tmp_path), 0)(speech(), 16000, "a")


@pytest.mark.parametrize("kind", CODECS)
def test_codecs_keep_length_and_time_and_change_samples(kind):
    wave = speech(1.23)
    out = Codec(kind)(wave, 16000, "a")  # pyright: ignore[reportArgumentType]
    assert out.shape == wave.shape
    assert not torch.equal(out, wave)
    size = 2 * len(wave)
    spectra = [torch.fft.rfft(each, size) for each in (wave, out)]
    lag = int(torch.fft.irfft(spectra[0].conj() * spectra[1], size).argmax())
    assert min(lag, size - lag) <= (1 if kind == "opus-low" else 0)
    assert decibels(wave, out - wave) > (4 if kind == "opus-low" else 9)


def test_a_telephone_has_no_more_than_4_khz_and_few_steps():
    wave = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    for kind in ("narrowband", "mulaw"):
        power = torch.fft.rfft(Codec(kind)(wave, 16000, "a")).abs() ** 2  # pyright: ignore[reportArgumentType]
        assert float(power[4300:].sum() / power.sum()) < 5e-3
    # ITU-T G.711: 8 bits a sample, and steps that grow with it, so that quiet speech keeps the same distance.
    step = Codec("mulaw")(speech() * 0.01, 16000, "a")
    assert decibels(step, step - Codec("narrowband")(speech() * 0.01, 16000, "a")) > 20
    # By the formula itself, where there is nothing to resample.
    import voxzoo.tasks.serving.distortions as module

    tone = 0.5 * torch.sin(torch.arange(8000) * 0.3)
    coded = module._through(tone, 8000, format="WAV", subtype="ULAW")
    compressed = torch.sign(tone) * torch.log1p(255 * tone.abs()) / math.log(256)
    level = (torch.round(compressed * 127) / 127).abs()
    want = torch.sign(tone) * (256**level - 1) / 255
    assert float((coded - want).abs().max()) < 0.02


def test_audio_is_read_through_a_condition(recordings):
    class Half(Condition):
        name = signature = "half"

        def __call__(self, waveform: Tensor, sample_rate: int, key: str) -> Tensor:
            assert (sample_rate, key) == (16000, "u3.wav")
            return waveform / 2

    files = DistortedAudio(AudioFiles(), Half())
    assert torch.equal(files.load(recordings[3], 16000), AudioFiles().load(recordings[3], 16000) / 2)
    assert files.seconds(recordings[3]) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((["pink"], [], []), "--noise: also say --snr"),
        (([], [10.0], []), "--snr: also say --noise"),
        ((["rain"], [10.0], []), "--noise rain: no such folder, and none of white, pink, babble"),
        (([], [], ["flac"]), "--codec flac: expected some of mp3"),
        ((["pink"], [10.0, 10.0], []), "two conditions are called 'pink 10 dB'"),
        ((["babble"], [10.0], []), "--noise babble: is made of other utterances"),
    ],
)
def test_conditions_that_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        conditions_of(*words, ["one.wav"], AudioFiles())
