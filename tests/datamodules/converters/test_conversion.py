"""What is the same for all layouts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from small_corpora import clip, converted, lines
from voxzoo.components.errors import UserError
from voxzoo.datamodules import converters, read_manifest
from voxzoo.datamodules.converters.conversion import Asked, convert
from voxzoo.datamodules.converters.tables import unquoted
from voxzoo.datamodules.lookup import Lookup

NOT_LAYOUTS = {"__init__", "conversion", "tables"}


def test_each_layout_is_a_module_of_its_name():
    folder = Path(converters.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - NOT_LAYOUTS == set(converters.KINDS)
    for name in converters.KINDS:
        module = importlib.import_module(f"voxzoo.datamodules.converters.{name}")
        assert "http" in (module.__doc__ or ""), f"{name} does not say where its layout is written down"


def rows(folder: Path, *ids: str) -> Path:
    clip(folder / "a.wav", 1.0)
    row = {"audio_filepath": "a.wav", "duration": 1.0, "text": "hola", "lang": "es"}
    return lines(folder / "train.json", *({**row, "id": name} for name in ids))


def test_ids_that_are_used_twice(tmp_path: Path):
    made, result = converted("nemo", rows(tmp_path, "a", "b", "a", "c", "a"), tmp_path / "m.jsonl")
    assert [row["id"] for row in made] == ["a", "b", "c"]
    assert (result.rows, result.seconds) == (3, 3.0)
    assert result.left_out == {"an id that an earlier row has": 2}


def test_a_tsv_manifest(tmp_path: Path):
    source = rows(tmp_path, "a", "b")
    source.write_text(source.read_text().replace('"hola"', '"ho\\tla"', 1))
    result = convert("nemo", source, Asked(out=tmp_path / "m.tsv"))
    assert [row.id for row in read_manifest(tmp_path / "m.tsv")] == ["b"]
    assert result.left_out == {"a tab, a line break or several references, which .tsv cannot hold": 1}


def test_audio_that_is_none(tmp_path: Path):
    source = rows(tmp_path, "a")
    source.write_text(source.read_text().replace('"duration": 1.0, ', ""))
    (tmp_path / "a.wav").write_bytes(b"RIFF no audio")
    with pytest.raises(UserError, match=r"nothing in it becomes a row: 1 audio that cannot be read"):
        converted("nemo", source, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "source", "out", "words"),
    [
        (
            "comon_voice",
            ".",
            "m.jsonl",
            r"no layout of this name; did you mean common_voice\? There are common_voice, fleurs",
        ),
        ("nemo", ".", "m.json", r"--out .*m\.json: expected the name of a manifest"),
        ("nemo", "trin.json", "m.jsonl", r"trin\.json: no such file or folder; did you mean .*train\.json\?"),
        ("kaldi", ".", "m.jsonl", r"expected the data folder of Kaldi"),
    ],
)
def test_bad_calls(tmp_path: Path, kind: str, source: str, out: str, words: str):
    rows(tmp_path, "a")
    with pytest.raises(UserError, match=words):
        convert(kind, tmp_path / source, Asked(out=tmp_path / out))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"split": "dev"}, r"nemo: this corpus names no splits: leave out --split dev"),
        ({"columns": {"tgt_text": "en"}}, r"nemo: takes no --column; leave it out"),
    ],
)
def test_what_is_asked_is_done_or_refused(tmp_path: Path, asked: dict, words: str):
    with pytest.raises(UserError, match=words):
        converted("nemo", rows(tmp_path, "a"), tmp_path / "m.jsonl", **asked)
    assert not (tmp_path / "m.jsonl").exists()
    with pytest.raises(UserError, match=r"common_voice: takes no --with; leave it out"):
        converted("common_voice", tmp_path, tmp_path / "m.jsonl", beside=tmp_path)


def test_paths_outside_of_the_manifest(tmp_path: Path):
    made, _ = converted("nemo", rows(tmp_path / "corpus", "a"), tmp_path / "made" / "m.jsonl")
    assert made[0]["audio"] == str(tmp_path / "corpus" / "a.wav")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"""Oh"" he said"', '"Oh" he said'),
        ('"Oh"', '"Oh"'),
        ('"Oh" and "ah"', '"Oh" and "ah"'),
        ('\\"Oh\\" he said', '"Oh" he said'),
        ("a \\ b", "a \\ b"),
        ('"', '"'),
        ('""', '""'),
        ('"""a"""', '"a"'),
    ],
)
def test_quotes_of_others(written: str, meant: str):
    assert unquoted(written) == meant


def test_a_lookup_keeps_the_first_value():
    found = Lookup([("a", [1, "ü"]), ("b", None)])
    found.add("a", 2)
    assert (found.get("a"), found.get("c", 7), len(found), "b" in found, "c" in found) == ([1, "ü"], 7, 2, True, False)


def test_rows_with_durations_need_no_torch(tmp_path: Path):
    source = rows(tmp_path, "a")
    code = (
        "import sys; from pathlib import Path; from voxzoo.datamodules.converters.conversion import Asked, convert; "
        f"convert('nemo', Path({str(source)!r}), Asked(out=Path({str(tmp_path / 'm.jsonl')!r}))); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
