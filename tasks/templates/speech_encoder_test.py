"""The contract of a speech encoder, and what is its own."""

import torch
from voxzoo.components.contract import check_part

from .speech_encoder import MineEncoder


def test_contract():
    check_part(lambda: MineEncoder(input_dim=10, dim=8, num_layers=2, kernel_size=3))


def test_it_halves_the_rate():
    assert MineEncoder(10, dim=8).output_lengths(torch.tensor([8, 9])).tolist() == [4, 5]
