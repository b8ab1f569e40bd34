"""An optimizer goes downhill, and goes on from what a checkpoint kept."""

import copy

import torch

from .optim import MineOptimizer


def step(weight: torch.nn.Parameter, optimizer: MineOptimizer) -> float:
    optimizer.zero_grad()
    loss = weight.square().sum()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_it_goes_downhill():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = MineOptimizer([weight], lr=0.01)
    losses = [step(weight, optimizer) for _ in range(20)]
    assert losses == sorted(losses, reverse=True)


def test_a_resumed_run_takes_the_same_steps():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = MineOptimizer([weight], lr=0.01)
    step(weight, optimizer)
    again = copy.deepcopy(weight)
    resumed = MineOptimizer([again], lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(weight, optimizer), step(again, resumed)
    assert torch.equal(weight, again)
