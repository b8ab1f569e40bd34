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


def test_stats_and_split_say_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    row = {"src_lang": "es", "src_text": "uno dos", "audio": "a.wav"}
    rows = [{**row, "id": f"{n}", "audio": f"{n}.wav", "duration": 36.0, "speaker": f"s{n // 2}"} for n in range(20)]
    path = lines(tmp_path / "all.jsonl", *rows)
    assert main(["data", "stats", str(path), "--pictures", str(tmp_path / "pictures")]) == 0
    said = capfd.readouterr().out
    assert "20 rows, 0.20 h" in " ".join(said.split())
    assert "seconds: shortest 36, 5% 36" in said
    assert "20 recordings; the speaker with most rows has 10.00% of those that say one" in said
    assert (tmp_path / "pictures" / "lengths.svg").is_file()
    words = ["data", "split", str(path), "valid=0.1", "test=0.2", "--out", str(tmp_path / "parts")]
    assert main(words) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{tmp_path}/parts/train.jsonl: 14 rows (70.0%, asked 70.0%), 0.14 h, 7 speakers",
        f"{tmp_path}/parts/valid.jsonl: 2 rows (10.0%, asked 10.0%), 0.02 h, 1 speakers",
        f"{tmp_path}/parts/test.jsonl: 4 rows (20.0%, asked 20.0%), 0.04 h, 2 speakers",
        "10 groups by speaker; the largest has 10.0% of the rows",
    ]
    assert main(words) == 1
    assert "train.jsonl: is there already" in capfd.readouterr().err
    assert main([*words, "--overwrite", "--by", "sex"]) == 1
    assert "--by sex: expected some of speaker, recording, text, row" in capfd.readouterr().err
    assert main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["parts"]["test"]["rows"] == 4


def test_mix_says_what_training_would_take(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for lang, count in (("es", 160), ("qu", 40)):
        row = {"src_lang": lang, "tgt_lang": "en", "src_text": "a", "tgt_text": "b"}
        lines(tmp_path / f"{lang}.jsonl", *({**row, "id": f"{lang}{n}"} for n in range(count)))
    paths = [str(tmp_path / f"{lang}.jsonl") for lang in ("es", "qu")]
    assert main(["data", "mix", *paths, "--temperature", "2"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "spa-eng: 160 rows, 0.00 h, share 66.67%: 133 an epoch, each 0.83 times",
        "que-eng: 40 rows, 0.00 h, share 33.33%: 67 an epoch, each 1.68 times",
        "to train so: data.mix.by=languages data.mix.temperature=2",
    ]
    assert main(["data", "mix", *paths, "--by", "manifest", "--weights", "es=1,qu=1", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [group["an_epoch"] for group in answer["groups"]] == [100, 100]
    assert answer["overrides"] == ["data.mix.by=manifest", "'data.mix.weights={es: 1,qu: 1}'"]
    assert main(["data", "mix", *paths, "--weights", "es"]) == 1
    assert "--weights es: expected GROUP=SHARE" in capfd.readouterr().err


def test_pack_and_unpack(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    clip(tmp_path / "a.wav", 0.5)
    row = {"src_lang": "es", "src_text": "a", "audio": "a.wav"}
    path = lines(tmp_path / "m.jsonl", {**row, "id": "a"}, {**row, "id": "b"}, {**row, "id": "c", "audio": "c.wav"})
    assert main(["data", "pack", str(path), "--out", str(tmp_path / "packed")]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{tmp_path}/packed/manifest.jsonl: 2 rows, 1 recordings, 0.0 MB in 1 file",
        "  left out 1: a recording that cannot be read: c",
    ]
    words = ["data", "unpack", str(tmp_path / "packed" / "manifest.jsonl"), "--out", str(tmp_path / "back"), "--json"]
    assert main(words) == 0
    assert json.loads(capfd.readouterr().out)["recordings"] == 1
    assert (tmp_path / "back" / "audio" / "00" / "00000000.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    assert main(["data", "pack", str(path), "--out", str(tmp_path / "packed")]) == 1
    assert "is there already: name a new folder" in capfd.readouterr().err
