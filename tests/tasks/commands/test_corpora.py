"""`voxzoo data convert` and the other verbs on corpora, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_corpora import clip, lines
from voxzoo.tasks.commands.cli import main


def nemo(folder: Path) -> Path:
    clip(folder / "a.wav", 1.5)
    row = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hola", "lang": "es"}
    return lines(folder / "train.json", *({**row, "id": name} for name in ("a", "b", "b\x1b[31m", "b")))


def test_convert_says_what_it_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = ["data", "convert", "nemo", str(nemo(tmp_path)), "--out", str(tmp_path / "m.jsonl"), "--src-lang", "que"]
    assert main(words) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{tmp_path}/m.jsonl: 3 rows, 0.00 h",
        "  left out 1: an id that an earlier row has: b",
    ]
    assert {json.loads(line)["src_lang"] for line in (tmp_path / "m.jsonl").read_text().splitlines()} == {"que"}
    assert main(words) == 1
    assert "is there already: name another, or write over it with --overwrite" in capfd.readouterr().err
    assert main([*words, "--overwrite", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["left_out"] == [{"reason": "an id that an earlier row has", "count": 1, "first": ["b"]}]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--src-lang", "spanisch"], "--src-lang spanisch: no language has the code 'spanisch'; did you mean"),
        (["--column", "text"], "--column text: expected KEY=COLUMN"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], words: str):
    assert main(["data", "convert", "nemo", str(nemo(tmp_path)), "--out", str(tmp_path / "m.jsonl"), *more]) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert words in said[0]
