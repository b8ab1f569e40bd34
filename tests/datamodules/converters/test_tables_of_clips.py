"""Corpora that are tables beside clips: Common Voice, CoVoST 2, CVSS, FLEURS, audiofolder."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_corpora import clip, converted, lines, table
from voxzoo.components.errors import UserError

HEADER = "client_id|path|sentence|up_votes|down_votes|age|gender|accents|variant|locale|segment"


def voice(root: Path) -> Path:
    """Common Voice in Spanish: three clips, one of which is not there, and rows that are odd."""
    folder = root / "cv-corpus-4" / "es"
    for number in (1, 2, 4):
        clip(folder / "clips" / f"common_voice_es_{number}.mp3", 0.5 * number)
    rows = [
        'spk1|common_voice_es_1.mp3|"""Hola"" dijo, y ""adiós""."|2|0|||||es|',
        'spk1|common_voice_es_2.mp3|"Buenos días"|2|0|||||es|',
        "spk2|common_voice_es_3.mp3|No está.|2|0|||||es|",
        'spk3|common_voice_es_4.mp3|Una "comilla sola|2|0|||||es|',
        "spk4|common_voice_es_5.mp3|faltan columnas",
    ]
    table(folder / "validated.tsv", HEADER, *rows)
    table(folder / "train.tsv", HEADER, *rows[:3], rows[4])
    table(folder / "test.tsv", HEADER, rows[3])
    table(folder / "clip_durations.tsv", "clip|duration[ms]", "common_voice_es_1.mp3|500", "common_voice_es_4.mp3|2000")
    return folder


def test_common_voice(tmp_path: Path):
    rows, result = converted("common_voice", voice(tmp_path), tmp_path / "es.jsonl")
    assert rows[0] == {
        "id": "common_voice_es_1", "audio": "cv-corpus-4/es/clips/common_voice_es_1.mp3", "duration": 0.5,
        "src_lang": "spa", "src_text": "\"Hola\" dijo, y \"adiós\".", "speaker": "spk1", "split": "train",
    }  # fmt: skip
    assert [row["src_text"] for row in rows[1:]] == ['"Buenos días"', 'Una "comilla sola']
    assert rows[1]["duration"] == pytest.approx(1.0, abs=0.1)  # of the header of the mp3
    assert result.splits == {"train": 2, "test": 1}
    assert result.left_out == {"no such audio file": 1, "a row of train.tsv with 3 columns in place of 11": 1}
    assert result.first["no such audio file"] == ["common_voice_es_3"]


def test_a_split_of_common_voice(tmp_path: Path):
    rows, result = converted("common_voice", voice(tmp_path), tmp_path / "v.jsonl", split="validated", durations=False)
    assert [row["id"][-1] for row in rows] == ["1", "2", "4"]
    assert "duration" not in rows[1]
    assert result.splits == {"validated": 3}
    with pytest.raises(UserError, match=r"no such file"):
        converted("common_voice", tmp_path / "cv-corpus-4" / "es", tmp_path / "o.jsonl", split="other")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_folder_that_is_no_common_voice(tmp_path: Path):
    table(tmp_path / "es" / "validated.tsv", HEADER)
    with pytest.raises(UserError, match=r"expected the folder of a language of Common Voice.*there is validated"):
        converted("common_voice", tmp_path / "es", tmp_path / "es.jsonl")


def test_covost_2(tmp_path: Path):
    folder = voice(tmp_path)
    made = tmp_path / "covost"
    head = "path|sentence|translation|client_id"
    table(made / "covost_v2.es_en.train.tsv", head, 'common_voice_es_1.mp3|Hola.|\\"Hello.\\"|spk1')
    table(made / "covost_v2.es_en.dev.tsv", head, "common_voice_es_2.mp3|Buenos días|Good day|spk1")
    table(made / "covost_v2.es_en.tsv", "path|translation|split")  # what it was made of lies beside
    rows, result = converted("covost2", made, tmp_path / "c.jsonl", beside=folder)
    assert {row["split"]: (row["src_lang"], row["tgt_lang"], row["tgt_text"]) for row in rows} == {
        "train": ("spa", "eng", '"Hello."'),
        "dev": ("spa", "eng", "Good day"),
    }
    assert not result.left_out


def test_covost_2_as_it_is_downloaded(tmp_path: Path):
    rows = (
        "common_voice_es_2.mp3|Good day|train_covost",
        "common_voice_es_4.mp3|A mark|test",
        "common_voice_es_1.mp3|Hello|dev_covost",
        "common_voice_es_9.mp3|Not there|train",
    )
    path = table(tmp_path / "covost_v2.es_en.tsv", "path|translation|split", *rows)
    rows, result = converted("covost2", path, tmp_path / "c.jsonl", beside=voice(tmp_path))
    assert [(row["id"][-1], row["split"], row["src_text"], row["tgt_text"]) for row in rows] == [
        ("2", "train", '"Buenos días"', "Good day"),
        ("4", "test", 'Una "comilla sola', "A mark"),
    ]
    assert result.left_out["of the split dev_covost, of the first version"] == 1
    assert result.said[0].startswith("1 translations are of clips that")


def test_cvss(tmp_path: Path):
    made = tmp_path / "cvss_c_es_en_v1.0"
    for number in (1, 2):
        clip(made / "train" / f"common_voice_es_{number}.mp3.wav", 0.7)
    table(
        made / "train.tsv", "common_voice_es_1.mp3|hello", "common_voice_es_2.mp3|good day", "common_voice_es_9.mp3|no"
    )
    table(made / "dev.tsv", "common_voice_es_4.mp3|a mark")  # its English speech is not there
    rows, result = converted("cvss", made, tmp_path / "c.jsonl", beside=voice(tmp_path))
    assert [(row["audio"][-5], row["tgt_audio"], row["tgt_text"], row["tgt_lang"]) for row in rows] == [
        ("1", "cvss_c_es_en_v1.0/train/common_voice_es_1.mp3.wav", "hello", "eng"),
        ("2", "cvss_c_es_en_v1.0/train/common_voice_es_2.mp3.wav", "good day", "eng"),
    ]
    assert result.left_out["no such target audio file"] == 1
    assert result.left_out["a clip that validated.tsv of Common Voice does not have"] == 1
    with pytest.raises(UserError, match=r"cvss: say --with FOLDER: the folder of the language of Common Voice"):
        converted("cvss", made, tmp_path / "d.jsonl")


def fleurs(root: Path, lang: str, *rows: str) -> Path:
    table(root / lang / "train.tsv", *rows)
    for row in rows:
        clip(root / lang / "audio" / "train" / row.split("|")[1])
    return root / lang


def test_fleurs(tmp_path: Path):
    source = fleurs(
        tmp_path, "es_419",
        "7|10.wav|Hola, mundo.|hola mundo|h o l a|8000|MALE",
        "7|11.wav|Hola, mundo.|hola mundo|h o l a|8000|FEMALE",
        "8|12.wav|Nadie más.|nadie más|n|8000|MALE",
    )  # fmt: skip
    target = fleurs(tmp_path, "en_us", "7|20.wav|Hello, world.|hello world|h|8000|MALE")
    rows, result = converted("fleurs", source, tmp_path / "f.jsonl", beside=target)
    assert [(row["id"], row["src_lang"], row["tgt_lang"], row["tgt_text"], row["tgt_audio"]) for row in rows] == [
        ("10", "spa", "eng", "Hello, world.", "en_us/audio/train/20.wav"),
        ("11", "spa", "eng", "Hello, world.", "en_us/audio/train/20.wav"),
    ]
    assert rows[0]["duration"] == 0.5
    assert result.left_out == {"a sentence that en_us does not have": 1}
    rows, _ = converted("fleurs", source, tmp_path / "asr.jsonl")
    assert len(rows) == 3
    assert "tgt_lang" not in rows[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_audiofolder(tmp_path: Path, kind: str):
    root = tmp_path / "clips"
    for split in ("train", "test"):
        clip(root / split / "a" / "1.wav")
        if kind == "csv":
            rows = [
                "file_name,text,translation,speaker_id",
                'a/1.wav,"Uno, y\ndos",One and two,ana',
                "a/2.wav,No,No,ana",
            ]
            (root / split / "metadata.csv").write_text("\n".join(rows) + "\n")
        else:
            about = {"file_name": "a/1.wav", "text": "Uno, y dos", "translation": "One and two", "speaker_id": 3}
            lines(root / split / "metadata.jsonl", about, {**about, "file_name": "a/2.wav"})
    rows, result = converted("audiofolder", root, tmp_path / "m.jsonl", src_lang="spa", tgt_lang="eng")
    assert [(row["id"], row["split"]) for row in rows] == [("test/a/1", "test"), ("train/a/1", "train")]
    assert rows[0]["src_text"].split() == ["Uno,", "y", "dos"]
    assert (rows[0]["src_lang"], rows[0]["tgt_lang"], rows[0]["tgt_text"]) == ("spa", "eng", "One and two")
    assert rows[0]["speaker"] == ("ana" if kind == "csv" else "3")
    assert result.left_out == {"no such audio file": 2}
    with pytest.raises(UserError, match=r"says no source language: say --src-lang CODE"):
        converted("audiofolder", root, tmp_path / "n.jsonl")


def test_columns_of_an_audiofolder(tmp_path: Path):
    clip(tmp_path / "c" / "1.wav")
    lines(tmp_path / "c" / "metadata.jsonl", {"file_name": "1.wav", "norm": "uno", "en": "one", "text": "UNO"})
    columns = {"src_text": "norm", "tgt_text": "en"}
    languages = {"src_lang": "spa", "tgt_lang": "eng"}
    rows, _ = converted("audiofolder", tmp_path / "c", tmp_path / "m.jsonl", columns=columns, **languages)
    assert (rows[0]["src_text"], rows[0]["tgt_text"]) == ("uno", "one")
    with pytest.raises(UserError, match=r"--column tgt_text=fr: no such column; there are file_name, norm, en, text"):
        converted("audiofolder", tmp_path / "c", tmp_path / "n.jsonl", columns={"tgt_text": "fr"}, **languages)
