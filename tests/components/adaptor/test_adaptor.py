"""Length adaptors and the CTC loss."""

from __future__ import annotations

import pytest
import torch
from rows import soiled
from torch import nn
from voxzoo.components.adaptor import ConformerAdaptor, ConvAdaptor, CTCShrinkAdaptor, StackAdaptor
from voxzoo.components.losses.ctc import ctc_loss
from voxzoo.components.types import Padded

LENGTHS = (13, 33, 1, 8, 16)


def states(lengths: tuple[int, ...] = LENGTHS, width: int = 12) -> Padded:
    return soiled(lengths, width)


def test_published_lengths() -> None:
    lengths = torch.tensor([7, 8, 33, 50])
    assert ConformerAdaptor(12, 12, 8, 8, num_heads=2, ffn_dim=8).output_lengths(lengths).tolist() == [1, 2, 5, 7]
    assert StackAdaptor(12, 12, 8).output_lengths(lengths).tolist() == [1, 1, 5, 7]
    assert ConvAdaptor(12, 12).output_lengths(lengths).tolist() == [1, 1, 5, 7]


def test_leak_is_a_choice() -> None:
    torch.manual_seed(0)
    leaky = ConformerAdaptor(12, 12, num_heads=2, ffn_dim=20, leak_padding=True).eval()
    batch = states((16, 33))
    alone = leaky(Padded.from_list([batch.unpad()[0]])).states.data[0]
    assert (leaky(batch).states.unpad()[0] - alone).abs().max() > 1e-2


def test_stack_keeps_every_state() -> None:
    part = StackAdaptor(2, 6, 3)
    with torch.no_grad():
        part.projection.weight.copy_(torch.eye(6))
        part.projection.bias.zero_()
    adapted = part(Padded(torch.arange(10.0).view(1, 5, 2), torch.tensor([4]))).states
    assert adapted.lengths.tolist() == [2]
    assert adapted.data.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 0, 0, 0, 0]]]


def test_shrink_by_hand() -> None:
    part = CTCShrinkAdaptor(1, 1, 5)
    data = torch.arange(1.0, 9).repeat(4, 1)[..., None]
    labels = torch.tensor(
        [
            [1, 1, 0, 1, 2, 2, 2, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [3, 3, 3, 3, 3, 3, 3, 3],
            [0, 0, 0, 4, 4, 4, 4, 4],
        ]
    )
    shrunk = part.shrink(Padded(data, torch.tensor([8, 8, 2, 3])), labels)
    assert shrunk.lengths.tolist() == [3, 1, 1, 1]
    # A row of blanks keeps the mean of its real states; labels in the padding do not count.
    expected = [[1.5, 4.0, 6.0], [4.5, 0, 0], [1.5, 0, 0], [2.0, 0, 0]]
    torch.testing.assert_close(shrunk.data[..., 0], torch.tensor(expected))
    assert part.shrink(Padded(data[:1], torch.tensor([0])), labels[:1]).lengths.tolist() == [0]


def test_shrink_loss_is_weighted_and_always_there() -> None:
    torch.manual_seed(0)
    text = Padded(torch.tensor([[1, 2, 3]] * len(LENGTHS)), torch.tensor([3, 3, 1, 2, 0]))
    full = CTCShrinkAdaptor(12, 18, 5)
    half = CTCShrinkAdaptor(12, 18, 5, loss_weight=0.5)
    half.load_state_dict(full.state_dict())
    one, other = full(states(), text).losses["ctc_shrink"], half(states(), text).losses["ctc_shrink"]
    torch.testing.assert_close(other.total, one.total * 0.5)
    assert one.count == other.count == 9
    nothing = full(states()).losses["ctc_shrink"]
    assert nothing.total == 0
    assert nothing.count == 0
    nothing.total.backward()
    assert full.head.weight.grad is not None


def test_ctc_loss_skips_what_cannot_be_aligned() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 6, 4, requires_grad=True)
    # Three equal tokens need five frames: row 1 has five, row 2 has four. Row 3 has no transcript.
    targets = torch.tensor([[1, 2, 3], [2, 2, 2], [2, 2, 2], [0, 0, 0], [3, 1, 0]])
    target_lengths = torch.tensor([3, 3, 3, 0, 2])
    lengths = torch.tensor([6, 5, 4, 6, 2])
    loss = ctc_loss(Padded(logits, lengths), Padded(targets, target_lengths))
    assert int(loss.count) == 3 + 3 + 2
    loss.total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    expected = torch.zeros(())
    for row in (0, 1, 4):
        steps, size = int(lengths[row]), int(target_lengths[row])
        expected += nn.functional.ctc_loss(
            logits[row, :steps, None].log_softmax(-1), targets[row : row + 1, :size], (steps,), (size,), reduction="sum"
        )
        assert logits.grad[row, :steps].any()
        assert not logits.grad[row, steps:].any()
    torch.testing.assert_close(loss.total, expected)
    assert not logits.grad[2].any()
    assert not logits.grad[3].any()


def test_ctc_loss_of_nothing_is_zero() -> None:
    empty = Padded(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 0]))
    loss = ctc_loss(Padded(torch.randn(2, 3, 4), torch.tensor([3, 3])), empty)
    assert float(loss.total) == 0
    assert int(loss.count) == 0


def test_faults_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="stack must be at least 1"):
        StackAdaptor(12, 12, 0)
    with pytest.raises(ValueError, match="blank_id"):
        CTCShrinkAdaptor(12, 12, 5, blank_id=5)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        ConvAdaptor(12, 12, stride=0)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        ConformerAdaptor(12, 10, num_heads=4, ffn_dim=8)
