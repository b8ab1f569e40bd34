"""The contract of a second pass, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .t2u import MineT2U


def test_contract():
    check_part(lambda: MineT2U(input_dim=8, num_units=6, dim=8, upsample=8))


def test_a_state_becomes_as_many_steps_as_asked():
    states = Padded(torch.randn(1, 3, 8), torch.tensor([3]))
    assert MineT2U(8, 6, dim=8, upsample=4).logits(states).data.shape == (1, 12, 7)
