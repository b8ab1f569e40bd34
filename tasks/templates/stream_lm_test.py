"""The contract of a stream LM, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .stream_lm import MineStreamLM


def test_contract():
    check_part(lambda: MineStreamLM(num_units=6, codebook_size=5, num_streams=3, dim=8, kernel_size=3))


def test_units_are_stretched_over_the_frames():
    model = MineStreamLM(num_units=6, codebook_size=5, num_streams=3, dim=8, kernel_size=1).eval()
    units = Padded(torch.tensor([[2, 4]]), torch.tensor([2]))
    first = Padded(torch.zeros(1, 6, dtype=torch.int64), torch.tensor([6]))
    prompt = Padded(torch.zeros(1, 1, 3, dtype=torch.int64), torch.tensor([1]))
    frames = model.generate(units, prompt, first).data[0]
    assert torch.equal(frames[:3], frames[:1].expand(3, -1))
    assert torch.equal(frames[3:], frames[3:4].expand(3, -1))
