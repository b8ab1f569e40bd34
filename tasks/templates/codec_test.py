"""The contract of a codec, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .codec import MineCodec


def test_contract():
    check_part(lambda: MineCodec(hop_length=40, num_codebooks=3, codebook_size=8, dim=6, width=12))


def test_frames_do_not_see_each_other():
    codec = MineCodec(hop_length=40, num_codebooks=2, codebook_size=8, dim=6, width=12)
    speech = torch.randn(1, 120)
    again = torch.cat([speech[:, :80], -speech[:, 80:]], 1)
    codes, others = (codec.encode(Padded(each, torch.tensor([120]))).data for each in (speech, again))
    assert torch.equal(codes[:, :2], others[:, :2])
