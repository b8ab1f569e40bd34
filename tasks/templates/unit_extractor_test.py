"""The contract of a unit extractor, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .unit_extractor import MineUnits


def test_contract():
    check_part(lambda: MineUnits(num_units=4, num_bands=6, hop_length=40))


def test_loud_and_quiet_are_told_apart():
    torch.manual_seed(0)
    speech = Padded(torch.cat([0.01 * torch.randn(1, 800), torch.randn(1, 800)], 1), torch.tensor([1600]))
    units = MineUnits(num_units=2, num_bands=4, hop_length=40)
    units.fit([speech])
    found = units(speech).data[0].tolist()
    assert len({*found[:20]}) == len({*found[20:]}) == 1
    assert found[0] != found[-1]
