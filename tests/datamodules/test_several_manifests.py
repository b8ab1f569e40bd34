"""Several manifests for one split are one list of rows, and a row may have several references."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from voxzoo.components.errors import UserError
from voxzoo.configs.check import require_valid
from voxzoo.configs.compose import compose
from voxzoo.datamodules import SpeechTranslationData, Utterance, derived, read_manifest, write_manifest
from voxzoo.datamodules.rows import open_rows, rows_of
from voxzoo.tasks.commands import data as command


def text(name: str, **more) -> dict:
    return {"id": name, "src_lang": "spa", "src_text": f"hola {name}", "tgt_lang": "eng", "tgt_text": "hello", **more}


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A list and a table in folders of their own, each with audio beside it."""
    for name, seconds in (("one", 0.5), ("two", 0.8)):
        (tmp_path / name / "clips").mkdir(parents=True)
        soundfile.write(tmp_path / name / "clips/x.wav", 0.1 * np.ones(int(16000 * seconds)), 16000)
    first = write(
        tmp_path / "one/train.jsonl",
        text("a", audio="clips/x.wav", duration=0.5),
        text("b", audio="./clips/../clips/x.wav", duration=0.5, mood=1),
        text("c", audio="/there/y.wav", duration=2, speaker="ana"),
    )
    second = tmp_path / "two/train.tsv"
    second.write_text("id\tsrc_lang\taudio\ttgt_lang\ttgt_text\nd\tspa\tclips/x.wav\teng\thi\ne\tspa\t.\teng\tho\n")
    return [first, second]


def test_rows_come_in_order_with_audio_beside_their_own_manifest(two, tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "WORTH_KEEPING", 0)
    want = [*read_manifest(two[0]), *read_manifest(two[1])]
    assert [row.audio for row in want[::3]] == [str(tmp_path / "one/clips/x.wav"), str(tmp_path / "two/clips/x.wav")]
    assert list(read_manifest(two)) == want
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = open_rows(two, cache)
        assert list(found) == want
        assert found.extra == {"mood": 1}
        assert list(pickle.loads(pickle.dumps(found[::2]))) == want[::2]
        assert [list(part) for part in found.by_manifest()] == [want[:3], want[3:]]
        assert [list(part) for part in found[1:4].by_manifest()] == [want[1:3], want[3:4]]
    monkeypatch.chdir(tmp_path)
    relative = [path.relative_to(tmp_path) for path in two]
    assert [row.audio for row in open_rows(relative, tmp_path / "cache")] == [
        row.audio for row in read_manifest(relative)
    ]


def test_what_is_kept_follows_each_of_them(two, tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "WORTH_KEEPING", 0)
    assert len(open_rows(two, tmp_path)) == 5
    with two[1].open("a") as file:
        file.write("f\tspa\tclips/x.wav\teng\tlast\n")
    assert [row.id for row in open_rows(two, tmp_path)] == [*"abcdef"]
    assert [row.id for row in open_rows(two[::-1], tmp_path)] == [*"defabc"]
    assert [row.id for row in open_rows(two[0], tmp_path)] == [*"abc"]


def test_ids_are_unique_over_all_and_faults_name_the_file_and_the_line(two, tmp_path):
    third = write(tmp_path / "three.jsonl", text("g"), text("b"), text("h", duration="long"), {"id": "i"})
    for read in (read_manifest, open_rows):
        with pytest.raises(UserError) as error:
            read([*two, third])
        said = str(error.value).splitlines()
        assert said[0] == f"{two[0]} and 2 more: 4 faults"
        assert said[1] == f"  {third}, line 2, id: 'b' was used on line 2 of {two[0]}; ids must be unique"
        assert said[2] == f"  {third}, line 3, duration: 'long' is no number of seconds"
        assert said[3].startswith(f"  {third}, line 4, src_lang: missing")
    with pytest.raises(UserError, match=r"gone\.jsonl: no such manifest"):
        open_rows([two[0], tmp_path / "gone.jsonl"])
    sound = open_rows([*two, third], skip=True)
    assert [row.id for row in sound] == [*"abcdeg"]
    assert [name for name, _ in sound.faults] == [f"{third}, line 2", "h", "i"]
    assert [len(part) for part in sound.by_manifest()] == [3, 2, 1]


def test_a_manifest_without_splits_counts_whole_beside_one_that_has_some(tmp_path):
    plain = write(tmp_path / "plain.jsonl", text("a"), text("b"))
    mixed = write(tmp_path / "mixed.jsonl", text("c", split="train"), text("d", split="test"), text("e", split="train"))
    data = SpeechTranslationData(train=[str(plain), str(mixed)], tasks={"t2tt": True}, batch_size=2)
    assert [row.id for row in data.rows("train")] == [*"abce"]
    assert data.source() == f"{plain} and 1 more"


def test_batches_are_those_of_one_manifest_with_all_rows(tmp_path):
    rows = [text(f"u{number}", tgt_text="word " * (1 + number % 7)) for number in range(40)]
    parts = [str(write(tmp_path / f"{n}.jsonl", *rows[13 * n : 13 * n + 13 if n < 2 else 40])) for n in range(3)]
    whole = str(write(tmp_path / "whole.jsonl", *rows))
    plans = []
    for train in (parts, whole):
        data = SpeechTranslationData(train=train, tasks={"t2tt": True}, batch_size=4, seed=3)
        items, batches, _ = data.plan({"target"}, 2)
        plans.append([items.ids(batch) for batch in batches])
    assert plans[0] == plans[1]


def test_a_config_keeps_the_list_with_full_paths_and_says_which_is_not_there(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["data=manifest", "data.train=[one/train.jsonl,two/train.tsv]", "data.test.far=[one/train.jsonl]"]
    config = compose(asked)
    assert [*config.data.train] == [str(path) for path in two]
    assert [*config.data.test.far] == [str(two[0])]
    require_valid(config, inputs=True)
    with pytest.raises(UserError, match=r"data\.train: .*two/train\.tsw: no such manifest; did you mean .*train\.tsv"):
        require_valid(compose(["data=manifest", "data.train=[one/train.jsonl,two/train.tsw]"]), inputs=True)
    with pytest.raises(UserError, match=r"data\.train: .* is not text"):
        require_valid(compose(["data=manifest", "data.train=[one/train.jsonl,5]"]))


def test_validate_takes_them_as_one_split(two, tmp_path, capsys):
    (tmp_path / "two/train.tsv").write_text("id\tsrc_lang\tsrc_text\na\tspa\thola\n")
    write(two[0], text("a"))
    for manifests, errors in ([str(two[0]), str(two[1])], 0), ([f"[{two[0]}, {two[1]}]"], 1):
        parser = argparse.ArgumentParser()
        command.configure(parser)
        answer = command.run(parser.parse_args(["validate", *manifests]))
        assert answer["errors"] == errors
    assert answer["manifests"][f"[{two[0]},{two[1]}]"]["findings"][0]["first"] == [
        f"{two[1]}, line 2, id: 'a' was used on line 1 of {two[0]}; ids must be unique"
    ]
    with pytest.raises(UserError, match="between commas"):
        command.run(parser.parse_args(["validate", "[a.jsonl,]"]))


def test_a_row_may_have_several_references_and_trains_on_the_first(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        text("a", tgt_text=["one ", "two", "\ud800 three"]),
        text("b", tgt_text=["only", "", None]),
        text("c", tgt_text=[]),
        text("d"),
    )
    for rows in (
        read_manifest(path),
        open_rows(path),
        open_rows([path, write(tmp_path / "none.tsx.jsonl", text("e"))]),
    ):
        assert [row.tgt_text for row in rows][:4] == ["one", "only", "", "hello"]
        assert [row.references for row in rows][:4] == [("one", "two", "\ud800 three"), (), (), ()]
    write_manifest(tmp_path / "again.jsonl", read_manifest(path))
    assert list(read_manifest(tmp_path / "again.jsonl")) == list(read_manifest(path))
    with pytest.raises(UserError, match=r"a has several references, which \.tsv cannot hold"):
        write_manifest(tmp_path / "again.tsv", read_manifest(path))
    data = SpeechTranslationData(test={"test": str(path)}, tasks={"t2tt": True, "asr": True}, batch_size=4)
    items = data.utterances("test", tasks=("t2tt", "asr"), needs=())
    assert {(row.task, row.id, row.references[1:2]) for row in items if row.id in "ab"} == {
        ("t2tt", "a", ("two",)), ("t2tt", "b", ()), ("asr", "a", ()), ("asr", "b", ())
    }  # fmt: skip
    with pytest.raises(UserError, match=r"line 1, tgt_text: expected text or a list of texts, got 5 in the list"):
        read_manifest(write(path, text("a", tgt_text=["x", 5])))
    row = Utterance(id="a", src_lang="spa", src_text="x", tgt_lang="eng", references=("one", "two"))
    assert rows_of([row], "mine")[0].tgt_text == "one"
