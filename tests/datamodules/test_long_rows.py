"""A row of any length takes no more than others: it is left out by name before its tokens or units are asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_datamodule import Letters, make
from test_datamodule import folder as folder  # a fixture
from voxzoo.datamodules import read_manifest, write_manifest
from voxzoo.datamodules import selection as module
from voxzoo.datamodules.codes import line_of
from voxzoo.datamodules.rows import open_rows
from voxzoo.datamodules.token_counts import count_tokens
from voxzoo.datamodules.validation import validate


class Sparing(Letters):
    """Fails where it is asked for more than anyone needs to know."""

    most = 131_072

    def encode(self, text):
        assert len(text) <= self.most
        return super().encode(text)


def written(folder: Path, path: Path, **texts: str) -> list[str]:
    """A manifest whose first row has other texts; returns the other ids."""
    first, *rest = read_manifest(folder / "train.jsonl")
    write_manifest(path, [replace(first, **texts), *rest])
    return [row.id for row in rest]


@pytest.mark.parametrize("length", [120_000, 5_000_000])
@pytest.mark.parametrize(
    ("key", "needs", "tasks"),
    [
        ("tgt_text", {"speech", "target"}, {"s2tt": True}),
        ("src_text", {"speech", "target", "transcript"}, {"s2tt": True}),
        ("src_text", {"source", "target"}, {"t2tt": True}),
    ],
)
def test_a_row_of_any_number_of_characters_is_left_out_by_name(folder, tmp_path, length, key, needs, tasks):
    others = written(folder, tmp_path / "train.jsonl", **{key: "hello " * (length // 6)})
    data = make(folder, train=str(tmp_path / "train.jsonl"), tokenizer=Sparing(), tasks=tasks)
    data.needs = frozenset(needs)
    seen = [name for batch in data.train_dataloader() for name in batch.ids]
    assert sorted(seen) == sorted(others)
    side = "target" if key == "tgt_text" else "source"
    assert data.dropped["train"] == {f"a {side} text of more than 4,096 tokens": ["train0"]}
    assert max(map(len, data.texts()), default=0) <= 131_072  # what a vocabulary is trained on


def test_more_tokens_are_taken_where_they_are_asked_for(folder, tmp_path):
    written(folder, tmp_path / "train.jsonl", tgt_text="hello " * 1000)
    data = make(folder, train=str(tmp_path / "train.jsonl"), max_tokens=7000)
    assert len(list(data.train_dataloader())) == 6
    assert data.dropped["train"] == {}


def test_short_texts_are_not_counted(folder):
    data = make(folder, tokenizer=Sparing())
    data.tokenizer.most = 0
    _, batches, _ = data.plan({"speech", "target"})
    assert len(batches) == 6


@pytest.mark.parametrize("kind", ["units", "source_units", "codes"])
def test_a_row_of_any_number_of_units_is_left_out_by_name(folder, tmp_path, kind):
    rows = read_manifest(folder / "train.jsonl")
    with (tmp_path / "units.jsonl").open("w") as file:
        for row in rows:
            count = 2_000_000 if row.id == "train3" else module.LONGEST_UNITS if row.id == "train4" else 7
            if kind == "codes":
                file.write(line_of(row.id, module.np.zeros((count, 1), int)))
            else:
                file.write(json.dumps({"id": row.id, "units": [1] * count}) + "\n")
    data = make(folder, **{kind: str(tmp_path / "units.jsonl")})
    data.needs = frozenset({kind})
    items, _, _ = data.plan(data.needs)
    assert sorted(items.ids(range(len(items)))) == sorted({row.id for row in rows} - {"train3"})
    assert data.dropped["train"] == {f"more than 16,384 {kind.replace('_', ' ')}": ["train3"]}


def test_few_of_many_rows_are_counted_by_themselves(folder, tmp_path):
    """Not all of a manifest, because one of its texts may be too long."""
    rows = open_rows(folder / "train.jsonl", tmp_path)
    tokenizer = Sparing()
    assert list(count_tokens(rows, "tgt_text", module.np.array([2]), tokenizer)) == [len(rows.text("tgt_text", 2))]
    written(folder, tmp_path / "train.jsonl", tgt_text="hello " * 200_000)
    tokenizer.most = 1 << 18
    found = count_tokens(open_rows(tmp_path / "train.jsonl"), "tgt_text", module.np.arange(23), tokenizer)
    assert found[0] == pytest.approx(1_200_000, rel=0.01)


def test_validate_names_long_texts(folder, tmp_path):
    written(folder, tmp_path / "train.jsonl", tgt_text="hello " * 20_000)
    found = {finding.kind: finding for finding in validate(str(tmp_path / "train.jsonl")).findings}
    kind = "target text of more than 4,096 characters; left out if it is as many tokens"
    assert found[kind].places == ["train0: 119,999"]
    assert not found[kind].is_error
