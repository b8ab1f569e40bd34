"""The rate at some steps, and what is refused."""

import pytest
import torch
from voxzoo.components.errors import UserError

from .schedule import mine


def test_it_rises_stays_and_falls():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = mine(optimizer, total_steps=100, warmup_steps=10, decay=0.2)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [round(rates[step], 6) for step in (0, 9, 50, 80, 90, 100)] == [0.1, 1, 1, 1, 0.5, 0]


def test_a_run_without_an_end_is_refused():
    with pytest.raises(UserError, match="needs the length of the run"):
        mine(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
