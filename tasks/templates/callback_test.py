"""What a callback keeps, and what it refuses."""

import pytest

from .callback import MineCallback


def test_a_checkpoint_keeps_its_counts():
    before, after = MineCallback(), MineCallback()
    before.steps, before.seconds = 7, 2.5
    after.load_state_dict(before.state_dict())
    assert (after.steps, after.seconds) == (7, 2.5)


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="every_steps must be at least 1; got 0"):
        MineCallback(every_steps=0)
