"""The table of a codec: what its columns count."""

from __future__ import annotations

import pytest
import torch
from voxzoo.components.errors import UserError
from voxzoo.datamodules import Utterance
from voxzoo.tasks.serving import rates


class Judge:
    """Hears one word of two samples, two of three."""

    signature = "judge"

    def transcribe(self, audio, lang):
        return [
            {"eng": "Hello, WORLD!", "spa": "\u00a1Hola mundo!"}[lang].rsplit(" ", 3 - len(one))[0] for one in audio
        ]


class Voice:
    """An embedding is the first two samples."""

    def embed(self, audio):
        return [torch.nn.functional.normalize(one[:2], dim=0) if len(one) else None for one in audio]


def row(name: str, lang: str, text: str, speaker: str) -> Utterance:
    return Utterance(id=name, tgt_lang=lang, tgt_text=text, tgt_audio=f"{name}.wav", speaker=speaker)


ROWS = [row("a", "eng", "Hello world", "x"), row("b", "spa", "hola, mundo", "y"), row("c", "eng", "hello world.", "x")]


def test_word_errors_count_words_alone_and_each_language_as_much(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "open_recogniser", lambda name, notes: Judge())
    ears = rates._Ears("base", "tgt_audio", [])
    for one, samples in zip(ROWS, (2, 3, 3), strict=True):
        ears.add(one, {0: torch.zeros(3), 8: torch.zeros(samples)})
    ears.add(row("d", "eng", "", "x"), {0: torch.zeros(3), 8: torch.zeros(3)})
    errors = ears.rates()
    assert errors == {0: {"eng": 0.0, "spa": 0.0}, 8: {"eng": 25.0, "spa": 0.0}}
    assert rates._mean_and_each("wer", errors[8]) == {"wer": 12.5, "wer_by_language": errors[8]}
    assert rates._mean_and_each("wer", {"eng": 25.0}) == {"wer": 25.0}
    assert ears.signature == "judge|norm:basic-3+norm:english-3"


def test_voices_are_compared_with_the_recording_and_with_another_speaker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "SpeakerEncoder", Voice)
    voices = rates._Voices([])
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    for each, recording, made in zip(ROWS, (one, other, one), (one, one, one[:0]), strict=True):
        voices.add(each, {0: recording, 4: made})
    found = voices.similarities()
    assert found[4] == pytest.approx((1 + 0.6 + 0) / 3, abs=1e-4)
    assert found[0] == pytest.approx(0.6)


def test_without_weights_for_voices_a_note_says_so(monkeypatch: pytest.MonkeyPatch):
    def missing():
        raise UserError("no weights: pip install them")

    monkeypatch.setattr(rates, "SpeakerEncoder", missing)
    notes: list[str] = []
    voices = rates._Voices(notes)
    voices.add(ROWS[0], {0: torch.zeros(3)})
    assert voices.similarities() == {}
    assert notes == ["not measured: no weights: pip install them"]
