"""Manifests: what is read, and how each fault is said."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from voxzoo.components.errors import UserError
from voxzoo.datamodules import SpeechTranslationData, Utterance, read_manifest, write_manifest
from voxzoo.datamodules.manifest import scan_manifest
from voxzoo.datamodules.validation import shared_texts, validate
from voxzoo.tasks.commands import data as command

ROW = {"id": "a", "audio": "x/a.wav", "duration": 1.5, "src_lang": "spa", "tgt_lang": "eng", "tgt_text": "hello"}


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_audio_is_relative_to_the_manifest(tmp_path):
    absolute = {**ROW, "id": "b", "audio": "/there/b.wav"}
    rows = read_manifest(write(tmp_path / "m.jsonl", ROW, absolute))
    assert rows[0] == Utterance(
        id="a", audio=str(tmp_path / "x/a.wav"), duration=1.5, src_lang="spa", tgt_lang="eng", tgt_text="hello"
    )
    assert rows[1].audio == "/there/b.wav"


def test_tsv_and_jsonl_say_the_same(tmp_path):
    texts = {"src_text": "¿qué?", "tgt_text": 'what "now"'}
    rows = [
        Utterance(id="a", audio=str(tmp_path / "a.wav"), duration=2.25, src_lang="spa", tgt_lang="eng", **texts),
        Utterance(id="b", src_lang="spa", src_text="solo texto", speaker="ana"),
    ]
    for name in ("m.tsv", "m.jsonl"):
        write_manifest(tmp_path / name, rows)
        assert list(read_manifest(tmp_path / name)) == rows
        assert str(tmp_path) not in (tmp_path / name).read_text()


def test_tsv_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(UserError, match=r"write \.jsonl"):
        write_manifest(tmp_path / "m.tsv", [Utterance(id="a", src_lang="spa", src_text="a\tb")])


def test_unknown_keys_are_counted(tmp_path):
    rows = read_manifest(write(tmp_path / "m.jsonl", {**ROW, "mood": 1}, {**ROW, "id": "b", "mood": 2, "room": 3}))
    assert rows.extra == {"mood": 2, "room": 1}


def test_every_fault_is_reported_with_line_key_and_value(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        ROW,
        "{oops",
        "",
        "[1]",
        {**ROW, "id": "b", "duration": "long"},
        {**ROW, "id": "c", "duration": -1},
        {**ROW, "id": "d", "src_text": 5},
        ROW,
        {"id": "e", "src_lang": "spa"},
        {"id": "f", "source_lang": "spa", "audio": "f.wav"},
        {**ROW, "id": "g", "tgt_lang": ""},
        {**ROW, "id": None},
    )
    with pytest.raises(UserError) as error:
        read_manifest(path)
    said = str(error.value)
    for expected in (
        "10 faults",
        "line 2: not JSON",
        "line 4: expected a JSON object, got list",
        "line 5, duration: 'long' is no number of seconds",
        "line 6, duration: -1: expected seconds above 0",
        "line 7, src_text: expected text, got 5",
        "line 8, id: 'a' was used on line 1",
        "line 9, audio (or src_text): missing",
        "line 10, src_lang: missing; there is 'source_lang': rename it",
        "line 11, tgt_lang: missing",
        "line 12, id: missing",
    ):
        assert expected in said
    assert [row.id for row in scan_manifest(path).utterances] == ["a"]


def test_many_faults_are_cut(tmp_path):
    path = write(tmp_path / "m.jsonl", *["?"] * 50)
    with pytest.raises(UserError) as error:
        read_manifest(path, max_faults=3)
    assert str(error.value).count("not JSON") == 3
    assert "and 47 more" in str(error.value)


def test_tsv_faults(tmp_path):
    (tmp_path / "m.tsv").write_text("id\tsrc_lang\tsrc_text\na\tspa\thola\nb\tspa\n")
    with pytest.raises(UserError, match="line 3: 2 columns where the header has 3"):
        read_manifest(tmp_path / "m.tsv")
    (tmp_path / "n.tsv").write_text("path\tsentence\na\tb\n")
    with pytest.raises(UserError, match="no column 'id'; it has 'path', 'sentence'"):
        read_manifest(tmp_path / "n.tsv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", b"id", r"ends in \.jsonl or \.tsv"),
        ("m.jsonl", None, "no such manifest"),
        ("m.jsonl", b"\n", "empty"),
        ("m.jsonl", b'{"id": "\xff"}', "UTF-8"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_manifest(tmp_path / name)


@pytest.fixture
def flawed(tmp_path):
    """A manifest with one row for each flaw."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
    waves = {"good": wave, "same": wave, "wrong": wave, "silent": 0 * wave, "clipped": np.clip(99 * wave, -1, 1),
             "short": wave[:800], "empty": wave[:0]}  # fmt: skip
    row = Utterance(id="", duration=1.0, src_lang="spa", tgt_lang="eng", src_text="hola", tgt_text="hello")
    rows = []
    for name, samples in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
        rows.append(replace(row, id=name, audio=str(tmp_path / f"{name}.wav"), src_text=f"hola {name}"))
    rows[1] = replace(rows[1], src_text=rows[0].src_text)
    rows[2] = replace(rows[2], duration=3.0)
    rows[5] = replace(rows[5], duration=0.05, tgt_text="")
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF no more")
    rows += [
        replace(row, id=name, audio=str(tmp_path / f"{name}.wav"), src_text=name) for name in ("corrupt", "missing")
    ]
    write_manifest(tmp_path / "m.jsonl", rows)
    return tmp_path / "m.jsonl"


def test_validate_finds_each_flaw_once(flawed):
    report = validate(str(flawed))
    found = {item.kind: (item.is_error, [place.split(":")[0] for place in item.places]) for item in report.findings}
    assert found == {
        "unusable source audio": (True, ["empty", "corrupt", "missing"]),
        "wrong duration": (True, ["wrong"]),
        "silent source audio": (False, ["silent"]),
        "clipped source audio": (False, ["clipped"]),
        "shorter than 0.1 s": (False, ["short"]),
        "no target text": (False, ["short"]),
        "same texts twice": (False, ["same"]),
    }
    wrong = next(item for item in report.findings if item.kind == "wrong duration")
    assert wrong.places == ["wrong: says 3.00 s, the file has 1.00 s (-2.00)"]
    assert report.num_errors == 4


def test_texts_shared_by_manifests(flawed, tmp_path):
    write(
        tmp_path / "t.jsonl",
        {"id": "t", "src_lang": "spa", "src_text": "hola wrong", "tgt_lang": "eng", "tgt_text": "hello"},
    )
    assert [row[2:] for row in shared_texts([str(flawed), str(tmp_path / "t.jsonl")])] == [(1, "t")]


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(words)


def test_the_command_fails_on_errors_and_shows_them(flawed, tmp_path, capsys):
    result = command.run(arguments("validate", str(flawed)))
    assert result["status"] == "failed"
    assert result["errors"] == 4
    assert "wrong duration" in capsys.readouterr().out
    json.dumps(result)
    good = write(
        tmp_path / "good.jsonl", {"id": "t", "src_lang": "spa", "src_text": "a", "tgt_lang": "eng", "tgt_text": "b"}
    )
    assert command.run(arguments("validate", str(good)))["status"] == "ok"


def test_monolingual_names_and_a_column_of_splits(tmp_path: Path):
    rows = [
        {"id": "a", "lang": "eng", "text": "one", "split": "train"},
        {"id": "b", "lang": "eng", "text": "two", "split": "test"},
        {"id": "c", "lang": "eng", "text": "three", "src_text": "said", "split": "test"},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_manifest(path)
    assert [(row.src_lang, row.src_text, row.split) for row in read] == [
        ("eng", "one", "train"),
        ("eng", "two", "test"),
        ("eng", "said", "test"),
    ]
    assert dict(read.extra) == {"text": 1}  # both names: the full one counts
    data = SpeechTranslationData(train=str(path), test={"test": str(path), "other": str(path)}, batch_size=2)
    assert [row.id for row in data.rows("train")] == ["a"]
    assert [row.id for row in data.rows("test")] == ["b", "c"]
    with pytest.raises(UserError, match=r"split 'other'; there are 'test' \(2 rows\), 'train' \(1 rows\)"):
        data.rows("other")


def test_a_split_that_has_another_name_is_no_missing_column(tmp_path: Path, caplog):
    """Or all of train, dev and test would be validation."""
    names = ["train"] * 3 + ["dev"] * 2 + ["test"]
    rows = [{"id": f"{n}", "lang": "eng", "text": "one", "split": name} for n, name in enumerate(names)]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SpeechTranslationData(train=str(path), valid=str(path), test={"tst": str(path)}, batch_size=2)
    assert [row.id for row in data.rows("valid")] == ["3", "4"]
    assert "2 of 6 rows are of the split valid, which it calls 'dev'" in caplog.text
    with pytest.raises(UserError, match="none of its rows is of the split 'tst'"):
        data.rows("tst")
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(rows[-1]) + "\n")
    assert [row.id for row in SpeechTranslationData(valid=str(alone), batch_size=2).rows("valid")] == ["5"]
    assert "all rows are of the split 'test'; they are taken as valid" in caplog.text


def test_a_language_is_known_however_it_is_written_and_an_unknown_one_is_a_fault(tmp_path):
    codes = ["zh-TW", "en", "Spanish", "cmn_Hant", "spaa"]
    rows = [{"id": str(number), "lang": code, "text": "x"} for number, code in enumerate(codes)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"line 5.*src_lang.*no language has the code 'spaa'; did you mean .*'spa'"):
        read_manifest(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    assert [row.src_lang for row in read_manifest(path)] == ["zho_Hant", "eng", "spa", "cmn_Hant"]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("tgt_txt", "tgt_text"),
        ("TGT_TEXT", "tgt_text"),
        ("src_lag", "src_lang"),
        ("mood", None),
        ("durations", "duration"),
    ],
)
def test_a_key_that_is_nearly_ours_is_told(
    key: str, told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    row = {"id": "a", "src_lang": "spa", "src_text": "hola", "tgt_lang": "eng", key: "x"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    (finding,) = [f for f in validate(str(tmp_path / "m.jsonl")).findings if f.kind == "unknown key, ignored"]
    hint = f", did you mean {told}?" if told else ""
    assert finding.places == [f"{key!r} in 1 rows{hint}"]
    SpeechTranslationData(train=str(tmp_path / "m.jsonl"), tasks={"t2tt": True}, batch_size=1).read("train")
    assert f"ignored 1 unknown key: {key!r} (1{hint})" in caplog.text
