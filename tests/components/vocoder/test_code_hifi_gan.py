"""The unit vocoder of SeamlessM4T: lengths, padding, conditions, losses, switches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from voxzoo.components import CodeHiFiGAN
from voxzoo.components.converters.code_hifi_gan import SPEAKERS
from voxzoo.components.layers import hifi_gan
from voxzoo.components.layers.hifi_gan import HiFiGANGenerator
from voxzoo.components.types import Padded

SMALL: dict[str, Any] = {
    "num_units": 11,
    "unit_dim": 8,
    "num_langs": 3,
    "lang_dim": 3,
    "num_speakers": 6,
    "speaker_dim": 4,
    "channels": 32,
    "default_language": 1,
    "dropout": 0.0,
    "fft_size": 320,
    "window_length": 320,
    "num_mel_bins": 20,
    "crop_units": 6,
}
HOP = 320
CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "vocoder"


def make(**settings: Any) -> CodeHiFiGAN:
    torch.manual_seed(0)
    vocoder = CodeHiFiGAN(**{**SMALL, **settings})
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        vocoder.durations.proj.bias.fill_(1.2)
        vocoder.durations.proj.weight.mul_(5)
    return vocoder.eval()


def rows_of(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.from_list([torch.randint(11, (n,), generator=generator) for n in lengths])


def pairs(*lengths: int) -> tuple[Padded, Padded]:
    """Units and samples that belong together: each unit is a loudness and a pitch."""
    units = rows_of(*lengths)
    samples = [
        0.05 * (1 + each) * torch.sin(torch.cumsum((each + 1) * 0.06, 0))
        for each in (row.repeat_interleave(HOP) for row in units.unpad())
    ]
    return units, Padded.from_list(samples)


@pytest.mark.parametrize("lengths", [(9, 17, 1, 5), (4, 4), (1, 30)])
@pytest.mark.parametrize("given", [True, False])
def test_a_row_in_a_batch_is_the_row_alone(lengths: tuple[int, ...], given: bool):
    vocoder = make()
    units = rows_of(*lengths)
    durations = units.with_data(torch.randint(1, 4, units.data.shape)).zeroed() if given else None
    lang, speaker = torch.arange(len(lengths)) % 3, torch.arange(len(lengths))
    batch = vocoder(units, lang, speaker, durations)
    assert batch.data[batch.mask].std() > 1e-3
    assert batch.data[~batch.mask].eq(0).all()
    assert batch.data.shape[1] == int(batch.lengths.max())
    for i, (row, audio) in enumerate(zip(units.unpad(), batch.unpad())):
        own = None if durations is None else Padded.from_list([durations.unpad()[i]])
        alone = vocoder(Padded.from_list([row]), lang[i : i + 1], speaker[i : i + 1], own)
        assert alone.lengths.tolist() == [alone.data.shape[1]] == [len(audio)]
        torch.testing.assert_close(audio, alone.data[0], atol=1e-5, rtol=1e-5)


SHAPES: list[dict[str, Any]] = [
    {},
    {"upsample_rates": (2, 2), "upsample_kernels": (14, 4), "resblock_kernels": (3,), "resblock_dilations": ((1,),)},
    {"upsample_rates": (2,), "upsample_kernels": (4,), "resblock_kernels": (9,), "resblock_dilations": ((1, 6),)},
    {"upsample_rates": (8, 5), "upsample_kernels": (8, 5), "resblock_kernels": (1,), "resblock_dilations": ((1,),)},
]


@pytest.mark.parametrize("factor", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gap_between_packed_rows_is_as_wide_as_it_must_be(shape: dict[str, Any], factor: int):
    """With random states; a gap of nothing lets rows hear each other."""
    torch.manual_seed(0)
    generator = HiFiGANGenerator(6, 32, **shape)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        states = Padded.from_list([torch.randn(n, 6) for n in (3, 8, 5)])
        generator.gap *= factor
        rows = generator(states).unpad()
        alone = [generator(Padded.from_list([row])).data[0] for row in states.unpad()]
    same = all(torch.allclose(row, own, atol=1e-5) for row, own in zip(rows, alone))
    assert same == bool(factor)


@pytest.mark.parametrize("factor", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [(470,), (440, 440), (300, 90, 200)])
def test_long_rows_in_blocks_are_the_rows_whole(
    shape: dict[str, Any], lengths: tuple[int, ...], factor: int, monkeypatch: pytest.MonkeyPatch
):
    """Of packed rows too; blocks that do not overlap are heard."""
    torch.manual_seed(0)
    generator = HiFiGANGenerator(6, 32, **shape)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    states = Padded.from_list([torch.randn(n, 6) for n in lengths])
    whole = generator(states).data.detach()
    monkeypatch.setattr(hifi_gan, "_BLOCK", 40)
    generator.reach *= factor
    ran: list[int] = []
    real = HiFiGANGenerator._samples
    monkeypatch.setattr(HiFiGANGenerator, "_samples", lambda *args: ran.append(1) or real(*args))
    with torch.no_grad():
        blocks = generator(states).data
    assert len(ran) > 1
    assert torch.allclose(blocks, whole, atol=1e-6) == bool(factor)


def test_length_is_the_sum_of_durations_and_none_is_silence():
    vocoder = make()
    units = rows_of(5, 3, 2)
    durations = Padded.from_list([torch.tensor([1, 2, 3, 0, 4]), torch.tensor([7, 1, 1]), torch.tensor([0, 0])])
    audio = vocoder(units, durations=durations)
    assert audio.lengths.tolist() == [10 * HOP, 9 * HOP, 0]
    nothing = vocoder(rows_of(2), durations=Padded(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2])))
    assert nothing.lengths.tolist() == [0]
    with pytest.raises(ValueError, match=r"durations \(1, 3\) must have the shape of the units, \(1, 2\)"):
        vocoder(rows_of(2), durations=rows_of(3))


def test_predicted_durations_on_demand_or_always():
    units = rows_of(6)
    ones = units.with_data(torch.ones_like(units.data))
    without, always = make(), make(predict_durations="always")
    predicted = without(units)
    assert predicted.lengths.tolist() != [6 * HOP]
    assert without(units, durations=ones).lengths.tolist() == [6 * HOP]
    assert torch.equal(always(units, durations=ones).data, predicted.data)
    assert make(duration_factor=2.0)(units).lengths > predicted.lengths


def test_language_and_speaker_left_out_are_the_defaults():
    speakers = {"arb": [4], "ben": [2, 1], "cat": [5, 3]}
    vocoder = make(speakers=speakers, default_speaker="first_of_language")
    units, ones = rows_of(4, 4, 4), Padded(torch.ones(3, 4, dtype=torch.int64), torch.tensor([4] * 3))
    lang = torch.tensor([2, 0, 1])

    def audio(vocoder, lang=None, speaker=None):
        return vocoder(units, lang, speaker, ones).data

    assert torch.equal(audio(vocoder, lang), audio(vocoder, lang, torch.tensor([5, 4, 2])))
    assert torch.equal(audio(vocoder, lang, torch.tensor([-1, 0, 1])), audio(vocoder, lang, torch.tensor([5, 0, 1])))
    assert torch.equal(audio(vocoder), audio(vocoder, torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])))
    zero = make(speakers=speakers)
    assert torch.equal(audio(zero, lang), audio(zero, lang, torch.tensor([0, 0, 0])))
    assert not torch.allclose(audio(zero, lang), audio(vocoder, lang))
    with pytest.raises(ValueError, match="this vocoder has 3 languages: give lang"):
        make(default_language=None)(units)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsample_kernels": [11, 8, 8, 4, 5]}, "5 must be the rate 2 plus an even number"),
        ({"upsample_kernels": [11, 8]}, "one entry per entry of upsample_rates"),
        ({"resblock_kernels": [3, 4, 5]}, "must be odd"),
        ({"resblock_dilations": [[1], []]}, "one list of dilations per entry"),
        ({"channels": 16}, "take at least 32"),
        ({"default_language": 3}, "default_language=3 must be 0 to num_langs - 1 = 2"),
        ({"default_speaker": 6}, "default_speaker=6 must be 0 to num_speakers - 1 = 5"),
        ({"default_speaker": "first_of_language"}, "needs `speakers` of all 3 languages; it has those of 0"),
        ({"speakers": {"arb": [6]}}, "arb: 6, but speakers are 0 to"),
        ({"speakers": {key: [1] for key in "abcd"}}, "names 4 languages, but num_langs=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CodeHiFiGAN(**{**SMALL, **settings})


def test_it_learns():
    vocoder = make().train()
    optimizer = torch.optim.AdamW(vocoder.parameters(), 2e-3)
    units, speech = pairs(8, 6, 7)
    values = []
    for _ in range(30):
        losses = vocoder.losses(units, speech)
        total = losses["mel"].mean + losses["duration"].mean
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert sum(values[-5:]) < 0.6 * sum(values[:5])


def test_inference_mode_first_then_training():
    vocoder = make()
    with torch.inference_mode():
        vocoder.losses(*pairs(3))
    losses = vocoder.losses(*pairs(3))
    (losses["mel"].total + losses["duration"].total).backward()


def test_built_on_the_meta_device_and_filled():
    vocoder = make()
    with torch.device("meta"):
        empty = CodeHiFiGAN(**SMALL)
        units = Padded(torch.zeros(2, 7, dtype=torch.int64), torch.tensor([7, 4], device="cpu"))
        assert empty(units).data.shape == (2, 7 * HOP)
    empty.load_state_dict(vocoder.state_dict(), assign=True)
    units, speech = pairs(5, 3)
    assert torch.equal(empty.eval()(units).data, vocoder(units).data)
    empty.losses(units, speech)


@pytest.mark.parametrize("version", [1, 2])
def test_shipped_speakers_are_those_of_the_converter(version: int):
    node: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"seamless_m4t_v{version}.yaml"))
    assert list(node["speakers"].items()) == list(SPEAKERS[version].items())
    assert len(node["speakers"]) == node["num_langs"]
    everyone = [speaker for of in node["speakers"].values() for speaker in of]
    assert sorted(everyone) == [*range(72 if version == 1 else 75)]
    assert [*node["speakers"]][node["default_language"]] == "eng"
