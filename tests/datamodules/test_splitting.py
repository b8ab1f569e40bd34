"""Parts of a manifest that share nothing, and what is counted of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_corpora import lines
from voxzoo.components.errors import UserError
from voxzoo.datamodules import read_manifest
from voxzoo.datamodules.splitting import split_manifest
from voxzoo.datamodules.statistics import statistics, write_pictures

RANDOM = np.random.RandomState(0)


def corpus(folder: Path, count: int = 400, speakers: int = 40) -> Path:
    """Speakers of unequal size, two of which share a recording; a key of one's own."""
    rows = []
    for number in range(count):
        speaker = int(speakers * RANDOM.rand() ** 2)
        rows.append(
            {
                "id": f"u{number}",
                "audio": f"wav/{speaker}-{number % 3}.wav",
                "offset": float(number),
                "duration": 2.0,
                "src_lang": "es",
                "tgt_lang": "en",
                "src_text": f"uno dos {number % 350}",
                "tgt_text": f"one {number}",
                "speaker": f"s{speaker}",
                "gender": "f",
                "split": "validated",
            }
        )
    rows[0]["speaker"], rows[0]["audio"] = "s7", rows[1]["audio"]
    return lines(folder / "all.jsonl", *rows)


def parts(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("by", [("speaker",), ("recording",), ("speaker", "text")])
def test_nothing_is_in_two_parts(tmp_path: Path, by: tuple):
    path = corpus(tmp_path, speakers=200)
    found = split_manifest(path, tmp_path / "parts", {"valid": 0.1, "test": 0.1}, by)
    whole = [row for name in ("train", "valid", "test") for row in parts(tmp_path / "parts", name)]
    assert sorted(row["id"] for row in whole) == sorted(row.id for row in read_manifest(path))
    keys = {"speaker": "speaker", "recording": "audio", "text": "src_text"}
    for key in (keys[one] for one in (*by, "recording")):
        held = [{row[key] for row in parts(tmp_path / "parts", name)} for name in found.parts]
        assert sum(map(len, held)) == len(set().union(*held)), key
    if by != ("speaker", "text"):  # few texts hold nearly all speakers together
        for part in found.parts.values():
            assert abs(part.rows / 400 - part.share) < 0.03
    assert {row["gender"] for row in whole} == {"f"}
    assert not any("split" in row for row in whole)
    assert whole[0]["audio"].startswith(str(tmp_path / "wav"))


def test_the_same_parts_in_whatever_order(tmp_path: Path):
    path = corpus(tmp_path)
    split_manifest(path, tmp_path / "a", {"test": 0.2}, seed=3)
    lined = path.read_text().splitlines()
    (tmp_path / "turned").mkdir()
    (tmp_path / "turned" / "all.jsonl").write_text("\n".join(reversed(lined)) + "\n")
    split_manifest(tmp_path / "turned" / "all.jsonl", tmp_path / "b", {"test": 0.2}, seed=3)
    split_manifest(path, tmp_path / "c", {"test": 0.2}, seed=4)
    ids = [{row["id"] for row in parts(tmp_path / name, "test")} for name in "abc"]
    assert ids[0] == ids[1] != ids[2]


def test_each_part_gets_something(tmp_path: Path):
    rows = [{"id": f"{n}", "src_lang": "es", "src_text": "a", "speaker": f"s{n % 3}"} for n in range(9)]
    found = split_manifest(lines(tmp_path / "a.jsonl", *rows), tmp_path / "p", {"valid": 0.01, "test": 0.01})
    assert [part.rows for part in found.parts.values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("shares", "by", "words"),
    [
        ({"valid": 1.5}, ("row",), r"valid=1\.5: expected shares of the rows between 0 and 1"),
        ({"train": 0.5, "valid": 0.1}, ("row",), r"the shares make 0\.6 together: expected 1, or leave out train"),
        ({"valid": 0.1}, ("speaker",), r"no row says a speaker: split --by recording"),
        ({"valid": 0.1}, ("text",), r"2 rows make 1 group by text, too few for 2 parts"),
    ],
)
def test_shares_that_cannot_be(tmp_path: Path, shares: dict, by: tuple, words: str):
    path = lines(tmp_path / "a.jsonl", *({"id": f"{n}", "src_lang": "es", "src_text": "a"} for n in range(2)))
    with pytest.raises(UserError, match=words):
        split_manifest(path, tmp_path / "p", shares, by)
    assert not (tmp_path / "p").exists()


def test_what_a_manifest_holds(tmp_path: Path):
    row = {"src_lang": "es", "tgt_lang": "zh", "src_text": "uno dos tres", "tgt_text": "一 二三", "audio": "a.wav"}
    rows = [{**row, "id": f"{n}", "offset": n, "duration": 1.0 + n, "speaker": f"s{n % 2}"} for n in range(4)]
    rows += [
        {"id": "x", "src_lang": "en", "src_text": "one two", "split": "train"},
        {**row, "id": "y", "audio": "b.wav"},
    ]
    found = statistics(lines(tmp_path / "a.jsonl", *rows))
    whole = found.whole
    assert (whole.rows, whole.hours, whole.unsaid, whole.speakers, found.recordings) == (
        6,
        round(10 / 3600, 4),
        1,
        2,
        2,
    )
    assert [(group.name, group.rows, group.source_words, group.target_words) for group in found.languages] == [
        ("spa-zho", 5, 15, 15),
        ("eng", 1, 2, 0),
    ]
    assert [(group.name, group.rows) for group in found.splits] == [("train", 1)]
    assert (found.seconds[0], found.seconds[3], found.seconds[-1]) == (1.0, 2.5, 4.0)
    assert found.characters_a_second[-1] == 12.0
    assert found.largest_speaker == 0.5
    pictures = write_pictures(found, tmp_path / "pictures")
    assert [path.name for path in pictures] == ["lengths.svg", "rates.svg", "languages.svg"]
    assert all("</svg>" in path.read_text() for path in pictures)
