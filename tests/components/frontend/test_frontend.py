"""Front ends: equal to the published feature extractor, exact lengths, defined on every input."""

from __future__ import annotations

import math

import pytest
import torch
from voxzoo.components.frontend import Fbank, RawWaveform


def speech(samples: int) -> torch.Tensor:
    """A sweep with noise: no bin is empty, none is constant."""
    generator = torch.Generator().manual_seed(samples)
    time = torch.arange(samples) / 16000
    return 0.3 * torch.sin(2 * math.pi * (200 + 3000 * time) * time) + 0.05 * torch.randn(samples, generator=generator)


@pytest.mark.parametrize("samples", [560, 719, 720, 1040, 8000, 16123])
def test_fbank_equals_the_reference(samples: int) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.SeamlessM4TFeatureExtractor()
    waveform = speech(samples)
    theirs = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
    steps = int(theirs.attention_mask.sum())
    ours = Fbank()(waveform)
    assert ours.shape == (steps, 160)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs.input_features[0, :steps], atol=1e-3, rtol=0)


def test_fbank_before_standardisation_equals_the_reference() -> None:
    transformers = pytest.importorskip("transformers")
    waveform = speech(8000)
    theirs = transformers.SeamlessM4TFeatureExtractor()._extract_fbank_features(waveform.numpy())
    ours = Fbank(stack=1, standardise=False)(waveform)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=1e-3, rtol=0)


def test_lengths_by_formula() -> None:
    for stack in (1, 2, 4):
        for samples in (0, 1, 399, 400, 559, 560, 720, 879, 880, 1039, 1040, 4321):
            frames = 0 if samples < 400 else 1 + (samples - 400) // 160
            assert Fbank(stack=stack).output_length(samples) == frames // stack


def test_stacking_keeps_order_and_drops_the_incomplete_group() -> None:
    waveform = speech(400 + 160 * 10)  # 11 frames
    single = Fbank(stack=1)(waveform)
    four = Fbank(stack=4)(waveform)
    assert len(single) == 11
    torch.testing.assert_close(four, single[:8].reshape(2, 320))


def test_one_frame_and_silence_are_zeros() -> None:
    assert torch.equal(Fbank(stack=1)(speech(400)), torch.zeros(1, 80))
    silence = Fbank()(torch.zeros(16000))
    assert silence.abs().max() < 0.01


def test_standardised_per_bin() -> None:
    features = Fbank(stack=1)(speech(16000))
    torch.testing.assert_close(features.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(80), atol=1e-3, rtol=0)


def test_other_sample_rates() -> None:
    fbank = Fbank(sample_rate=8000, num_mel_bins=40)
    assert fbank(speech(8000)).shape == (fbank.output_length(8000), 80) == (49, 80)


def test_raw_waveform() -> None:
    waveform = speech(1000)
    assert torch.equal(RawWaveform()(waveform), waveform)
    normal = RawWaveform(normalise=True)(waveform)
    assert abs(float(normal.mean())) < 1e-5
    assert abs(float(normal.std(correction=0)) - 1) < 1e-3
    assert torch.equal(RawWaveform(normalise=True)(torch.zeros(10)), torch.zeros(10))
    assert RawWaveform(normalise=True)(torch.zeros(0)).shape == (0,)
    assert RawWaveform().output_length(123) == 123


def test_fingerprint_names_what_changes_the_output() -> None:
    variants = [
        Fbank(),
        Fbank(stack=4),
        Fbank(num_mel_bins=40),
        Fbank(standardise=False),
        Fbank(sample_rate=8000),
        Fbank(low_freq=60.0),
        Fbank(high_freq=7000.0),
        RawWaveform(),
        RawWaveform(normalise=True),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert Fbank().fingerprint == Fbank(output_dim=160).fingerprint


def test_faults_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="80 x 4 = 320; got 160"):
        Fbank(stack=4, output_dim=160)
    with pytest.raises(ValueError, match="one channel"):
        Fbank()(torch.zeros(2, 16000))
    with pytest.raises(ValueError, match="one channel"):
        RawWaveform()(torch.zeros(2, 16000))
    with pytest.raises(ValueError, match="low_freq < high_freq <= 8000 Hz"):
        Fbank(high_freq=9000.0)
