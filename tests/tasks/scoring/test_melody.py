"""F0 of what has a known one, and melodies that agree and do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from voxzoo.tasks.scoring.melody import HOP, Melody, agreement, align, fundamental, melody


def glide(hertz: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Samples of a voice whose F0 at each sample is given; a resonance that moves up is what it says."""
    phase = 2 * math.pi * torch.cumsum(hertz.double(), 0) / 16000
    resonance = torch.linspace(300, 2500, len(hertz), dtype=torch.float64)
    parts = [
        torch.sin(k * phase) * (1 / k + 0.7 * torch.exp(-(((k * hertz - resonance) / 400) ** 2))) for k in range(1, 20)
    ]
    noise = torch.randn(len(hertz), generator=torch.Generator().manual_seed(seed)) * 1e-4
    return (0.1 * torch.stack(parts).sum(0)).float() + noise


def sweep(seconds: float, turns: float, low: float = 120.0) -> torch.Tensor:
    place = torch.linspace(0, 1, int(16000 * seconds))
    return low * 2 ** (0.3 * torch.sin(2 * math.pi * turns * place))


@pytest.mark.parametrize("hertz", [60.0, 110.0, 233.0, 440.0])
def test_steady_tones_have_their_pitch(hertz: float):
    f0 = fundamental(glide(torch.full((16000,), hertz)))
    assert len(f0) == 16000 // HOP + 1
    assert ((f0[4:-6] / hertz - 1).abs() < 0.01).all()


def test_a_glide_is_followed():
    hertz = sweep(2.0, 1.0)
    f0 = fundamental(glide(hertz))
    assert ((f0[4:-6] / hertz[::HOP][4 : len(f0) - 6] - 1).abs() < 0.015).all()


def test_noise_and_silence_are_not_voiced():
    noise = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(1))
    assert (fundamental(noise) > 0).float().mean() < 0.01
    voice = torch.cat([glide(torch.full((8000,), 150.0)), torch.zeros(8000)])
    f0 = fundamental(voice)
    assert (f0[4:44] > 0).all()
    assert (f0[56:] == 0).all()
    assert melody(torch.zeros(16000)) is None
    assert melody(torch.zeros(0)) is None


def known(samples: torch.Tensor) -> Melody:
    found = melody(samples)
    assert found is not None
    return found


def test_the_same_melody_at_another_pace_and_pitch_agrees_and_another_does_not():
    reference = known(glide(sweep(2.0, 1.0)))
    slower = agreement(known(glide(sweep(2.4, 1.0, low=140.0), seed=1)), reference)
    opposite = agreement(known(glide(240 - sweep(2.0, 1.0))), reference)
    assert slower is not None
    assert opposite is not None
    assert slower.correlation > 0.9
    assert slower.voicing_error < 0.05
    assert opposite.correlation < 0.0


def test_a_flat_melody_correlates_with_nothing_and_a_whisper_is_a_voicing_error():
    reference = known(glide(sweep(1.5, 1.0)))
    flat = agreement(Melody(torch.full_like(reference.f0, 120.0), reference.cepstra), reference)
    whisper = agreement(Melody(torch.zeros_like(reference.f0), reference.cepstra), reference)
    assert flat is not None
    assert whisper is not None
    assert flat.correlation == 0.0
    assert whisper.correlation == 0.0
    assert whisper.voicing_error > 0.9
    assert agreement(reference, Melody(torch.zeros_like(reference.f0), reference.cepstra)) is None


def test_the_cheapest_path_is_found():
    """Against the table filled cell by cell."""
    costs = np.random.default_rng(3).random((9, 14)).astype(np.float32)
    total = np.full((10, 15), np.inf)
    total[0, 0] = 0
    for row in range(9):
        for column in range(14):
            total[row + 1, column + 1] = costs[row, column] + min(
                total[row, column], total[row, column + 1], total[row + 1, column]
            )
    places, (row, column) = {}, (8, 13)
    while row >= 0 and column >= 0:
        places.setdefault(row, []).append(column)
        before = {(row - 1, column - 1): total[row, column], (row - 1, column): total[row, column + 1],
                  (row, column - 1): total[row + 1, column]}  # fmt: skip
        row, column = min(before, key=before.__getitem__)
    assert align(costs).tolist() == [(places[row][0] + places[row][-1]) // 2 for row in range(9)]


def test_what_is_too_long_is_not_compared():
    long = Melody(torch.full((3200,), 100.0), torch.zeros(3200, 12))
    assert agreement(long, long) is None
