"""Languages and speakers of vocoders and second passes, in training, in resynthesis and in `voxzoo check`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from voxzoo.components import CodeHiFiGAN, GriffinLimVocoder, HiFiGANDiscriminator, ISTFTVocoder
from voxzoo.components.errors import UserError
from voxzoo.components.types import Batch, Padded
from voxzoo.configs.check import require_valid
from voxzoo.configs.compose import compose
from voxzoo.tasks import GanVocoder, UnitVocoderTask
from voxzoo.tasks.planning.plan import plan_run
from voxzoo.tasks.planning.shapes import trace

MEL = {"fft_size": 320, "window_length": 320, "num_mel_bins": 20}
CODE = {
    "unit_dim": 8, "lang_dim": 4, "speaker_dim": 4, "channels": 16, "upsample_rates": [8, 8, 5],
    "upsample_kernels": [16, 16, 11], "resblock_kernels": [3], "resblock_dilations": [[1]], "crop_units": 4,
    "num_langs": 3, "num_speakers": 4, **MEL,
}  # fmt: skip
SPEAKERS = {"speakers": {"eng": [0], "deu": [2, 1], "spa": [3]}, "default_speaker": "first_of_language"}
PLAIN = {"dim": 8, "num_layers": 1, "kernel_size": 3, "duration_dim": 8, "num_langs": 3, **MEL}
DISCRIMINATOR = {
    "periods": [2], "num_scales": 1, "period_channels": [4], "scale_channels": [4], "scale_kernels": [15],
    "scale_strides": [1], "scale_groups": [1],
}  # fmt: skip
NAMES = ["eng", "deu", "spa"]


def vocoder(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    if kind == "code":
        return CodeHiFiGAN(6, **{**CODE, **settings})
    if kind == "griffin_lim":
        return GriffinLimVocoder(6, iterations=2, **{**PLAIN, **settings})
    return ISTFTVocoder(6, hidden_dim=16, **{**PLAIN, **settings})


def task(kind: str, part: Any, **settings: Any) -> UnitVocoderTask:
    if kind == "gan":
        return GanVocoder(vocoder=part, discriminator=HiFiGANDiscriminator(**DISCRIMINATOR), **settings)
    return UnitVocoderTask(vocoder=part, **settings)


def batch(*languages: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = [9 - row for row in range(len(languages))]
    units = [torch.randint(6, (n,), generator=generator) for n in sizes]
    speech = [0.1 * torch.randn(320 * n, generator=generator) for n in sizes]
    ids = tuple(map(str, sizes))
    return Batch(ids, tgt_lang=languages, units=Padded.from_list(units), target_speech=Padded.from_list(speech))


def reached(table: Any) -> list[int]:
    return [] if table.weight.grad is None else table.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "name"), [("unit", "code"), ("unit", "griffin_lim"), ("unit", "istft"), ("gan", "code"), ("gan", "istft")]
)
def test_rows_train_their_own_language(kind: str, name: str):
    more = {"default_language": 0, **SPEAKERS} if name == "code" else {}
    made = task(kind, vocoder(name, **more), vocoder_languages=NAMES).train()
    losses, _ = made.measure(batch("deu", "spa"))
    made.weighted(losses).backward()
    part: Any = made.vocoder
    assert reached(part.langs if name == "code" else part.states.langs) == [1, 2]
    if name == "code":
        assert reached(part.speakers) == [2, 3]  # the first of each language, as in serving


@pytest.mark.parametrize("kind", ["unit", "gan"])
def test_a_speaker_is_told_and_a_row_that_has_one_keeps_it(kind: str):
    made = task(kind, vocoder("code", **SPEAKERS), vocoder_languages=NAMES, speaker=1).train()
    rows = batch("deu", "spa")
    for given, expected in ((rows, [1]), (replace(rows, speaker=torch.tensor([0, 3])), [0, 3])):
        made.zero_grad()
        made.weighted(made.measure(given)[0]).backward()
        assert reached(made.vocoder.speakers) == expected


@pytest.mark.parametrize("kind", ["unit", "gan"])
def test_languages_that_nobody_named_are_refused_in_training(kind: str):
    made = task(kind, vocoder("code", default_language=0, **SPEAKERS))
    words = r"task\.vocoder_languages names none, but vocoder\.num_langs is 3: .* its table: \[eng,deu,spa\]"
    with pytest.raises(UserError, match=words):
        made.measure(batch("deu", "spa"))
    assert made.resynthesise(batch("deu", "spa")) is not None  # the vocoder's default will do there
    made = task(kind, vocoder("istft", num_speakers=2), vocoder_languages=NAMES)
    with pytest.raises(
        UserError, match=r"task\.speaker is null, but vocoder\.num_speakers is 2: set it to one of 0 to"
    ):
        made.measure(batch("deu", "spa"))
    with pytest.raises(UserError, match=r"no speech output in fra \(task\.vocoder_languages\): .* leave its rows out"):
        made.measure(batch("deu", "fra"))
    with pytest.raises(UserError, match=r"vocoder\.num_langs is 3, but the batch has no languages: give tgt_lang"):
        made.measure(replace(batch("deu", "spa"), tgt_lang=()))


def test_a_vocoder_of_one_language_needs_no_name():
    for name in ("code", "griffin_lim", "istft"):
        made = task("unit", vocoder(name, num_langs=1))
        made.weighted(made.measure(batch("deu", "spa"))[0]).backward()


@pytest.mark.parametrize("more", [{}, {"default_language": 0}])
def test_resynthesis_speaks_each_language_in_the_voice_of_serving(more: dict[str, Any]):
    part = vocoder("code", **SPEAKERS, **more).eval()
    rows = batch("deu", "eng")
    assert rows.units is not None
    ones = rows.units.with_data(torch.ones_like(rows.units.data))

    def said(*speakers: int) -> list[Tensor]:
        with torch.inference_mode():
            return part(rows.units, torch.tensor([1, 0]), torch.tensor(speakers), ones).unpad()

    for speaker, expected in ((None, said(2, 0)), (3, said(3, 3))):
        made = task("unit", part, vocoder_languages=NAMES, speaker=speaker).eval()
        for found in (made.resynthesise(rows), [p.audio for p in made.predict(rows)]):
            assert found is not None
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(said(2, 0)[0], said(3, 3)[0])
    made = task("unit", vocoder("code").eval())
    with pytest.raises(UserError, match=r"task\.vocoder_languages names none, but vocoder\.num_langs is 3"):
        made.resynthesise(rows)


@pytest.mark.parametrize("kind", ["unit", "gan"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocoder_languages": [*NAMES, "fra"]}, r"task\.vocoder_languages names 4, but vocoder\.num_langs is 3"),
        ({"speaker": 4}, r"task\.speaker=4: expected 0 to 3 \(vocoder\.num_speakers is 4\), or null"),
        ({"speaker": -1}, r"task\.speaker=-1: expected 0 to 3"),
    ],
)
def test_voices_beyond_the_tables_are_refused(kind: str, settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        task(kind, vocoder("code"), **settings)


def test_a_vocoder_without_tables_takes_the_settings_of_another():
    part = vocoder("griffin_lim", num_langs=0)
    made = task("unit", part, vocoder_languages=NAMES, speaker=7)
    made.measure(batch("deu", "spa"))


UNITY = ["task=speech_to_speech_unity", "t2u=tiny", "vocoder=tiny"]
AR = ["t2u=autoregressive", "t2u.dim=16", "t2u.ffn_dim=32", "t2u.num_encoder_layers=1", "t2u.num_decoder_layers=1"]
CODES = "task.vocoder_languages=[spa,eng]"
TOKENS = "task.t2u_languages=[spa,eng]"


@pytest.mark.parametrize(
    "words",
    [
        [*UNITY, "vocoder.num_langs=2", CODES],
        [*UNITY, CODES],  # a vocoder without languages in place of one that has some
        [*UNITY, TOKENS],  # likewise, a second pass
        [*UNITY, TOKENS, "t2u=tiny_unity2"],
        [*UNITY, *AR, TOKENS, "t2u.num_languages=2"],
        ["task=unit_vocoder", "vocoder=tiny", "vocoder.num_langs=2", CODES],
        ["task=gan_vocoder", "vocoder=tiny_hifi_gan", "discriminator=tiny", "vocoder.num_langs=2", CODES],
    ],
)
def test_check_takes_named_languages(tiny: list[str], words: list[str]):
    config = compose([*tiny, "unit_extractor=tiny", *words])
    require_valid(config)
    assert all(row.output for row in trace(config) if row.part in ("t2u", "vocoder"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*UNITY, "vocoder.num_langs=2"], "task.vocoder_languages names none, but vocoder.num_langs is 2"),
        ([*UNITY, "vocoder.num_langs=1", CODES], "task.vocoder_languages names 2, but vocoder.num_langs is 1"),
        ([*UNITY, "vocoder.num_speakers=3", "task.speaker=7"], "task.speaker=7: expected 0 to 2"),
        ([*UNITY, *AR, TOKENS], "task.t2u_languages names 2, but t2u.num_languages is 0"),
        # A default would train every row as that language.
        (
            [*UNITY, *AR, "t2u.num_languages=2", "t2u.default_language=0"],
            "task.t2u_languages names none, but t2u.num_languages is 2",
        ),
        (
            ["task=unit_vocoder", "vocoder=seamless_m4t_v2"],
            "task.vocoder_languages names none, but vocoder.num_langs is 36: name each, in the order of its table: [",
        ),
    ],
)
def test_check_refuses_what_training_or_serving_would(tiny: list[str], words: list[str], message: str):
    with pytest.raises(UserError) as error:
        trace(compose([*tiny, "unit_extractor=tiny", *words]))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["task=unit_vocoder", "vocoder=tiny", "vocoder.num_langs=2", CODES],
        # Mel tables of no other test: they are kept.
        ["task=unit_vocoder", "vocoder=tiny_hifi_gan", "vocoder.num_mel_bins=19", "vocoder.num_langs=2", CODES],
        pytest.param([*UNITY, *AR, TOKENS, "t2u.num_languages=2"], marks=pytest.mark.slow),
    ],
)
def test_a_plan_has_languages(tiny: list[str], words: list[str]):
    plan = plan_run(compose([*tiny, "unit_extractor=tiny", *words]))
    assert plan is not None
    assert plan.flops > 0
