"""The encoder of wav2vec 2.0 and HuBERT beyond parity: padding, lengths, layers, masking, units, the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from rows import soiled
from voxzoo.components import ConformerEncoder, KMeansUnits, RawWaveform, Wav2Vec2Encoder
from voxzoo.components.converters import to_transformers
from voxzoo.components.converters.published import PublishedModel
from voxzoo.components.layers.spec_augment import SpanMasking, span_mask
from voxzoo.components.speech_encoder import wav2vec2
from voxzoo.components.types import Padded
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose

LENGTHS = (900, 2000, 19, 430)  # the third is too short for a frame
SMALL = {"conv_dims": (6, 10, 8), "conv_kernels": (10, 3, 2), "conv_strides": (5, 2, 2)}


def encoder(**settings) -> Wav2Vec2Encoder:
    torch.manual_seed(0)
    base = {"dim": 12, "num_layers": 3, "num_heads": 2, "ffn_dim": 24, "position_kernel": 6, "position_groups": 3}
    part = Wav2Vec2Encoder(**{**base, **SMALL, **settings})
    with torch.no_grad():
        for value in part.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return part


def samples(lengths: tuple[int, ...] = LENGTHS) -> Padded:
    batch = soiled(lengths)
    return batch.with_data(0.2 + batch.data)


def test_a_leak_is_a_switch() -> None:
    """What leaks is silence: not whatever happens to stand in the padding."""
    batch = samples((900, 2000))
    quiet = batch.zeroed()
    results = {}
    for leak in ("none", "norm", "all"):
        part = encoder(leak_padding=leak).eval()
        with torch.no_grad():
            torch.testing.assert_close(part(batch).unpad()[0], part(quiet).unpad()[0])
            results[leak] = part(batch).unpad()
    for one, other in (("none", "norm"), ("none", "all"), ("norm", "all")):
        assert (results[one][0] - results[other][0]).abs().max() > 1e-3
        torch.testing.assert_close(results[one][1], results[other][1])  # the row without padding


@pytest.mark.parametrize(
    ("length", "frames"),
    [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16000, 49), (16080, 50), (32000, 99), (1_600_000, 4999)],
)
def test_published_lengths(length: int, frames: int) -> None:
    with torch.device("meta"):
        part = build(compose(["speech_encoder=hubert_base", "frontend=raw"]).speech_encoder)
    assert part.receptive_field == 400
    assert part.output_lengths(torch.tensor([length])).tolist() == [frames]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_in_pieces_as_in_one(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = encoder(conv_norm=norm).eval()
    batch = samples()
    with torch.no_grad():
        whole = part(batch).data
        for values in (400, 3000):
            monkeypatch.setattr(wav2vec2, "_PIECE_CPU", values)
            torch.testing.assert_close(part(batch).data, whole, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():  # a frozen front half has nothing to keep, but what is behind it learns
        part.convs.requires_grad_(False)
        part(batch).data.sum().backward()
        assert part.input_projection.weight.grad is not None


def test_a_kernel_that_is_blind_to_what_is_loud() -> None:
    """Statistics of the first convolution come from those of the samples: a difference filter on a loud hum."""
    part = encoder().eval()
    first = part.convs[0]
    time = torch.arange(4000) / 16000
    generator = torch.Generator().manual_seed(1)
    sound = 3 + torch.sin(2 * torch.pi * 50 * time) + 1e-3 * torch.randn(4000, generator=generator)
    with torch.no_grad():
        first.conv.weight.zero_()
        first.conv.weight[:, 0, 3:6] = torch.tensor([1.0, -2.0, 1.0])
        found = first.first(sound[None], *first.first_weights(sound[None], None))
        exact = F.conv1d(sound.double()[None, None], first.conv.weight.double(), stride=5)
        weight, bias = first.norm.weight.double(), first.norm.bias.double()
        expected = F.gelu(F.group_norm(exact, exact.shape[1], weight, bias)).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=2e-3)


# Layers


@pytest.mark.parametrize("first", [False, True])
def test_a_layer_leaves_out_what_lies_behind(first: bool) -> None:
    part = encoder(norm_first=first).eval()
    called = []
    for index, block in enumerate(part.layers, 1):
        block.register_forward_hook(lambda *_, index=index: called.append(index))
    batch = samples()
    with torch.no_grad():
        last = part(batch).data
        for number in range(4):
            called.clear()
            part.layer = number
            states = part(batch).data
            assert called == list(range(1, number + 1))
        torch.testing.assert_close(part.norm(states) if first else states, last)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("settings", [{"layer": 1}, {"layer": 0}, {"layer_drop": 0.999}, {"mask_embedding": True}])
def test_every_parameter_has_a_gradient(first: bool, settings: dict) -> None:
    """DDP and FSDP wait for them, whatever a step leaves out."""
    part = encoder(norm_first=first, conv_bias=True, **settings).train()
    part(samples()).data.sum().backward()
    assert [name for name, value in part.named_parameters() if value.grad is None] == []
    if settings.get("layer") == 1:
        assert all(not value.grad.any() for value in part.layers[1].parameters())
        assert part.layers[0].ffn.inner.weight.grad.any()


def test_layer_drop_drops() -> None:
    part = encoder(layer_drop=0.5).train()
    torch.manual_seed(0)
    with torch.no_grad():
        results = {round(float(part(samples((900,))).data.abs().sum()), 3) for _ in range(30)}
    assert 2 < len(results) <= 8  # three blocks, each in or out


# Masking


def test_spans_lie_in_the_row_and_are_as_long_as_said() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([60, 37, 5, 4, 0])
    for _ in range(50):
        mask = span_mask(lengths, 64, prob=0.3, width=5, least=2)
        assert mask.shape == (5, 64)
        for row, length in zip(mask, lengths.tolist(), strict=True):
            assert not row[length:].any()
            runs = [len(run) for run in "".join("x" if v else "." for v in row).split(".") if run]
            assert all(run >= 5 for run in runs)
        assert mask[2].sum() == 5  # one place only
        assert not mask[3:].any()
        assert 6 <= int(mask[0].sum()) <= 20  # two spans at least, and 60 x 0.3 / 5 rounded up at most


def test_share_of_masked_steps() -> None:
    torch.manual_seed(0)
    mask = span_mask(torch.full((200,), 500), 500, prob=0.1, width=1, least=0)
    assert abs(float(mask.float().mean()) - 0.1) < 0.003
    mask = span_mask(torch.full((400,), 500), 500, prob=0.65, width=10, least=2)
    # 32.5 spans of 10 in 500 steps, distinct beginnings: about half of all steps (the paper says 49 %).
    assert abs(float(mask.float().mean()) - 0.48) < 0.03
    starts = span_mask(torch.full((4000,), 20), 20, prob=0.0, width=3, least=1).float().mean(0)
    assert (starts[3:17] - 3 / 18).abs().max() < 0.03  # every place alike


def test_masked_steps_become_the_vector_while_training() -> None:
    masking = SpanMasking(time_prob=0.5, time_length=4, feature_prob=0.4, feature_length=2)
    vector = torch.full((6,), 9.0, requires_grad=True)
    x, lengths = torch.randn(3, 30, 6), torch.tensor([30, 12, 2])
    torch.manual_seed(0)
    y = masking(x, lengths, vector)
    steps = (y == 9).any(-1)
    assert steps[0].any()
    assert steps[1, :12].any()
    assert not steps[1, 12:].any()
    assert not steps[2].any()  # too short
    silent = (y == 0).all(1)
    assert silent.any()
    assert not silent.all()
    kept = ~steps[..., None] & ~silent[:, None]
    torch.testing.assert_close(y[kept], x[kept])
    y.sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0
    masking.eval()
    assert masking(x, lengths, vector) is x


@pytest.mark.parametrize("kind", ["wav2vec2", "conformer"])
def test_an_encoder_masks_while_training_only(kind: str) -> None:
    settings = {"mask_embedding": True, "mask_time_prob": 0.5, "mask_time_length": 3}
    if kind == "wav2vec2":
        part, batch = encoder(**settings), samples()
    else:
        part = ConformerEncoder(5, 12, num_layers=1, num_heads=2, ffn_dim=20, kernel_size=3, **settings)
        batch = Padded.from_list([torch.randn(length, 5) for length in (20, 13)])
    part.train()
    torch.manual_seed(0)
    states = part(batch)
    assert not torch.equal(states.data, part(batch).data)
    states.data[states.mask].sum().backward()
    assert part.mask_embedding is not None
    assert part.mask_embedding.grad is not None
    assert part.mask_embedding.grad.abs().sum() > 0
    part.eval()
    torch.testing.assert_close(part(batch).data, part(batch).data, atol=0, rtol=0)


# Units


@pytest.mark.parametrize("first", [False, True])
def test_units_of_a_layer(first: bool) -> None:
    part = encoder(norm_first=first)
    units = KMeansUnits(4, features="encoder", encoder=part, frontend=RawWaveform(normalise=True), layer=2)
    batch = samples((4000, 2500))
    units.fit([batch])
    result = units(batch)
    assert result.lengths.tolist() == units.output_lengths(batch.lengths).tolist() == [199, 124]
    normalised = Padded.from_list([RawWaveform(normalise=True)(row) for row in batch.unpad()])
    reference = encoder(norm_first=first, layer=2).eval()
    with torch.no_grad():
        torch.testing.assert_close(units.features(batch).data, reference(normalised).data)
    assert units.card()["layer"] == 2
    called = []
    part.layers[2].register_forward_hook(lambda *_: called.append(1))
    units.features(batch)
    assert not called
    with pytest.raises(ValueError, match="layers 1 to 3"):
        KMeansUnits(4, features="encoder", encoder=encoder(), layer=4)


def _published(folder: Path) -> Wav2Vec2Encoder:
    node = {
        "dim": 12,
        "num_layers": 3,
        "num_heads": 2,
        "ffn_dim": 24,
        "position_kernel": 6,
        "position_groups": 3,
        **SMALL,
    }
    node |= {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "mask_embedding": True}
    torch.manual_seed(3)
    part = Wav2Vec2Encoder(**node).eval()
    model = PublishedModel("hubert", {"speech_encoder": {"_target_": "voxzoo.components.Wav2Vec2Encoder", **node}}, {})
    model.add_module("speech_encoder", part)
    to_transformers(model, folder)
    return part


def test_units_of_a_published_encoder(tmp_path: Path) -> None:
    """`unit_extractor=encoder` with a published speech encoder clusters the states of that one, not of a new one."""
    from voxzoo.tasks.commands.cli import main
    from voxzoo.tasks.runs.unit_extractors import load_extractor

    part = _published(tmp_path / "hubert")
    rows = ["id\taudio\ttgt_audio\tsrc_lang\ttgt_lang"]
    for index in range(2):
        sound = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(index))
        soundfile.write(tmp_path / f"{index}.wav", sound.numpy(), 16000)
        rows.append(f"u{index}\t{index}.wav\t{index}.wav\teng\tspa")
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    folder = tmp_path / "hubert"
    overrides = ["unit_extractor=encoder", "unit_extractor.num_units=5", "unit_extractor.layer=2"]
    overrides += ["speech_encoder=pretrained", f"speech_encoder.pretrained={folder}"]
    overrides += ["frontend=pretrained", f"frontend.pretrained={folder}"]
    command = ["units", "fit", str(tmp_path / "train.tsv"), "--out", str(tmp_path / "units"), "--set", *overrides]
    assert main(command) == 0
    units = load_extractor(tmp_path / "units")
    assert isinstance(units, KMeansUnits)
    found = units.encoder.state_dict()  # pyright: ignore[reportOptionalMemberAccess]
    assert all(torch.equal(value, found[key]) for key, value in part.state_dict().items())
    part.layer = 2
    sound = torch.randn(3000)
    with torch.no_grad():
        expected = part(Padded.from_list([RawWaveform(normalise=True)(sound)])).data
    torch.testing.assert_close(units.features(Padded.from_list([sound])).data, expected, atol=1e-5, rtol=1e-5)


# What is refused, and the rest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_dims": (4, 4)}, "one entry for each convolution; got 2, 3 and 3"),
        ({"layer": 4}, "layer must be between 0 and num_layers=3"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"position_groups": 5}, "multiple of position_groups; got dim=12, position_groups=5"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"mask_time_prob": 0.1}, "needs mask_embedding=true"),
        ({"mask_time_prob": 1.5, "mask_embedding": True}, "mask_time_prob must be between 0 and 1"),
        ({"mask_feature_length": 0}, "mask_feature_length must be at least 1"),
        ({"leak_padding": "some"}, "none, norm or all; got 'some'"),
        ({"conv_norm": "batch"}, "group or layer; got 'batch'"),
        ({"input_dim": 80}, "reads samples"),
        ({"conv_kernels": (10, 0, 2)}, "must be at least 1; got 10, 0 and 2"),
        ({"layer_drop": 1.0}, "layer_drop must be"),
    ],
)
def test_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*" + message.replace("(", r"\(")):
        encoder(**settings)


def test_features_are_no_samples() -> None:
    with pytest.raises(ValueError, match="takes samples"):
        encoder()(Padded.from_list([torch.randn(50, 80)]))
