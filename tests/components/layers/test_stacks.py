"""Blocks of a part of one's own are found whatever their list is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from voxzoo.components import HiFiGANDiscriminator, NoAdaptor
from voxzoo.components.layers.blocks import blocks, set_up_blocks, unfound_blocks
from voxzoo.components.roles import SpeechEncoder
from voxzoo.components.types import Padded
from voxzoo.tasks.distributed.strategies import units


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.outer(self.inner(x).relu())


class Mine(SpeechEncoder):
    """Blocks under a name of one's own, beside lists that are no stacks of blocks."""

    input_dim = output_dim = 4

    def __init__(self, how: str = "list") -> None:
        super().__init__()
        made = [Block() for _ in range(3)]
        self.blocks = {"list": nn.ModuleList, "sequential": lambda b: nn.Sequential(*b), "none": lambda _: None}[how](
            made
        )
        self.projections = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.mixed = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])

    def forward(self, speech: Padded) -> Padded:
        x = speech.data
        for block in self.blocks or ():
            x = block(x)
        return speech.with_data(self.mixed[0](self.projections[0](x)))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths


@pytest.mark.parametrize("how", ["list", "sequential"])
def test_blocks_of_any_name_are_computed_again_compiled_and_units_of_shards(how: str):
    part = Mine(how)
    assert list(blocks(part)) == list(part.blocks)
    task = nn.Module()
    task.speech_encoder = part
    task.parts = lambda: {"speech_encoder": part}
    assert list(units(task)) == list(part.blocks)
    x = Padded(torch.randn(2, 5, 4), torch.tensor([5, 3]))
    part(x).data.sum().backward()
    assert [block.calls for block in part.blocks] == [1, 1, 1]
    gradient = part.blocks[0].inner.weight.grad.clone()
    part.zero_grad()
    set_up_blocks({"speech_encoder": part}, {"activation_checkpointing": {"speech_encoder": True}})
    part(x).data.sum().backward()
    assert [block.calls for block in part.blocks] == [3, 3, 3]
    assert torch.equal(part.blocks[0].inner.weight.grad, gradient)
    assert list(unfound_blocks({"speech_encoder": part}, {"activation_checkpointing": True})) == []


def test_a_part_names_its_stacks_or_says_that_it_has_none():
    part = Mine()
    part.stacks = ("projections",)
    assert list(blocks(part)) == list(part.projections)
    part.stacks = ()
    assert list(blocks(part)) == []
    assert list(unfound_blocks({"speech_encoder": part}, {"compile": True})) == []
    assert list(blocks(HiFiGANDiscriminator(periods=(2,), num_scales=1))) == []


def test_blocks_that_are_not_found_are_said():
    parts = {"speech_encoder": Mine("none"), "adaptor": NoAdaptor(input_dim=4, output_dim=6)}
    for config, cut, asked in (
        ({"activation_checkpointing": True, "compile": True}, False, "activation_checkpointing, compile"),
        ({}, True, "shards"),
    ):
        (line,) = unfound_blocks(parts, config, cut)
        assert line.startswith(f"{asked}: speech_encoder (Mine) has no stack of layers")
    assert list(unfound_blocks(parts, {})) == []
