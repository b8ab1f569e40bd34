"""Speech at another rate: long rows in blocks are the rows whole."""

from __future__ import annotations

import pytest
import torch
from torchaudio.functional import resample
from voxzoo.components.layers import resampling
from voxzoo.components.layers.resampling import resampled, resampled_length

RATES = [(16000, 24000), (24000, 16000), (44100, 16000), (16000, 48000), (8000, 16000), (22050, 24000)]


@pytest.mark.parametrize(("old", "new"), RATES)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_blocks_are_the_whole(old: int, new: int, channels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    for length in (60_000, 60_001, 62_345):
        row = torch.randn(*channels, length)
        whole = resample(row, old, new)
        monkeypatch.setattr(resampling, "_BLOCK", 10_000)
        blocks = resampled(row, old, new)
        assert blocks.shape[-1] == resampled_length(length, old, new)
        torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=1e-6)


def test_rates_with_little_in_common_need_no_table():
    """torchaudio's would take 44,101 / 16,000 Hz 2.8 GB."""
    torch.manual_seed(0)
    rows = torch.randn(2, 4000, requires_grad=True)
    found = resampled(rows, 44101, 16000)
    assert found.shape == (2, resampled_length(4000, 44101, 16000))
    near = resample(rows, 44100, 16000)  # the same to the ear
    torch.testing.assert_close(found[:, 50:1000], near[:, 50:1000], atol=0.3, rtol=0)
    assert (found - near[:, : found.shape[1]]).abs().mean() < 0.1
    alone = torch.stack([resampling.Interpolation(44101, 16000)(row) for row in rows])
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)
    found.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0
