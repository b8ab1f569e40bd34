"""KMeansUnits and its blocks: k-means, the aligned STFT, log-mel."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from voxzoo.components import KMeansUnits
from voxzoo.components.errors import UserError
from voxzoo.components.layers.kmeans import kmeans, lloyd, nearest
from voxzoo.components.layers.mel import LogMel
from voxzoo.components.layers.stft import STFT
from voxzoo.components.roles import Frontend, SpeechEncoder
from voxzoo.components.types import Padded
from voxzoo.datamodules.manifest import Utterance, read_manifest, write_manifest
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.fit_units import FitUnits
from voxzoo.tasks.runs.initial import load_parts
from voxzoo.tasks.runs.unit_extractors import load_extractor, save_extractor
from voxzoo.tasks.units import card_of, extract_units, fit_units, read_units

RATE = 16000
TONES = (300.0, 900.0, 2000.0, 4500.0)


def tone(frequency: float, samples: int) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * frequency * torch.arange(samples) / RATE)


def melody(generator: torch.Generator, notes: int = 6, length: int = 1600) -> tuple[torch.Tensor, list[int]]:
    order = torch.randint(len(TONES), (notes,), generator=generator).tolist()
    return torch.cat([tone(TONES[i], length) for i in order]), order


def noise(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(n, generator=generator) for n in lengths]


def tiny(**changes) -> KMeansUnits:
    return KMeansUnits(**{"num_units": 4, "fft_size": 320, "window_length": 320, "num_mel_bins": 20, **changes})


@pytest.fixture
def fitted() -> KMeansUnits:
    part = tiny(num_units=8)
    part.fit([Padded.from_list(noise(8000, 7000, seed=3))])
    return part


# k-means


def test_kmeans_finds_planted_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(12, 5, generator=generator)
    label = torch.randint(12, (3000,), generator=generator)
    points = centres[label] + 0.1 * torch.randn(3000, 5, generator=generator)
    centroids, inertia = kmeans(points, 12, seed=1)
    assert torch.cdist(centres, centroids).min(1).values.max() < 0.1
    assert inertia == pytest.approx(5 * 0.01, rel=0.1)


def test_nearest_is_exact_and_independent_of_chunks():
    points, centroids = torch.randn(100, 7), torch.randn(9, 7)
    label, distance = nearest(points, centroids, chunk=13)
    table = (points[:, None] - centroids).square().sum(2)
    assert torch.equal(label, table.argmin(1))
    torch.testing.assert_close(distance, table.min(1).values, atol=1e-4, rtol=1e-4)


def test_empty_clusters_are_seeded_again():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    start = torch.cat([points[:3], torch.full((2, 3), 1e6)])  # two centroids that no point is near to
    centroids, _ = lloyd(points, start, 20)
    assert nearest(points, centroids)[0].unique().numel() == 5


def test_kmeans_of_equal_points_and_of_too_few():
    centroids, inertia = kmeans(torch.ones(50, 3), 4)
    assert inertia == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(centroids).all()
    with pytest.raises(ValueError, match="at least as many frames"):
        kmeans(torch.ones(3, 2), 4)


# STFT and mel


def test_stft_inverts_and_counts_frames():
    stft = STFT(512, 320, 80)
    samples = torch.randn(2, 1600)
    spectrum = stft(samples)
    assert spectrum.shape == (2, 20, 257)
    mask = torch.ones(2, 20, dtype=torch.bool)
    torch.testing.assert_close(stft.inverse(spectrum, mask), samples, atol=1e-4, rtol=1e-4)


def test_stft_agrees_with_torch():
    stft = STFT(320, 320, 80)
    samples = torch.randn(1, 1600)
    padded = torch.nn.functional.pad(samples, (stft.margin, stft.margin))
    reference = torch.stft(padded, 320, 80, window=torch.hann_window(320), center=False, return_complex=True)
    torch.testing.assert_close(stft(samples), reference.transpose(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("fft", "window", "hop"), [(320, 300, 160), (300, 320, 160), (321, 320, 160), (320, 160, 160)])
def test_stft_refuses_what_does_not_tile(fft, window, hop):
    with pytest.raises(ValueError, match="must be"):
        STFT(fft, window, hop)


def test_mel_band_follows_frequency_and_inverts():
    mel = LogMel(num_mel_bins=40)
    low, high = mel(torch.stack([tone(400, 8000), tone(3000, 8000)]))[:, 20]
    assert low.argmax() < high.argmax()
    log_mel = mel(0.1 * torch.randn(1, 8000))
    rebuilt = mel.of_magnitude(mel.magnitude(log_mel))
    assert (rebuilt - log_mel).abs().mean() < 0.02
    assert (mel.magnitude(log_mel) >= 0).all()


# The part


def test_units_tell_planted_sounds_apart():
    generator = torch.Generator().manual_seed(0)
    part = tiny(num_units=10)
    stats = part.fit([Padded.from_list([melody(generator)[0] for _ in range(8)])])
    assert stats["used"] == 10
    assert stats["unexplained"] < 0.2
    audio, order = melody(generator, notes=6)
    units = part(Padded.from_list([audio])).data[0]
    middle = units.view(6, 5)[:, 2].tolist()  # five units a note; the middle one hears one note only
    same = [[a == b for b in middle] for a in middle]
    assert same == [[a == b for b in order] for a in order]


def test_lengths_are_exact(fitted):
    speech = Padded.from_list(noise(1, 319, 320, 321, 3333))
    units = fitted(speech)
    assert units.lengths.tolist() == [1, 1, 1, 2, 11]
    assert units.data.shape == (5, 11)
    assert units.data.dtype == torch.int64
    assert (units.data[~units.mask] == 0).all()
    assert fitted.output_lengths(speech.lengths).tolist() == units.lengths.tolist()
    assert fitted.frame_rate == 50.0


def test_fit_is_deterministic_and_seeded():
    batches = [Padded.from_list(noise(6000, 4000, seed=s)) for s in range(3)]
    parts = [tiny(num_units=6, max_frames=60) for _ in range(3)]
    for part, seed in zip(parts, (0, 0, 1)):
        part.fit(iter(batches), seed=seed)
    assert torch.equal(parts[0].centroids, parts[1].centroids)
    assert not torch.equal(parts[0].centroids, parts[2].centroids)
    assert parts[0].card() == parts[1].card()
    assert parts[0].card() != parts[2].card()


def test_fit_samples_the_whole_stream():
    # Frames of the last batch alone are loud: a sample of the first frames only would never see them.
    quiet, loud = noise(40000)[0] * 1e-3, noise(40000, seed=1)[0] * 3
    part = tiny(num_units=2, max_frames=50)
    stats = part.fit([Padded.from_list([quiet]), Padded.from_list([loud])])
    assert (stats["frames"], stats["sampled"]) == (250, 50)
    first, last = (
        part(Padded.from_list([quiet])).data[0].mode().values,
        part(Padded.from_list([loud])).data[0].mode().values,
    )
    assert first != last


@pytest.mark.parametrize("normalise", ["none", "global", "feature"])
def test_state_dict_carries_the_clusters(normalise):
    part = tiny(normalise=normalise)
    speech = Padded.from_list(noise(8000))
    part.fit([speech])
    other = tiny(normalise=normalise)
    with pytest.raises(RuntimeError, match="voxzoo units fit"):
        other(speech)
    assert other.card()["centroids"] is None
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(speech).data, part(speech).data)
    assert other.card() == part.card()


def test_units_do_not_depend_on_autocast(fitted):
    speech = Padded.from_list(noise(8000, seed=9))
    with torch.autocast("cpu", torch.bfloat16):
        units = fitted(speech)
    agree = (units.data == fitted(speech).data).float().mean()
    assert agree == 1


def test_units_of_an_extractor_in_bfloat16(fitted):
    speech = Padded.from_list(noise(8000, 5000))
    expected = fitted(speech)
    found = fitted.bfloat16()(speech)
    assert torch.equal(found.lengths, expected.lengths)
    assert (found.data == expected.data).float().mean() > 0.9


def test_faults_name_the_value():
    with pytest.raises(ValueError, match="num_units=1"):
        tiny(num_units=1)
    with pytest.raises(ValueError, match="give an encoder"):
        tiny(features="encoder")
    with pytest.raises(ValueError, match="log-mel units take neither"):
        tiny(layer=2)
    with pytest.raises(ValueError, match="need at least as many frames"):
        tiny(num_units=100).fit([Padded.from_list(noise(3200))])


# Units of an encoder


class Steps(SpeechEncoder):
    """Three layers over features of 80 samples a step, two steps to a state."""

    def __init__(self) -> None:
        super().__init__()
        self.input_dim, self.output_dim = 80, 12
        self.layers = torch.nn.ModuleList(torch.nn.Linear(n, 12) for n in (160, 12, 12))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, speech: Padded) -> Padded:
        lengths = self.output_lengths(speech.lengths)
        x = speech.zeroed().data[:, : 2 * int(lengths.max())].unflatten(1, (-1, 2)).flatten(2)
        for layer in self.layers:
            x = self.dropout(layer(x).tanh())
        return Padded(x, lengths)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths // 2


class Cut(Frontend):
    sample_rate, output_dim, fingerprint = RATE, 80, "cut"

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        return waveform[: self.output_length(len(waveform)) * 80].view(-1, 80)

    def output_length(self, num_samples: int) -> int:
        return num_samples // 80


@pytest.mark.parametrize("layer", [None, 2])
def test_units_of_an_encoder(layer):
    part = KMeansUnits(5, features="encoder", encoder=Steps(), frontend=Cut(), layer=layer)
    assert part.frame_rate == 100.0
    assert part.hop_length == 160
    rows = noise(4000, 1777)
    speech = Padded.from_list(rows)
    part.train()  # dropout of the encoder must stay off
    part.fit([speech])
    units = part(speech)
    assert units.lengths.tolist() == [25, 11]
    for row, alone in zip(units.unpad(), rows):
        assert torch.equal(row, part(Padded.from_list([alone])).data[0])
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert part.card()["layer"] == layer


def test_a_layer_is_that_layer():
    encoder = Steps()
    part = KMeansUnits(5, features="encoder", encoder=encoder, frontend=Cut(), layer=1)
    rows = noise(1600)
    expected = encoder.layers[0](Cut()(rows[0]).view(10, 160))
    torch.testing.assert_close(part.features(Padded.from_list(rows)).data[0], expected)
    with pytest.raises(ValueError, match="layers 1 to 3"):
        KMeansUnits(5, features="encoder", encoder=encoder, layer=4)


def test_runs_on_meta():
    speech = Padded(torch.empty(2, 3333, device="meta"), torch.tensor([3333, 700]))
    with torch.device("meta"):
        parts = [tiny(), KMeansUnits(4, features="encoder", encoder=Steps(), frontend=Cut(), layer=2)]
    for part, steps in zip(parts, (11, 20)):
        units = part(speech)
        assert units.data.is_meta
        assert units.data.shape == (2, steps)
        assert not units.lengths.is_meta


# Units of a corpus


@pytest.fixture
def corpus(tmp_path):
    """A manifest of seven short files, two of them without target speech."""
    rows = []
    for i, samples in enumerate(noise(3200, 5000, 1600, 4000, 2222)):
        soundfile.write(tmp_path / f"{i}.wav", samples.numpy(), RATE, subtype="FLOAT")
        rows.append(
            Utterance(id=f"u{i}", src_lang="eng", tgt_lang="eng", src_text="x", tgt_audio=str(tmp_path / f"{i}.wav"))
        )
    rows += [Utterance(id=f"t{i}", src_lang="eng", src_text="x") for i in range(2)]
    write_manifest(tmp_path / "all.jsonl", rows)
    return read_manifest(tmp_path / "all.jsonl")


def test_fit_and_extract_a_corpus(corpus, tmp_path):
    part, again = tiny(), tiny()
    told = []
    stats = fit_units(part, corpus, max_hours=1, seed=3, progress=lambda *now: told.append(now))
    fit_units(again, corpus, max_hours=1, seed=3)
    assert torch.equal(part.centroids, again.centroids)
    assert stats["utterances"] == 5
    assert stats["card"] == part.card()
    assert told[-1][1] == 1

    result = extract_units(part, corpus, path=tmp_path / "units.jsonl", batch_seconds=0.5)
    assert {k: result[k] for k in ("utterances", "new", "without_speech")} == {
        "utterances": 5,
        "new": 5,
        "without_speech": 2,
    }
    found = dict(read_units(tmp_path / "units.jsonl"))
    assert list(found) == [f"u{i}" for i in range(5)]
    assert result["units"] == sum(map(len, found.values()))
    samples = noise(3200, 5000, 1600, 4000, 2222)
    assert found["u1"] == part(Padded.from_list([samples[1]])).data[0].tolist()
    assert json.loads((tmp_path / "units.card.json").read_text()) == part.card()


def test_extract_goes_on_where_it_stopped(corpus, tmp_path, monkeypatch):
    part = tiny()
    fit_units(part, corpus)
    whole = extract_units(part, corpus, path=tmp_path / "whole.jsonl")
    path = tmp_path / "units.jsonl"
    calls = []

    def dies(done, total):
        calls.append(done)
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_units(part, corpus, path=path, progress=dies, batch_seconds=0.1)
    assert not path.exists()  # incomplete, so not under its name
    with open(tmp_path / ".units.jsonl.partial", "a") as file:
        file.write('{"id":"u3","un')  # what a kill in the middle of a write leaves
    resumed = extract_units(part, corpus, path=path)
    assert resumed["new"] == 3
    assert resumed["units"] == whole["units"]
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert extract_units(part, corpus, path=path)["new"] == 0
    # Another extractor: the old units may not stay.
    other = tiny()
    fit_units(other, corpus, seed=9)
    assert extract_units(other, corpus, path=path)["new"] == 5
    # A longer corpus: only what is new.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    assert extract_units(other, corpus, path=path)["new"] == 1


def test_an_id_that_is_there_of_another_recording_is_refused(corpus, tmp_path):
    part, path = tiny(), tmp_path / "units.jsonl"
    fit_units(part, corpus)
    extract_units(part, corpus[:3], path=path)
    before = path.read_text()
    other = tmp_path / "valid"
    other.mkdir()

    def moved(row, samples=None):
        target = other / Path(row.tgt_audio).name
        content, rate = soundfile.read(row.tgt_audio)
        soundfile.write(target, content if samples is None else samples(content), rate, subtype="FLOAT")
        return dataclasses.replace(row, tgt_audio=str(target))

    said = r"units.jsonl: the id 'u1' is there already, of another recording than .*valid.1.wav: .* rename those"
    for samples in (lambda content: content[:-1], lambda content: 0.5 * content):
        with pytest.raises(UserError, match=said):
            extract_units(part, [moved(corpus[1], samples), corpus[4]], path=path)
        assert path.read_text() == before
    # The same corpus in another place, and rows that cannot be read any more.
    assert extract_units(part, [moved(row) for row in corpus[:3]], path=path)["new"] == 0
    gone = dataclasses.replace(corpus[0], tgt_audio=str(other / "gone.wav"))
    assert extract_units(part, [gone, corpus[4]], path=path)["new"] == 1
    # Units that do not say what they were made of, such as those of an earlier version.
    lines = [{"id": name, "units": units} for name, units in read_units(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert extract_units(part, [moved(corpus[1], lambda content: content[:-1])], path=path)["new"] == 0


def test_faults_of_a_corpus(corpus, tmp_path):
    with pytest.raises(UserError, match="voxzoo units fit"):
        extract_units(tiny(), corpus, path=tmp_path / "u.jsonl")
    with pytest.raises(UserError, match="no row has a value in column 'audio'"):
        fit_units(tiny(), corpus, column="audio")
    with pytest.raises(UserError, match="lower num_units"):
        fit_units(tiny(num_units=1000), corpus)
    part = tiny()
    fit_units(part, corpus)
    clash = [corpus[0], dataclasses.replace(corpus[1], id="u0")]
    with pytest.raises(UserError, match="two recordings have the id 'u0'"):
        extract_units(part, clash, path=tmp_path / "u.jsonl")
    asked_twice = [corpus[0], dataclasses.replace(corpus[0], task="asr")]
    assert extract_units(part, asked_twice, path=tmp_path / "u.jsonl")["utterances"] == 1
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "units": [1]}\n{"id": "b", "units": [1.5]}\n')
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: expected"):
        list(read_units(tmp_path / "bad.jsonl"))


def test_an_extractor_folder(corpus, tmp_path):
    part = tiny()
    fit_units(part, corpus)
    config = {"_target_": "voxzoo.components.KMeansUnits", "num_units": 4, "fft_size": 320, "window_length": 320}
    save_extractor(part, {**config, "num_mel_bins": 20}, tmp_path / "folder")
    loaded = load_extractor(tmp_path / "folder")
    assert card_of(loaded) == part.card()
    speech = Padded.from_list(noise(4000))
    assert torch.equal(loaded(speech).data, part(speech).data)
    with pytest.raises(UserError, match="no such run"):
        load_extractor(tmp_path / "nothing")


def test_a_run_begins_with_an_extractor_folder(corpus, tmp_path):
    part, folder = tiny(), tmp_path / "folder"
    fit_units(part, corpus)
    save_extractor(part, {"_target_": "voxzoo.components.KMeansUnits", "num_units": 4}, folder)

    def begin(**changed):
        task = FitUnits(unit_extractor=tiny(**changed))
        return task, load_parts(task, {"unit_extractor": str(folder)}, tmp_path / "runs" / "new")

    task, (line,) = begin()
    assert line.startswith(f"unit_extractor: {len(part.state_dict())} tensors from {folder}")
    assert card_of(task.unit_extractor) == part.card()
    with pytest.raises(UserError, match=r"init.unit_extractor: the .* of .*folder does not fit this config"):
        begin(num_units=5)
    said = r"its units would not be those of .*: frame_rate is 100, expected 50; .*take the settings"
    with pytest.raises(UserError, match=said):
        begin(hop_length=80)
    with pytest.raises(UserError, match=r"init.vocoder: FitUnits has no such part; it has: unit_extractor"):
        load_parts(task, {"vocoder": str(folder)}, tmp_path / "runs" / "new")


def test_a_flipped_byte_of_an_extractor_folder_is_noticed(corpus, tmp_path):
    extractor = KMeansUnits(4, fft_size=320, window_length=320, num_mel_bins=20)
    fit_units(extractor, corpus)
    save_extractor(extractor, {"_target_": "voxzoo.components.KMeansUnits", "num_units": 4, "fft_size": 320,
                               "window_length": 320, "num_mel_bins": 20}, tmp_path)  # fmt: skip
    weights = tmp_path / "unit_extractor.safetensors"
    before = weights.read_bytes()
    place = before.index(extractor.centroids.numpy().tobytes())
    for offset in (0, 100):
        weights.write_bytes(before[: place + offset] + b"\x7f" + before[place + offset + 1 :])
        with pytest.raises(UserError, match="damaged at centroids: it holds other bytes than were written"):
            load_extractor(tmp_path)
    weights.write_bytes(before)
    assert torch.equal(load_extractor(tmp_path).centroids, extractor.centroids)


@pytest.mark.parametrize(
    ("trainer", "moved"),
    [
        ({}, ["cuda", "cpu"]),
        ({"accelerator": "auto", "devices": 2}, ["cuda", "cpu"]),
        ({"accelerator": "gpu", "devices": [3, 1]}, ["cuda:3", "cpu"]),
        ({"accelerator": "cuda", "devices": "auto"}, ["cuda", "cpu"]),
        ({"accelerator": "cpu", "devices": 2}, ["cpu", "cpu"]),
    ],
)
def test_the_task_fits_where_the_trainer_says(corpus, tmp_path, monkeypatch, trainer, moved):
    """And keeps what it found as tensors of the CPU. The GPU is pretended: where the task would go is written down."""
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(FitUnits, "to", lambda self, device: told.append(str(device)))

    class Data:
        def rows(self, split):
            return corpus

        def splits(self):
            return ["train"]

    task = FitUnits(unit_extractor=tiny())
    task.config = {"trainer": trainer}
    task.run_once(Data(), tmp_path)
    assert told == moved
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["unit_extractor.centroids"], task.unit_extractor.centroids)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    task.run_once(Data(), tmp_path)
    assert told[2:] == ["cpu", "cpu"]


def test_the_command_takes_a_device(corpus, tmp_path, capsys):
    manifest, out = str(tmp_path / "all.jsonl"), str(tmp_path / "units")
    sizes = ["unit_extractor.num_units=4", "unit_extractor.num_mel_bins=20"]
    fit = ["units", "fit", manifest, "--out", out, "--set", *sizes]
    extract = ["units", "extract", out, manifest, "--out", str(tmp_path / "units.jsonl")]
    for command in (fit, extract, ["units", "resynthesise", out, str(tmp_path / "units.jsonl"), "--out", out]):
        assert main([*command, "--device", "cuda:99"]) == 1
        assert "--device cuda:99: there is none here" in capsys.readouterr().err
    assert not (tmp_path / "units").exists()
    for command in (fit, extract):
        assert main([*command, "--device", "cpu"]) == 0
    assert len(dict(read_units(tmp_path / "units.jsonl"))) == 5
