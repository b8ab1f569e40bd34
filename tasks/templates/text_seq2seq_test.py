"""The contract of a text decoder, and what is its own."""

import pytest
import torch
from voxzoo.components.contract import check_part
from voxzoo.components.types import Padded

from .text_seq2seq import MineSeq2Seq


def test_contract():
    check_part(lambda: MineSeq2Seq(vocab_size=20, dim=8, num_layers=2, num_heads=2, max_positions=32))


def test_it_reads_no_text():
    with pytest.raises(ValueError, match="no text encoder"):
        MineSeq2Seq(vocab_size=20, dim=8).encode(Padded(torch.ones(1, 2, dtype=torch.int64), torch.tensor([2])))
