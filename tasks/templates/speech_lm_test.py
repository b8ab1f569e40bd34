"""The contract of a speech LM, and what is its own."""

import torch
from voxzoo.components.contract import check_part
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Padded

from .speech_lm import MineSpeechLM


def tiny():
    return MineSpeechLM(6, 5, ["eng", "spa"], dim=8, num_layers=1, num_heads=2, dropout=0.0, max_positions=64)


def test_contract():
    check_part(tiny)


def test_it_writes_units_behind_a_prompt():
    model = tiny().eval()
    units, eos = model.vocabulary.units, 2
    options = SearchOptions("greedy", min_length=4, max_length=5, suppress=model.vocabulary.outside(units, eos))
    prompt = Padded(torch.tensor([[1, 5]]), torch.tensor([2]))
    (found,) = generate(model, prompt, torch.tensor([[3]]), options, eos, 0, 0)
    assert all(units.start <= token < units.stop for token in found[0].tokens.tolist())
