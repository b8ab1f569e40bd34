"""Hearing the speech of a split: together, and recordings once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from voxzoo.components.errors import UserError
from voxzoo.tasks.scoring import listening
from voxzoo.tasks.scoring.evaluation import Scored
from voxzoo.tasks.scoring.listening import Listener, note_audio


class Ear:
    """Hears how long an utterance is, and in what language."""

    def __init__(self, signature: str = "ear"):
        self.signature, self.calls = signature, []

    def check_language(self, lang: str) -> None:
        if lang == "xyz":
            raise UserError("does not know xyz")

    def transcribe(self, audio, lang):
        self.calls.append((lang, len(audio)))
        return [f"{lang} {len(samples)} {float(samples.sum()):g} \u2028" for samples in audio]


def rows(*langs: str) -> list[Scored]:
    return [Scored(f"u{n}", "s2st", "spa", lang, "text") for n, lang in enumerate(langs)]


def waves(*lengths: int) -> list[torch.Tensor]:
    return [torch.ones(length) for length in lengths]


def test_utterances_wait_until_there_are_many_and_each_gets_its_text(monkeypatch):
    monkeypatch.setattr(listening, "TOGETHER_SECONDS", 1.0)
    ear, first, second = Ear(), rows("eng", "deu"), rows("eng", "eng")
    listener = Listener(ear)
    listener.add(first, "heard", waves(100, 200), 16000)
    listener.add(first, "heard_resynthesis", waves(150, 250), 8000)  # twice as many at 16 kHz
    listener.add(second[:1], "heard_reference", waves(300), 16000)
    assert ear.calls == []
    listener.add(second[1:], "heard", waves(15200), 16000)  # begins in a thread
    listener.add(second[1:], "heard_reference", waves(7), 16000)
    listener.finish()
    assert ear.calls[:2] == [("deu", 2), ("eng", 4)]
    listener.finish()
    assert ear.calls[2:] == [("eng", 1)]
    assert [row.heard.split()[:2] for row in first] == [["eng", "100"], ["deu", "200"]]
    assert [row.heard_resynthesis.split()[1] for row in first] == ["300", "500"]
    assert (second[0].heard, second[0].heard_reference) == (None, "eng 300 300 \u2028")
    assert [second[1].heard.split()[1], second[1].heard_reference.split()[1]] == ["15200", "7"]
    assert listener.notes() == []


def test_a_language_that_it_does_not_know_is_said_at_once():
    with pytest.raises(UserError, match="xyz"):
        Listener(Ear()).add(rows("xyz"), "heard", waves(10), 16000)


def test_recordings_are_heard_once_by_each_recogniser(tmp_path: Path):
    def hear(signature: str, *lengths: int, lang: str = "eng") -> tuple[list[str | None], int, int]:
        ear, members = Ear(signature), rows(*[lang] * len(lengths))
        listener = Listener(ear, tmp_path / "deep" / "heard")
        listener.add(members, "heard_reference", waves(*lengths), 16000)
        listener.add(members, "heard", waves(*lengths), 16000)
        listener.finish()
        assert all(row.heard == row.heard_reference for row in members)
        assert len(listener.notes()) == (listener.num_known > 0)
        return [row.heard_reference for row in members], sum(count for _, count in ear.calls), listener.num_known

    texts, heard, known = hear("a", 10, 20)
    assert (heard, known) == (4, 0)
    assert hear("a", 10, 20) == (texts, 2, 2)  # what the model said is heard each time
    assert hear("a", 10, 30)[1:] == (3, 1)
    assert hear("a", 10, 30)[1:] == (2, 2)
    assert hear("b", 10)[1:] == (2, 0)
    assert hear("a", 10, lang="deu")[1:] == (2, 0)
    for path in (tmp_path / "deep" / "heard").iterdir():
        path.write_bytes(path.read_bytes()[:-20] + b"\xff")  # killed while writing
    assert hear("b", 10)[1:] == (2, 0)
    assert hear("b", 10)[1:] == (1, 1)


def test_where_nothing_can_be_kept_it_is_heard_and_said(tmp_path: Path):
    (tmp_path / "heard").write_text("no folder")
    (row,) = members = rows("eng")
    listener = Listener(Ear(), tmp_path / "heard")
    listener.add(members, "heard_reference", waves(5), 16000)
    listener.finish()
    assert row.heard_reference is not None
    (note,) = listener.notes()
    assert "could not be kept" in note


def test_silence_clipping_and_seconds_are_noted():
    silent, loud, empty = rows("eng", "eng", "eng")
    note_audio(silent, torch.zeros(16000), 16000)
    note_audio(loud, torch.ones(8000), 16000)
    note_audio(empty, torch.zeros(0), 16000)
    assert [(row.duration, row.silent, row.clipped) for row in (silent, loud, empty)] == [
        (1.0, True, False),
        (0.5, False, True),
        (0.0, True, False),
    ]
