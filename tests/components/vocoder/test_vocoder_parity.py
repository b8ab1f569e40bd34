"""The unit vocoder against SeamlessM4T's code HiFi-GAN in transformers, both versions: random weights, odd sizes."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from against import fill
from torch import Tensor, nn
from voxzoo.components import CodeHiFiGAN
from voxzoo.components.converters.code_hifi_gan import vocoder_rules
from voxzoo.components.converters.keymap import KeyMap
from voxzoo.components.types import Padded

transformers = pytest.importorskip("transformers")

UNITS, LANGS, SPEAKERS = 23, 3, 5
SHAPES: dict[str, dict[str, Any]] = {
    "two stages": {
        "unit_dim": 13, "lang_dim": 4, "speaker_dim": 6, "channels": 12, "upsample_rates": [3, 2],
        "upsample_kernels": [7, 4], "resblock_kernels": [3], "resblock_dilations": [[1, 2]], "slope": 0.2,
    },
    "wide blocks": {
        "unit_dim": 8, "lang_dim": 3, "speaker_dim": 3, "channels": 20, "upsample_rates": [2, 5],
        "upsample_kernels": [2, 13], "resblock_kernels": [3, 9, 5], "resblock_dilations": [[1, 3, 5], [4], [2, 7]],
    },
    "published rates": {
        "unit_dim": 10, "lang_dim": 5, "speaker_dim": 2, "channels": 40, "upsample_rates": [5, 4, 4, 2, 2],
        "upsample_kernels": [11, 8, 8, 4, 4], "resblock_kernels": [3, 7, 11], "resblock_dilations": [[1, 3, 5]] * 3,
    },
    "one stage": {
        "unit_dim": 7, "lang_dim": 1, "speaker_dim": 9, "channels": 6, "upsample_rates": [4], "upsample_kernels": [6],
        "resblock_kernels": [5, 3], "resblock_dilations": [[3], [1, 2, 1, 4]],
    },
}  # fmt: skip
CASES = [(version, name) for version in (1, 2) for name in SHAPES]


def reference_of(version: int, shape: dict[str, Any]) -> nn.Module:
    if version == 1:
        from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan as Reference

        config_class = transformers.SeamlessM4TConfig
    else:
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2CodeHifiGan as Reference

        config_class = transformers.SeamlessM4Tv2Config
    names = {
        "unit_dim": "unit_embed_dim",
        "lang_dim": "lang_embed_dim",
        "speaker_dim": "spkr_embed_dim",
        "channels": "upsample_initial_channel",
        "upsample_kernels": "upsample_kernel_sizes",
        "resblock_kernels": "resblock_kernel_sizes",
        "resblock_dilations": "resblock_dilation_sizes",
        "slope": "leaky_relu_slope",
    }
    settings = {names.get(key, key): value for key, value in shape.items()}
    return Reference(
        config_class(
            unit_hifi_gan_vocab_size=UNITS,
            vocoder_num_langs=LANGS,
            vocoder_num_spkrs=SPEAKERS,
            var_pred_dropout=0.0,
            **settings,
        )
    )


def pair(version: int, name: str, **switches: Any) -> tuple[nn.Module, CodeHiFiGAN]:
    """Both with the same shaken weights; predicted durations of about 1 to 6 frames."""
    torch.manual_seed(len(name) + version)
    shape = SHAPES[name]
    reference = reference_of(version, shape).eval()
    with torch.no_grad():
        for key, value in reference.named_parameters():
            value.add_(torch.randn_like(value) * (0.6 if "embedding" in key else 0.08))
        reference.dur_predictor.proj.bias.fill_(1.3)
        reference.dur_predictor.proj.weight.mul_(4)
    ours = CodeHiFiGAN(UNITS, num_langs=LANGS, num_speakers=SPEAKERS, **{"dropout": 0.0, **shape, **switches}).eval()
    fill(ours, KeyMap(vocoder_rules("")), reference.state_dict(), "vocoder.")
    return reference, ours


def rows_of(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(3)
    return Padded.from_list([torch.randint(UNITS, (n,), generator=generator) for n in lengths])


def theirs(reference: nn.Module, units: Tensor, lang: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
    samples, lengths = reference(units, speaker[:, None], lang[:, None])
    return samples, lengths.reshape(-1)


@pytest.mark.parametrize(("version", "name"), CASES)
def test_single_rows(version: int, name: str):
    reference, ours = pair(version, name)
    seen = set()
    for length, lang, speaker in ((1, 0, 4), (9, 2, 0), (24, 1, 3)):
        units = rows_of(length)
        lang, speaker = torch.tensor([lang]), torch.tensor([speaker])
        with torch.inference_mode():
            samples, _ = theirs(reference, units.data, lang, speaker)
            audio = ours(units, lang, speaker)
            seen.update(ours.durations.predict(units.with_data(ours.units(units.data))).data.flatten().tolist())
        assert audio.lengths.tolist() == [samples.shape[1]]
        assert samples.std() > 1e-3  # else nothing is compared
        torch.testing.assert_close(audio.data, samples, atol=1e-5, rtol=1e-5)
    assert len(seen) > 2, "durations do not vary"


@pytest.mark.parametrize(("version", "name"), CASES)
def test_padded_batch_counted_as_published(version: int, name: str):
    """Waveform (padding included) and lengths are the reference's, its mistakes too."""
    reference, ours = pair(version, name, published_lengths=True)
    units = rows_of(7, 12, 3, 12)
    units.data[1, 4:6] = 1  # what it takes for padding
    lang, speaker = torch.tensor([0, 1, 2, 1]), torch.tensor([4, 0, 2, 1])
    with torch.inference_mode():
        samples, lengths = theirs(reference, units.data.masked_fill(~units.mask, 1), lang, speaker)
        audio = ours(units, lang, speaker)
    assert audio.lengths.tolist() == lengths.tolist()
    torch.testing.assert_close(audio.data, samples, atol=1e-5, rtol=1e-5)


def test_correct_lengths_differ_from_the_published_ones_where_they_are_wrong():
    units = rows_of(7, 12)
    units.data[units.data == 1] = 2
    units.data[1, 4:6] = 1
    lang = speaker = torch.tensor([0, 0])
    durations = units.with_data(torch.full_like(units.data, 2)).zeroed()
    _, ours = pair(1, "two stages")
    assert ours(units, lang, speaker, durations).lengths.tolist() == [7 * 2 * 6, 12 * 2 * 6]
    _, published = pair(1, "two stages", published_lengths=True)
    # Row 0 is a unit too long (of no duration here), row 1 short by its two units 1, one of which that hides.
    assert published(units, lang, speaker, durations).lengths.tolist() == [7 * 2 * 6, 11 * 2 * 6]


@pytest.mark.parametrize(("version", "name"), CASES)
def test_gradients(version: int, name: str):
    reference, ours = pair(version, name, published_lengths=True)
    units = rows_of(5, 8)
    lang, speaker = torch.tensor([2, 0]), torch.tensor([1, 3])
    samples, _ = theirs(reference, units.data.masked_fill(~units.mask, 1), lang, speaker)
    weight = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    (samples * weight).sum().backward()
    (ours(units, lang, speaker).data * weight).sum().backward()
    expected = {k: p.grad for k, p in reference.named_parameters() if p.grad is not None}
    assert len(expected) == len([k for k, _ in reference.named_parameters() if not k.startswith("dur_predictor")])
    found = KeyMap(vocoder_rules("")).load(expected).state
    compared = 0
    for key, parameter in ours.named_parameters():
        if parameter.grad is not None:
            wanted = found[f"vocoder.{key}"]
            scale = wanted.abs().max()
            assert scale > 0, key
            torch.testing.assert_close(parameter.grad / scale, wanted / scale, atol=1e-5, rtol=1e-4, msg=key)
            compared += 1
    assert compared == len(expected)


@pytest.mark.parametrize("version", [1, 2])
def test_duration_predictor_and_its_gradients(version: int):
    reference, ours = pair(version, "wide blocks")
    units = rows_of(11)
    expected = reference.dur_predictor(reference.unit_embedding(units.data))
    found = ours.durations(units.with_data(ours.units(units.data))).data
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {k: p.grad for k, p in reference.named_parameters() if p.grad is not None}
    assert len(gradients) == 11
    for key, value in KeyMap(vocoder_rules("")).load(gradients).state.items():
        torch.testing.assert_close(ours.get_parameter(key.removeprefix("vocoder.")).grad, value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_round_trip_is_bit_equal_and_full_size_is_the_published_one(version: int):
    reference, ours = pair(version, "published rates")
    state = {f"vocoder.{key}": value for key, value in ours.state_dict().items()}
    written = KeyMap(vocoder_rules("vocoder.")).save(state)
    expected = {f"vocoder.{key}": value for key, value in reference.state_dict().items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    with torch.device("meta"):
        full, published = CodeHiFiGAN(10000), reference_of(version, {})
        resized = nn.Embedding(10000, 1280), nn.Embedding(36, 256), nn.Embedding(200, 256)
        published.unit_embedding, published.language_embedding, published.speaker_embedding = resized
    shapes = {key: value.shape for key, value in full.state_dict().items()}
    loaded = KeyMap(vocoder_rules("")).load(published.state_dict())
    assert {key.removeprefix("vocoder."): value.shape for key, value in loaded.state.items()} == shapes
    assert sum(prod(shape) for shape in shapes.values()) == 41_911_362
