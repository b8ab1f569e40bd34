"""A batch whose rows are all empty: what convolves refuses it by name, a unit extractor finds no units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from voxzoo.components import (
    CodeHiFiGAN,
    ConformerAdaptor,
    ConformerEncoder,
    ConvAdaptor,
    Fbank,
    GriffinLimVocoder,
    ISTFTVocoder,
    KMeansUnits,
    WhisperEncoder,
)
from voxzoo.components.types import Padded

SIZES: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 8}
READERS: dict[str, Callable[[], torch.nn.Module]] = {
    "ConformerEncoder": lambda: ConformerEncoder(input_dim=8, **SIZES),
    "WhisperEncoder": lambda: WhisperEncoder(input_dim=8, **SIZES),
    "ConvAdaptor": lambda: ConvAdaptor(input_dim=8, output_dim=8),
    "ConformerAdaptor": lambda: ConformerAdaptor(input_dim=8, output_dim=8, num_heads=2, ffn_dim=8),
}
VOCODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "GriffinLimVocoder": lambda: GriffinLimVocoder(5, dim=8, num_layers=1),
    "ISTFTVocoder": lambda: ISTFTVocoder(5, dim=8, num_layers=1),
    "CodeHiFiGAN": lambda: CodeHiFiGAN(5, channels=32, default_language=0),
}


@pytest.mark.parametrize("name", READERS)
def test_what_convolves_states_refuses_none(name: str):
    part = READERS[name]().eval()
    nothing = Padded(torch.zeros(2, 0, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"^{name} got 0 steps: "):
        part(nothing)
    part(Padded(torch.zeros(2, 9, 8), torch.tensor([9, 0])))  # one empty row is fine


@pytest.mark.parametrize("name", VOCODERS)
def test_a_vocoder_refuses_no_units(name: str):
    vocoder = VOCODERS[name]().eval()
    nothing = Padded(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    for durations in (None, nothing):
        with pytest.raises(ValueError, match=f"^{name} got 0 steps: no row has a unit"):
            vocoder(nothing, durations=durations)


@pytest.mark.parametrize("samples", [0, 400])
def test_clips_too_short_for_a_unit_have_none(samples: int):
    encoder = ConformerEncoder(input_dim=160, **SIZES)
    mel, states = KMeansUnits(3), KMeansUnits(3, features="encoder", encoder=encoder, frontend=Fbank())
    speech = Padded(torch.zeros(2, samples), torch.full((2,), samples))
    for extractor in (mel, states):
        extractor.fit([Padded(torch.randn(1, 16000), torch.tensor([16000]))])
        units = extractor(speech)
        expected = 2 if samples and extractor is mel else 0  # log-mel units count a unit that has begun
        assert units.lengths.tolist() == [expected, expected]
        assert [len(row) for row in units.unpad()] == [expected, expected]
