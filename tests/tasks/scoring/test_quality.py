"""How output speech sounds: with networks in the place of the real ones, and the real ones where they are installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import soundfile
import torch
from voxzoo.components.errors import UserError
from voxzoo.tasks.scoring import naturalness, quality, voices
from voxzoo.tasks.scoring.evaluation import Scored, score_rows
from voxzoo.tasks.scoring.naturalness import Rating
from voxzoo.tasks.scoring.quality import SpeechQuality


def installed(*names: str) -> bool:
    try:
        return all(importlib.metadata.version(name) for name in names)
    except importlib.metadata.PackageNotFoundError:
        return False


needs_voices = pytest.mark.skipif(not installed("resemblyzer"), reason=f"needs {voices.INSTALL}")
needs_dnsmos = pytest.mark.skipif(not installed("onnxruntime", "speechmos"), reason=f"needs {naturalness.INSTALL}")


class Pitches:
    """A voice is where its loudest frequency lies: an embedding on a quarter of a circle."""

    signature = "pitches"

    def embed(self, audio):
        points = []
        for samples in audio:
            if not len(samples) or not samples.abs().max() > 1e-3:
                points.append(None)
                continue
            share = float(torch.fft.rfft(samples).abs().argmax()) / len(samples) * 16000 / 1000
            points.append(torch.tensor([share, (1 - share**2) ** 0.5]))
        return points


class Loud:
    """Loud speech sounds better."""

    signature = "loud"

    def __init__(self, threads: int = 1):
        assert threads >= 1

    def rate(self, audio):
        return [Rating(*(3 * [1 + 4 * float(a.abs().max())])) if len(a) else None for a in audio]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> SpeechQuality:
    monkeypatch.setattr(quality, "SpeakerEncoder", Pitches)
    monkeypatch.setattr(quality, "Dnsmos", Loud)
    return SpeechQuality()


def tone(hertz: float, loud: float = 0.5, seconds: float = 0.5, rate: int = 16000) -> torch.Tensor:
    return loud * torch.sin(2 * torch.pi * hertz * torch.arange(int(rate * seconds)) / rate)


HERTZ = {"low": 110.0, "middle": 220.0, "high": 440.0}


def judged(judge: SpeechQuality, order: list[str], outputs: list[torch.Tensor], speakers: bool = True):
    """Scores of outputs for sources of these speakers, and the notes."""
    rows = [
        Scored(f"u{n}", "s2st", "spa", "eng", "text", source_audio=f"{n}.wav", speaker=name if speakers else None)
        for n, name in enumerate(order)
    ]
    sources = [tone(HERTZ[name]) for name in order]
    for begin in range(0, len(rows), 2):
        part = slice(begin, begin + 2)
        judge.add(rows[part], outputs[part], 24000, sources[part])
        judge.add_recordings(rows[part], [tone(HERTZ[name], 0.9) for name in order[part]], None, 24000)
    judge.finish(rows)
    return score_rows(rows, quality=judge.signatures), judge.notes(), rows


def test_outputs_in_the_voice_of_their_source_and_in_another(judge: SpeechQuality):
    order = ["low", "high", "middle", "low", "high"]
    good, notes, rows = judged(judge, order, [tone(HERTZ[name], 0.25, rate=24000) for name in order])
    assert notes == []
    assert good["speaker_similarity"] == pytest.approx(1, abs=1e-3)
    assert good["speaker_similarity_ceiling"] == pytest.approx(1, abs=1e-3)
    assert good["speaker_similarity_control"] < 0.98
    assert good["speaker_match"] == good["speaker_match_ceiling"] == 100
    assert good["dnsmos"] == pytest.approx(2, abs=0.02)
    assert good["dnsmos_ceiling"] == pytest.approx(4.6, abs=0.02)
    low, high = good["intervals"]["speaker_similarity"]
    assert low <= good["speaker_similarity"] + 1e-6
    assert good["speaker_similarity"] <= high + 1e-6
    assert good["signatures"]["speaker_match"] == "pitches"
    assert rows[0].line()["quality"]["dnsmos"] == pytest.approx(2, abs=0.02)
    # The control: the same outputs for the sources of others.
    turned = order[1:] + order[:1]
    wrong, *_ = judged(SpeechQuality(), order, [tone(HERTZ[name], 0.25, rate=24000) for name in turned])
    assert wrong["speaker_similarity"] < good["speaker_similarity"] - 0.02
    assert wrong["speaker_match"] == 0
    assert wrong["speaker_match_ceiling"] == 100


def test_whether_the_voice_follows_the_prompt(judge: SpeechQuality):
    order, prompts = ["low", "high", "middle"], ["high", "low", "low"]
    rows = [Scored(f"u{n}", "s2st", "spa", "eng", "text", source_audio=f"{n}.wav") for n in range(3)]
    # The last one keeps the voice of its source.
    outputs = [tone(HERTZ[name], rate=24000) for name in ("high", "low", "middle")]
    judge.add(rows, outputs, 24000, [tone(HERTZ[name]) for name in order])
    judge.add_prompts(rows, [tone(HERTZ[name]) for name in prompts])
    judge.finish(rows)
    found = score_rows(rows, quality=judge.signatures)
    assert found["nearer_to_prompt"] == pytest.approx(200 / 3)
    assert found["speaker_similarity_prompt"] > found["speaker_similarity"]
    assert rows[0].quality["speaker_similarity_prompt"] == pytest.approx(1, abs=1e-3)  # pyright: ignore


def test_what_is_silent_counts(judge: SpeechQuality):
    order = ["low", "high", "middle"]
    outputs = [torch.zeros(12000), torch.zeros(0), tone(220, rate=24000)]
    found, notes, _ = judged(judge, order, outputs)
    assert found["speaker_similarity"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["speaker_match"] == pytest.approx(100 / 3)
    assert found["voicing_error"] > 60
    assert sorted(notes) == [
        "1 outputs without samples: they are rated 1 by DNSMOS",
        "2 outputs are silent: their F0 correlation counts as 0",
        "2 outputs have no voice: their speaker similarity counts as 0",
    ]


def test_without_labels_each_recording_is_a_voice_and_none_is_matched(judge: SpeechQuality):
    order = ["low", "high"]
    found, *_ = judged(judge, order, [tone(HERTZ[name], rate=24000) for name in order], speakers=False)
    assert found["speaker_similarity_control"] < 0.95
    assert "speaker_match" not in found
    alone, *_ = judged(SpeechQuality(), ["low", "low"], [tone(110, rate=24000)] * 2)
    assert "speaker_similarity_control" not in alone
    assert "speaker_match" not in alone


def test_what_is_not_installed_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    for module, name in ((voices, "resemblyzer"), (naturalness, "speechmos")):
        gone = voices.PackagedFile(((f"no-such-{name}", "x"),), "0")
        monkeypatch.setattr(module, "WEIGHTS", gone)
    found, notes, _ = judged(SpeechQuality(), ["low", "high"], [tone(110, rate=24000), tone(440, rate=24000)])
    assert "speaker_similarity" not in found
    assert "dnsmos" not in found
    assert "f0_correlation" in found
    assert len(notes) == 2
    assert "pip install --no-deps resemblyzer==0.1.4" in notes[0]
    assert "pip install voxzoo[quality]" in notes[1]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory):
    """Twelve sentences, each in Spanish and English by one of 18 unseen voices: [(speaker, spa, eng)]."""
    pytest.importorskip("espeakng_loader", reason="espeak needs pip install voxzoo[demo]")
    from voxzoo.datamodules import SpokenPhrases, read_manifest

    corpus = SpokenPhrases(
        root=str(tmp_path_factory.mktemp("c")), num_train=1, num_valid=0, num_test=12, one_voice=True
    )
    rows = list(read_manifest(corpus.prepare()["test_unseen"]))

    def read(path: str | Path | None) -> torch.Tensor:
        return torch.from_numpy(soundfile.read(str(path), dtype="float32")[0])

    return [(row.speaker, read(row.audio), read(row.tgt_audio)) for row in rows]


@needs_voices
def test_a_voice_is_near_to_itself_in_another_language(recordings):
    encoder = voices.SpeakerEncoder()
    assert encoder.signature.startswith("ge2e|from:resemblyzer-0.1.4|sha256:39373b86598f")
    spanish, english = (encoder.embed([row[side] for row in recordings]) for side in (1, 2))
    assert all(float(point.norm()) == pytest.approx(1, abs=1e-5) for point in spanish)
    names = [row[0].partition("-")[0] for row in recordings]
    same = [voices.similarity(a, b) for a, b in zip(spanish, english, strict=True)]
    shuffled = [voices.similarity(a, b) for n, a in enumerate(spanish) for m, b in enumerate(english)
                if names[n] != names[m]]  # fmt: skip
    assert sum(same) / len(same) > 0.8
    assert sum(shuffled) / len(shuffled) < 0.7
    # Alone, in a batch, with silence around it and quieter.
    wave = recordings[0][1]
    framed = torch.cat([torch.zeros(16000), 0.01 * wave, torch.zeros(8000)])
    (alone, with_silence, none) = encoder.embed([wave, framed, torch.zeros(16000)])
    assert voices.similarity(alone, spanish[0]) == pytest.approx(1, abs=1e-5)
    assert voices.similarity(with_silence, spanish[0]) > 0.95
    assert none is None


@needs_dnsmos
def test_dnsmos_hears_noise(recordings):
    judge = naturalness.Dnsmos()
    clean = recordings[0][2]
    noise = 0.1 * torch.randn(len(clean), generator=torch.Generator().manual_seed(0))
    long = torch.cat([row[2] for row in recordings])[: 16000 * 11]
    good, bad, white, several, none = judge.rate([clean, clean + noise, noise, long, clean[:0]])
    assert 2 < good.overall < 5
    assert bad.overall < good.overall - 0.3
    assert bad.background < good.background - 0.5
    assert white.overall < 1.5
    assert 2 < several.overall < 5
    assert none is None


def test_the_nearest_of_one_voice_is_refused():
    with pytest.raises(UserError, match="at least two speakers"):
        voices.nearest([], {"a": torch.ones(2)})
