"""Waveforms that wait for their batch."""

from __future__ import annotations

import pytest
import torch
from voxzoo.tasks.serving import shelf
from voxzoo.tasks.serving.shelf import Shelf


@pytest.fixture
def waves(monkeypatch):
    monkeypatch.setattr(shelf, "ROOM", 4000)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, generator=generator) for count in (300, 900, 0, 500, 100, 2000)]


def test_what_is_put_comes_back(waves):
    kept = Shelf()
    for _ in range(2):
        places = [kept.put(wave) for wave in waves]
        assert [place.count for place in places] == [len(wave) for wave in waves]
        for order in (range(6), reversed(range(6))):
            assert all(torch.equal(places[n].take(), waves[n]) for n in order)
        held = sum(place.samples.numel() * 4 for place in places if place.samples is not None)
        assert held <= 4000
        kept.clear()


def test_it_keeps_a_copy(waves):
    kept, wave = Shelf(), torch.ones(10)
    place = kept.put(wave)
    wave.zero_()
    assert torch.equal(place.take(), torch.ones(10))
    half = kept.put(torch.ones(10, dtype=torch.bfloat16))
    assert half.take().dtype == torch.float32


def test_a_full_disk_is_done_without(waves, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", full)
    kept = Shelf()
    places = [kept.put(wave) for wave in waves]
    assert all(torch.equal(place.take(), wave) for place, wave in zip(places, waves))
