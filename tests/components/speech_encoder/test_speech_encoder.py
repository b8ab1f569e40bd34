"""The Conformer encoder beyond parity: padding, chunks, dropout kinds, masking, the meta device."""

from __future__ import annotations

import pytest
import torch
from rows import soiled
from torch import nn
from voxzoo.components.layers.convolution import DepthwiseConv, MaskedBatchNorm
from voxzoo.components.layers.dropout import dropout
from voxzoo.components.layers.spec_augment import SpecAugment
from voxzoo.components.speech_encoder import ConformerEncoder
from voxzoo.components.types import Padded

LENGTHS = (13, 25, 1, 8)


def features(width: int = 10, lengths: tuple[int, ...] = LENGTHS) -> Padded:
    return soiled(lengths, width)


def encoder(**settings) -> ConformerEncoder:
    torch.manual_seed(0)
    base = {"input_dim": 10, "dim": 12, "num_layers": 2, "num_heads": 2, "ffn_dim": 24, "kernel_size": 5}
    return ConformerEncoder(**{**base, "left_context": 5, "right_context": 2, **settings})


@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
def test_padding_changes_no_gradient(conv_norm: str) -> None:
    """The same rows with more padding give the same gradients, also through the statistics of batch norm."""
    part = encoder(conv_norm=conv_norm, chunk_size=4, left_chunks=0)
    tight = features()
    loose = Padded(nn.functional.pad(tight.data, (0, 0, 0, 9), value=-7.0), tight.lengths)
    found = []
    for batch in (tight, loose):
        part.zero_grad()
        part(batch).zeroed().data.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in part.parameters() if parameter.grad is not None])
        assert all(torch.isfinite(grad).all() for grad in found[-1])
    assert len(found[0]) == len(list(part.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_gradient_of_distances_is_that_of_a_gather() -> None:
    from voxzoo.components.layers.relative_attention import _Spread, positions

    for steps, left, right in ((9, 3, 2), (9, 20, 20), (5, 0, 0), (1, 2, 2), (6, 5, 0), (7, 0, 3)):
        index = positions("relative_key", steps, torch.empty(1, steps, 2), left, right)
        assert index is not None
        index = index.flip(0)
        scores = torch.randn(2, 3, steps, left + right + 1, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 3, steps, steps, dtype=torch.float64)
        (got,) = torch.autograd.grad((_Spread.apply(scores, index, None, left, right) * weight).sum(), scores)
        (expected,) = torch.autograd.grad((scores.gather(-1, index.expand(2, 3, -1, -1)) * weight).sum(), scores)
        torch.testing.assert_close(got, expected)


def test_chunks_limit_what_is_seen() -> None:
    part = encoder(num_layers=1, chunk_size=4, left_chunks=1, kernel_size=1).eval()
    data = torch.randn(1, 16, 10)
    base = part(Padded(data, torch.tensor([16]))).data
    changed = data.clone()
    changed[:, 5, 0] += 1  # chunk 1: seen from chunks 1 and 2
    moved = (part(Padded(changed, torch.tensor([16]))).data - base).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 8 + [False] * 4


def test_causal_convolution_sees_the_past_only() -> None:
    for causal, reach in ((True, (7, 9)), (False, (6, 8))):
        conv = DepthwiseConv(4, 3, causal)
        x = torch.randn(1, 12, 4)
        changed = x.clone()
        changed[:, 7] += 1
        moved = ((conv(changed) - conv(x)).abs().amax((0, 2)) > 1e-6).nonzero().flatten()
        assert (int(moved[0]), int(moved[-1])) == reach
        plain = nn.functional.conv1d(
            nn.functional.pad(x.transpose(1, 2), (2, 0) if causal else (1, 1)), conv.weight, groups=4
        ).transpose(1, 2)
        torch.testing.assert_close(conv(x), plain)


def test_masked_batch_norm_equals_batch_norm_on_the_real_steps() -> None:
    batch = features(6)
    ours, theirs = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    theirs.load_state_dict(ours.state_dict())
    real = batch.data[batch.mask]
    for _ in range(2):
        torch.testing.assert_close(ours(batch.data, batch.mask)[batch.mask], theirs(real), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(real[None])[0], theirs(real), atol=1e-5, rtol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(batch.data, batch.mask)[batch.mask], theirs(real), atol=1e-5, rtol=1e-5)


def test_layer_drop_leaves_blocks_out_of_training_only() -> None:
    part = encoder(num_layers=4, layer_drop=0.5)
    batch = features()
    torch.manual_seed(4)
    dropped = [bool(torch.rand(()) < 0.5) for _ in range(4)]
    assert 0 < sum(dropped) < 4
    torch.manual_seed(4)
    part(batch).zeroed().data.sum().backward()
    for layer, gone in zip(part.layers, dropped, strict=True):
        grads = [parameter.grad for parameter in layer.parameters()]
        # Every parameter has a gradient, zero where the block was left out: DDP and FSDP wait for all of them.
        assert all(grad is not None for grad in grads)
        assert all(not grad.any() for grad in grads if grad is not None) == gone
    part.eval()
    torch.testing.assert_close(part(batch).data, part(batch).data, atol=0, rtol=0)


def test_training_repeats_with_the_global_seed() -> None:
    part = encoder(dropout=0.2, attention_dropout=0.2, conv_dropout=0.2, layer_drop=0.3, spec_augment=SpecAugment())
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(part(features()).zeroed().data)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_dropout_rate_and_scale() -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 301, requires_grad=True)
    out = dropout(x, 0.1, True)
    zero = out == 0
    assert abs(float(zero.float().mean()) - 0.1) < 0.002
    torch.testing.assert_close(out[~zero], torch.full_like(out[~zero], 1 / 0.9))
    out.sum().backward()
    assert torch.equal(x.grad == 0, zero)
    # Neighbours come from one draw: they must not go together.
    together = (zero[:, 1:] & zero[:, :-1]).float().mean()
    assert abs(float(together) - 0.01) < 0.002
    assert dropout(x, 0.1, False) is x


def test_spec_augment_masks_inside_the_length() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([40, 12, 1, 0] * 50)
    batch = Padded(torch.ones(200, 40, 12), lengths)
    part = SpecAugment(time_masks=1, time_width=30, time_fraction=0.5, freq_masks=0, stack=3)
    gone = part(batch).data.eq(0)
    assert torch.equal(gone.all(2), gone.any(2))
    assert not gone[~batch.mask].any()
    widths = gone.all(2).sum(1)
    assert (widths * 2 <= lengths).all()
    assert widths[lengths == 40].max() >= 15
    assert (widths[lengths == 1] == 0).all()

    part = SpecAugment(time_masks=0, freq_masks=1, freq_width=2, stack=3)
    gone = part(batch).data.eq(0).all(1)
    # The same bins go in each of the three stacked frames of four bins.
    assert torch.equal(gone[:, :4], gone[:, 4:8])
    assert torch.equal(gone[:, :4], gone[:, 8:])
    assert gone[:, :4].sum(1).unique().tolist() == [0, 1, 2]
    part.eval()
    assert part(batch) is batch


def test_spec_augment_stretches_the_bins_of_each_row() -> None:
    torch.manual_seed(0)
    bins = torch.arange(8.0)
    batch = Padded(bins.repeat(300, 5, 3), torch.full((300,), 5))  # each bin holds its own number
    part = SpecAugment(time_masks=0, freq_masks=0, stack=3, freq_warp=0.5)
    frames = part(batch).data.unflatten(2, (3, 8)).flatten(1, 2)
    assert torch.equal(frames, frames[:, :1].expand_as(frames)), "a row has one factor"
    factor = 1 / frames[:, :1, 1:2].clamp(min=1e-3)  # where the second bin comes from, 1 / factor, is no edge
    torch.testing.assert_close(frames, (bins / factor).clamp(max=7).expand_as(frames))
    assert 1 / 1.5 - 1e-5 <= factor.min() < 0.7
    assert 1.43 < factor.max() <= 1.5 + 1e-5
    assert abs(float(factor.log().mean())) < 0.05
    part.eval()
    assert part(batch) is batch


@pytest.mark.parametrize("position", ["relative_key", "relative", "none"])
def test_on_the_meta_device(position: str) -> None:
    with torch.device("meta"):
        part = encoder(position=position, conv_norm="batch", chunk_size=4, layer_drop=0.5, spec_augment=SpecAugment())
        states = part(Padded(torch.empty(4, 25, 10), torch.tensor(LENGTHS, device="cpu")))
    assert states.data.is_meta
    assert states.data.shape == (4, 25, 12)
    assert states.lengths.tolist() == list(LENGTHS)


@pytest.mark.parametrize("position", ["relative_key", "relative", "none"])
@pytest.mark.parametrize("mode", ["autocast", "bfloat16", "float64"])
@pytest.mark.parametrize("grad", [True, False])
def test_other_precisions(position: str, mode: str, grad: bool) -> None:
    part = encoder(position=position, dropout=0.1, attention_dropout=0.1)
    batch = features()
    expected = part.eval()(batch).zeroed().data
    if mode != "autocast":
        part, batch = part.to(getattr(torch, mode)), batch.to(getattr(torch, mode))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        got = part(batch).zeroed().data
        torch.testing.assert_close(got.float(), expected, atol=1e-5 if mode == "float64" else 0.15, rtol=0.0)
        part.train()
        if grad:
            part(batch).zeroed().data.float().sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "text", "millions"),
    [
        ("seamless_m4t_large_v2", "seamless_m4t_large", 635.0),
        ("seamless_m4t_large_v1", "seamless_m4t_large", 660.1),
        ("seamless_m4t_medium", "seamless_m4t_medium", 357.4),
    ],
)
def test_published_sizes(name: str, text: str, millions: float) -> None:
    """Encoder and adaptor of the shipped configs have as many parameters as the published speech encoders."""
    from hydra.utils import instantiate
    from voxzoo.configs.compose import compose

    config = compose([f"speech_encoder={name}", "adaptor=seamless_m4t", f"text_seq2seq={text}", "frontend=fbank"])
    with torch.device("meta"):
        parts = instantiate(config.speech_encoder), instantiate(config.adaptor)
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert round(count / 1e6, 1) == pytest.approx(millions, abs=0.11)


def test_faults_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads"):
        encoder(num_heads=5)
    with pytest.raises(ValueError, match="odd kernel_size"):
        encoder(kernel_size=4, causal_conv=False)
    with pytest.raises(ValueError, match="even dim"):
        encoder(dim=9, num_heads=3, position="relative")
    with pytest.raises(ValueError, match="chunk_size"):
        encoder(chunk_size=0)
    with pytest.raises(ValueError, match=r"\(B, T, 10\); got \(4, 25, 7\)"):
        encoder()(features(7))
    with pytest.raises(ValueError, match="stack"):
        encoder(spec_augment=SpecAugment(stack=3))(features())


def test_it_learns() -> None:
    """Which of four bins is loud at the start must reach the last frame."""
    torch.manual_seed(0)
    part, head = encoder(), nn.Linear(12, 4)
    optimiser = torch.optim.Adam([*part.parameters(), *head.parameters()], lr=1e-2)
    loss = torch.tensor(0.0)
    for _ in range(100):
        label = torch.randint(4, (16,))
        data = 0.3 * torch.randn(16, 12, 10)
        data[torch.arange(16), 0, label] += 3
        loss = nn.functional.cross_entropy(head(part(Padded(data, torch.full((16,), 12))).data[:, -1]), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.3
