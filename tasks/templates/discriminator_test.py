"""The contract of a discriminator, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .discriminator import MineDiscriminator


def test_contract():
    check_part(lambda: MineDiscriminator(channels=(4, 6), kernel_size=5, stride=2))


def test_it_gives_a_score_every_so_many_samples():
    judged = MineDiscriminator(channels=(4, 6), stride=4)(Padded(torch.randn(1, 160), torch.tensor([160])))
    assert judged.scores[0].data.shape == (1, 10, 1)
