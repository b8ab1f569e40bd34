"""A codec of spectra: rates, what nothing but the row decides, what it learns without books, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from voxzoo.components import SpectralCodec
from voxzoo.components.layers.stft import STFT
from voxzoo.components.types import Padded


def codec(**settings: Any) -> SpectralCodec:
    torch.manual_seed(1)
    sizes = {"width": 16, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "kernel_size": 3, "dim": 8}
    return SpectralCodec(**{"num_codebooks": 3, "codebook_size": 16, **sizes, **settings})


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_samples_are_as_long_as_the_frames_say(frames: int):
    one = codec(frames=frames).eval()
    lengths = torch.tensor([0, 1, 320, 321, 5000])
    speech = Padded(0.1 * torch.randn(5, 5000), lengths)
    codes = one.encode(speech)
    assert codes.lengths.tolist() == [0, 1, 1, 2, 16]
    assert codes.data.shape == (5, 16, 3)
    assert one.decode(codes).lengths.tolist() == [0, 320, 320, 640, 5120]
    assert (one.frame_rate, one.bits, one.codebooks_of(0.4)) == (50.0, 200.0, 2)


def test_without_books_it_learns_to_give_back_what_it_hears():
    """Noise through one of four bands, drawn anew: what comes out for one is nearer to it than to any other."""
    one = codec(width=32, hidden_dim=64)
    draws = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(one.parameters(), lr=5e-3)
    spectrum_of = STFT(512, 512, 128)

    def heard() -> Padded:
        spectrum = torch.fft.rfft(torch.randn(4, 3200, generator=draws))
        passed = torch.arange(spectrum.shape[1]) // 401 == torch.arange(4)[:, None]
        return Padded(torch.fft.irfft(spectrum * passed), torch.full((4,), 3200))

    def levels(samples: torch.Tensor) -> torch.Tensor:
        return spectrum_of(samples).abs().clamp(min=1e-2).log()

    for _ in range(100):
        optimizer.zero_grad()
        speech = heard()
        made = one.reconstruct(speech, 0)
        assert made.losses["commitment"].total == 0
        (levels(made.samples.data) - levels(speech.data)).abs().mean().backward()
        optimizer.step()
    ours, theirs = (levels(data).mean(1) for data in (one.reconstruct(heard(), 0).samples.data, heard().data))
    distances = (ours[:, None] - theirs).abs().mean(2)
    assert distances.argmin(1).tolist() == [0, 1, 2, 3]
    assert distances.diagonal().max() < 0.5 * distances[~torch.eye(4, dtype=torch.bool)].min()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codebook_size": 1}, "codebook_size=1 at least 2"),
        ({"decoder_layers": 1}, "decoder_layers=1 at least 2"),
        ({"frames": 3}, "hop_length=320 must be a multiple of frames=3"),
        ({"window_length": 500}, "window_length=500 must be a multiple of hop_length=160"),
        ({"kernel_size": 4}, "kernel_size"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        codec(**settings)


def test_it_decodes_no_stream():
    assert not codec().streams
    with pytest.raises(NotImplementedError, match="SpectralCodec decodes whole utterances alone"):
        codec().start(1)
