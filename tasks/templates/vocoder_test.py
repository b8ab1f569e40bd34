"""The contract of a unit vocoder, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .vocoder import MineVocoder


def test_contract():
    check_part(lambda: MineVocoder(num_units=6, dim=8, hop_length=40))


def test_units_last_as_long_as_asked():
    units, durations = (Padded(torch.tensor([row]), torch.tensor([2])) for row in ([3, 1], [2, 4]))
    assert MineVocoder(num_units=6, dim=8, hop_length=40)(units, durations=durations).data.shape == (1, 240)
