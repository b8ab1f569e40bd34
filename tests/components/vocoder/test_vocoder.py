"""Unit vocoders: lengths, padding, losses, learning."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import soundfile
import torch
from voxzoo.components import GriffinLimVocoder, ISTFTVocoder, KMeansUnits
from voxzoo.components.errors import UserError
from voxzoo.components.layers.griffin_lim import GriffinLim
from voxzoo.components.layers.mel import LogMel
from voxzoo.components.layers.stft import STFT
from voxzoo.components.types import Padded
from voxzoo.components.vocoder.unit_states import limit_peak, random_crops
from voxzoo.configs.build import build
from voxzoo.datamodules.manifest import Utterance, write_manifest
from voxzoo.tasks.commands import units as units_command
from voxzoo.tasks.runs.unit_extractors import load_extractor
from voxzoo.tasks.serving import resynthesis
from voxzoo.tasks.units import card_of, extract_units, fit_units, read_units

SMALL = {
    "num_units": 6,
    "dim": 16,
    "duration_dim": 8,
    "kernel_size": 3,
    "fft_size": 320,
    "window_length": 320,
    "num_mel_bins": 20,
}
MAKERS = {
    "griffin_lim": lambda **k: GriffinLimVocoder(**{**SMALL, "num_layers": 1, "iterations": 4, **k}),
    "istft": lambda **k: ISTFTVocoder(**{**SMALL, "hidden_dim": 24, "num_layers": 2, **k}),
}


@pytest.fixture(params=sorted(MAKERS))
def make(request):
    torch.manual_seed(0)
    return MAKERS[request.param]


def batch(*lengths: int, seed: int = 0) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    return Padded.from_list([torch.randint(6, (n,), generator=generator) for n in lengths])


def pairs(*lengths: int, seed: int = 0) -> tuple[Padded, Padded]:
    """Units and samples that belong together: each unit is a loudness and a pitch."""
    units = batch(*lengths, seed=seed)
    rows = []
    for row in units.unpad():
        each = row.repeat_interleave(320)
        phase = torch.cumsum((each + 1) * 0.06, 0)
        rows.append(0.05 * (1 + each) * torch.sin(phase))
    return units, Padded.from_list(rows)


def test_length_is_the_sum_of_durations(make):
    vocoder = make().eval()
    units, durations = batch(5, 3), Padded.from_list([torch.tensor([1, 2, 3, 1, 4]), torch.tensor([7, 1, 1])])
    audio = vocoder(units, durations=durations)
    assert audio.lengths.tolist() == [11 * 320, 9 * 320]
    assert audio.data.shape == (2, 11 * 320)
    assert (audio.data[~audio.mask] == 0).all()
    predicted = vocoder(units)
    assert (
        predicted.lengths.tolist()
        == (320 * vocoder.states.durations.predict(vocoder.states(units)).data.sum(1)).tolist()
    )


def test_audio_is_repeatable_audible_and_not_clipped(make):
    vocoder = make().eval()
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.mul_(3)  # an exploded network still may not clip
    units = batch(12)
    first, second = (vocoder(units, durations=units.with_data(torch.ones_like(units.data))).data for _ in range(2))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert first.abs().max() <= 0.951
    assert first.square().mean().sqrt() > 1e-5


def test_limit_peak_scales_rows_apart():
    audio = Padded(torch.tensor([[0.5, -3.8, 0.0], [0.1, 0.2, 9.0]]), torch.tensor([3, 2]))
    limited = limit_peak(audio).data
    torch.testing.assert_close(limited, torch.tensor([[0.125, -0.95, 0.0], [0.1, 0.2, 0.0]]))


def test_crops_are_random_by_the_global_seed(make):
    vocoder = make(crop_units=4).eval()
    data = pairs(30, 20)

    def mel(seed: int) -> float:
        torch.manual_seed(seed)
        return float(vocoder.losses(*data)["mel"].total.detach())

    assert mel(1) == mel(1)
    assert len({mel(seed) for seed in range(5)}) > 1


def test_crops_keep_units_and_samples_together():
    units = Padded.from_list([torch.arange(20), torch.arange(3)])
    speech = Padded.from_list([torch.arange(1, 20 * 10 + 1).float(), torch.arange(1, 28).float()])  # 3 samples short
    for seed in range(20):
        torch.manual_seed(seed)
        cropped, samples = random_crops(units, speech, 5, 10, 2)
        assert cropped.lengths.tolist() == [5, 3]
        start = int(cropped.data[0, 0])
        assert cropped.data[0].tolist() == list(range(start, start + 5))
        expected = torch.arange(start * 10 - 2, start * 10 + 52) + 1
        expected[(expected < 1) | (expected > 200)] = 0
        assert samples[0].tolist() == expected.tolist()
        assert samples[1].tolist() == [0, 0, *range(1, 28), *[0] * 25]


def test_units_of_another_rate_are_refused(make):
    units, speech = pairs(12, 9)
    with pytest.raises(ValueError, match=r"row 1 has 9 units of 320 samples but 1440 samples"):
        make().losses(units, Padded(speech.data, torch.tensor([3840, 1440])))


def test_conditions_change_the_voice_and_are_asked_for(make):
    vocoder = make(num_speakers=3, num_langs=2).eval()
    units = batch(6)
    ones = units.with_data(torch.ones_like(units.data))

    def voice(lang: int, speaker: int) -> torch.Tensor:
        return vocoder(units, torch.tensor([lang]), torch.tensor([speaker]), ones).data

    assert not torch.allclose(voice(0, 0), voice(0, 2), atol=1e-4)
    assert not torch.allclose(voice(0, 0), voice(1, 0), atol=1e-4)
    with pytest.raises(ValueError, match="3 values of `speaker`"):
        vocoder(units, lang=torch.tensor([0]))
    plain = make().eval()
    torch.testing.assert_close(plain(units, durations=ones).data, plain(units, None, torch.tensor([1]), ones).data)


def test_each_row_trains_its_own_language_and_speaker(make):
    vocoder = make(num_speakers=3, num_langs=3)
    rows = {"speaker": torch.tensor([1, 1]), "lang": torch.tensor([0, 2])}
    torch.stack([loss.total for loss in vocoder.losses(*pairs(12, 5), **rows).values()]).sum().backward()
    for table, reached in (
        (vocoder.states.langs, [True, False, True]),
        (vocoder.states.speakers, [False, True, False]),
    ):
        assert table.weight.grad.abs().sum(1).gt(0).tolist() == reached


def test_a_table_of_one_row_needs_no_index(make):
    vocoder = make(num_speakers=1, num_langs=1).eval()
    units = batch(6)
    ones = units.with_data(torch.ones_like(units.data))
    zero = torch.tensor([0])
    assert torch.equal(vocoder(units, durations=ones).data, vocoder(units, zero, zero, ones).data)


def test_durations_must_fit_the_units(make):
    with pytest.raises(ValueError, match="must have the shape of the units"):
        make()(batch(5), durations=batch(4))


def test_a_vocoder_learns(make):
    torch.manual_seed(0)
    vocoder = make(dim=32)
    optimizer = torch.optim.AdamW(vocoder.parameters(), 5e-3)
    data = pairs(16, 14, 12, 16)
    first = last = 0.0
    for _ in range(40):
        loss = torch.stack([value.mean for value in vocoder.losses(*data).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first or last
    assert last < 0.6 * first


def test_predicted_durations_follow_training(make):
    torch.manual_seed(0)
    vocoder = make(dropout=0.0)
    # Unit u always lasts u + 1 frames.
    order = torch.tensor([1, 3, 0, 4, 2, 5, 1, 0, 2, 4])
    units = Padded.from_list([order.repeat_interleave(order + 1)])
    optimizer = torch.optim.Adam(vocoder.states.parameters(), 1e-2)
    for _ in range(120):
        loss = vocoder.states.duration_loss(units)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    vocoder.eval()
    assert vocoder(Padded.from_list([order])).lengths.tolist() == [320 * int((order + 1).sum())]
    vocoder.duration_factor = 2.0
    assert vocoder(Padded.from_list([order])).lengths.tolist() == [320 * int(2 * (order + 1).sum())]


def test_griffin_lim_finds_a_signal():
    torch.manual_seed(0)
    mel = LogMel(num_mel_bins=40)
    samples = torch.sin(torch.arange(8000) * 0.3)[None] * 0.3 + 0.01 * torch.randn(1, 8000)
    magnitude = mel.stft(samples).abs()
    mask = torch.ones(magnitude.shape[:2], dtype=torch.bool)

    def convergence(iterations: int) -> float:
        rebuilt = mel.stft(GriffinLim(mel.stft, iterations)(magnitude, mask)).abs()
        return float((rebuilt - magnitude).norm() / magnitude.norm())

    assert convergence(32) < 0.15
    assert convergence(32) < 0.5 * convergence(0)
    with pytest.raises(ValueError, match="momentum"):
        GriffinLim(STFT(320, 320, 160), 8, 1.0)


def test_rows_without_units_give_no_audio(make):
    vocoder = make().eval()
    units = Padded(torch.tensor([[1, 2], [0, 0]]), torch.tensor([2, 0]))
    for given in (units, Padded(units.data[1:], units.lengths[1:])):
        for durations in (None, given.with_data(torch.ones_like(given.data))):
            audio = vocoder(given, durations=durations)
            assert audio.lengths[-1] == 0
            assert torch.isfinite(audio.data).all()
            assert all(len(row) == n for row, n in zip(audio.unpad(), audio.lengths.tolist()))


def test_mixed_precision_changes_little(make):
    vocoder = make(crop_units=100).eval()
    units, speech = pairs(9, 4)
    plain = vocoder.losses(units, speech)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vocoder.losses(units, speech)
        audio = vocoder(units, durations=units.with_data(torch.ones_like(units.data)))
    assert audio.data.dtype == torch.float32
    assert torch.isfinite(audio.data).all()
    for name, loss in plain.items():
        assert mixed[name].total.dtype == torch.float32
        torch.testing.assert_close(mixed[name].mean, loss.mean, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype_says_the_same(make, dtype):
    vocoder = make(crop_units=100).eval()
    units, speech = pairs(9, 4)
    durations = units.with_data(torch.ones_like(units.data)).zeroed()
    with torch.no_grad():
        plain, losses = vocoder(units, durations=durations), vocoder.losses(units, speech)
        vocoder.to(dtype)
        cast, same = vocoder(units, durations=durations), vocoder.losses(units, speech)
    assert torch.equal(cast.lengths, plain.lengths)
    spectra = [LogMel(num_mel_bins=20)(audio.data.float()) for audio in (cast, plain)]
    assert (spectra[0] - spectra[1]).abs().mean() < 0.1
    for name, loss in losses.items():
        torch.testing.assert_close(same[name].mean.float(), loss.mean, rtol=0.03, atol=0.01)


def test_runs_on_meta(make):
    with torch.device("meta"):
        vocoder = make()
    units = Padded(torch.zeros(2, 7, dtype=torch.int64, device="meta"), torch.tensor([7, 3]))
    ones = Padded(torch.ones(2, 7, dtype=torch.int64, device="meta"), units.lengths)
    for durations in (None, ones):
        audio = vocoder(units, durations=durations)
        assert audio.data.is_meta
        assert audio.data.shape == (2, 7 * 320)
        assert audio.lengths.tolist() == [7 * 320, 3 * 320]
    speech = Padded(torch.zeros(2, 7 * 320, device="meta"), units.lengths * 320)
    assert all(loss.total.is_meta for loss in vocoder.losses(units, speech).values())


# voxzoo units resynthesise


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a vocoder with its fitted extractor, and units that the extractor made."""
    torch.manual_seed(0)
    mel = {"fft_size": 320, "window_length": 320, "num_mel_bins": 20}
    config = {
        "task": {
            "_target_": "voxzoo.tasks.UnitVocoderTask",
            "vocoder": {"_target_": "voxzoo.components.GriffinLimVocoder", **SMALL, "num_layers": 1, "iterations": 4},
            "unit_extractor": {"_target_": "voxzoo.components.KMeansUnits", "num_units": 6, **mel},
        }
    }
    task = build(config["task"])
    rows = []
    for i, row in enumerate(pairs(12, 9, 15)[1].unpad()):
        soundfile.write(tmp_path / f"{i}.wav", row.numpy(), 16000)
        rows.append(Utterance(id=f"a/{i}", src_lang="eng", src_text="x", tgt_audio=str(tmp_path / f"{i}.wav")))
    fit_units(task.unit_extractor, rows)
    extract_units(task.unit_extractor, rows, path=tmp_path / "units.jsonl")
    torch.save({"state_dict": task.state_dict(), "voxzoo": {"config": config, "assets": {}}}, tmp_path / "vocoder.ckpt")
    return tmp_path, task.eval()


def command(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    units_command.configure(parser)
    arguments = parser.parse_args(list(words))
    arguments.json = True
    return units_command.run(arguments)


def test_resynthesise_writes_what_the_vocoder_says(trained):
    folder, task = trained
    call = ["resynthesise", str(folder / "vocoder.ckpt"), str(folder / "units.jsonl"), "--out", str(folder / "wavs")]
    result = command(*call, "--batch-size", "2")
    assert result["status"] == "ok"
    assert [Path(file).name for file in result["files"]] == ["a_0.wav", "a_1.wav", "a_2.wav"]
    assert result["seconds"] == pytest.approx(36 * 0.02)
    units = Padded.from_list([torch.tensor(ids) for _, ids in read_units(folder / "units.jsonl")])
    expected = task.vocoder(units, durations=units.with_data(torch.ones_like(units.data))).unpad()
    for file, audio in zip(result["files"], expected):
        written, rate = soundfile.read(file, dtype="float32")
        assert rate == 16000
        torch.testing.assert_close(torch.from_numpy(written), audio, atol=2e-3, rtol=0)
    reduced = command(*call, "--predict-durations", "--limit", "1")
    assert len(reduced["files"]) == 1


def test_resynthesise_leaves_out_what_is_too_long_and_speaks_the_others(trained, capsys):
    folder, _ = trained
    lines = [{"id": name, "units": [1] * count} for name, count in (("a", 9), ("long", 2_000_000), ("b", 12))]
    (folder / "units.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "units.card.json").unlink()
    call = ["resynthesise", str(folder / "vocoder.ckpt"), str(folder / "units.jsonl"), "--out", str(folder / "wavs")]
    result = command(*call)
    assert [Path(file).name for file in result["files"]] == ["a.wav", "b.wav"]
    assert result["too_long"] == ["long"]
    assert "left out long: more than 16,384 units\n" in capsys.readouterr().err


def test_rows_of_units_go_together_as_far_as_one_may_be_long(monkeypatch):
    monkeypatch.setattr(resynthesis, "LONGEST_UNITS", 20)
    rows = [(str(number), [0] * size) for number, size in enumerate((3, 4, 5, 20, 9, 11, 2, 2, 2))]
    sizes = [[len(ids) for _, ids in chunk] for chunk in resynthesis._chunks(rows, 3)]
    assert sizes == [[3, 4, 5], [20], [9], [11], [2, 2, 2]]


def test_resynthesise_refuses_units_of_another_extractor(trained):
    folder, _ = trained
    other = KMeansUnits(6, fft_size=320, window_length=320, num_mel_bins=20)
    rows = [Utterance(id="x", src_lang="eng", src_text="x", tgt_audio=str(folder / "2.wav"))]
    fit_units(other, rows, seed=4)
    extract_units(other, rows, path=folder / "other.jsonl")
    call = ["resynthesise", str(folder / "vocoder.ckpt"), "--out", str(folder / "wavs")]
    with pytest.raises(UserError, match="their cards differ in centroids"):
        command(*call, str(folder / "other.jsonl"))
    (folder / "plain.jsonl").write_text('{"id": "x", "units": [1, 6]}\n')
    with pytest.raises(UserError, match="has unit 6, but the vocoder knows 0 to 5"):
        command(*call, str(folder / "plain.jsonl"))


def test_fit_takes_settings_and_writes_a_folder(trained):
    folder, _ = trained
    rows = [
        Utterance(id=str(i), src_lang="eng", tgt_lang="eng", src_text="x", tgt_audio=str(folder / f"{i}.wav"))
        for i in range(3)
    ]
    write_manifest(folder / "rows.jsonl", rows)
    settings = ["unit_extractor=tiny", "unit_extractor.num_units=5"]
    result = command(
        "fit", str(folder / "rows.jsonl"), "--out", str(folder / "made"), "--set", *settings, "--seed", "2"
    )
    assert result["utterances"] == 3
    made = load_extractor(folder / "made")
    assert made.num_units == 5
    assert card_of(made) == result["card"]
    with pytest.raises(UserError, match="num_unitz"):
        command("fit", str(folder / "rows.jsonl"), "--out", str(folder / "x"), "--set", "unit_extractor.num_unitz=5")
    with pytest.raises(UserError, match="give --encoder RUN"):
        command("fit", str(folder / "rows.jsonl"), "--out", str(folder / "x"), "--layer", "2")


def test_extract_reads_the_extractor_of_a_run(trained):
    folder, _ = trained
    write_manifest(
        folder / "again.jsonl",
        [Utterance(id="a/1", src_lang="eng", tgt_lang="eng", src_text="x", tgt_audio=str(folder / "1.wav"))],
    )
    call = [
        "extract",
        str(folder / "vocoder.ckpt"),
        str(folder / "again.jsonl"),
        "--out",
        str(folder / "again.out.jsonl"),
    ]
    assert command(*call)["units"] == 9
    assert dict(read_units(folder / "again.out.jsonl"))["a/1"] == dict(read_units(folder / "units.jsonl"))["a/1"]
