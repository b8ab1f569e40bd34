"""The contract of a front end, and what is its own."""

import torch
from voxzoo.components.contract import check_part

from .frontend import MineFrontend


def test_contract():
    check_part(MineFrontend)


def test_a_tone_is_loudest_in_its_band():
    frontend = MineFrontend(output_dim=40)  # bands of 200 Hz
    features = frontend(torch.sin(2 * torch.pi * 1100 * torch.arange(16000) / 16000))
    assert features.shape == (50, 40)
    assert int(features[10].argmax()) == 5
