"""The contract of an adaptor, and what is its own."""

import torch
from voxzoo.components.contract import check_part

from .adaptor import MineAdaptor


def test_contract():
    check_part(lambda: MineAdaptor(input_dim=8, output_dim=6))


def test_it_is_as_many_times_shorter_as_it_stacks():
    assert MineAdaptor(8, 6, stack=3).output_lengths(torch.tensor([6, 7])).tolist() == [2, 3]
