"""Rotary positions of one step against those of a sequence."""

from __future__ import annotations

import torch
from voxzoo.components.layers.positions import RotaryPositions, rotate, turn


def test_a_step_is_turned_as_in_a_sequence():
    positions, heads = RotaryPositions(8), torch.randn(3, 5, 20, 8)
    whole = rotate(heads, positions(20, heads))
    steps = torch.tensor([0, 19, 7])
    one = torch.stack([heads[row, :, step] for row, step in enumerate(steps)])[:, None, None]  # (B, 1, 1, H, d)
    kept = one.clone()
    turn(one, positions.at(steps, 20, one))
    for row, step in enumerate(steps):
        assert torch.allclose(one[row, 0, 0], whole[row, :, step], atol=1e-6)
    assert torch.equal(one[0], kept[0])  # the first place turns nothing
    assert not torch.allclose(one[1], kept[1], atol=1e-2)
