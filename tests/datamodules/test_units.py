"""Units of a corpus by id: what a dict of the file's lines would say."""

from __future__ import annotations

import json
import pickle
import random
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from voxzoo.components.errors import UserError
from voxzoo.datamodules import derived, units
from voxzoo.datamodules.units import Units, read_units


@pytest.fixture(autouse=True)
def small_ones_are_kept_too(monkeypatch):
    monkeypatch.setattr(derived, "WORTH_KEEPING", 0)


def write(path, rows):
    path.write_text("".join(json.dumps({"id": name, "units": content}) + "\n" for name, content in rows))
    return path


def test_units_are_those_of_the_lines(tmp_path, monkeypatch):
    pick = random.Random(0)
    names = [f"u{n}" for n in range(300)] + ["", "ü 日本", "\ud800", 7]
    rows = [(pick.choice(names), [pick.randint(0, 999) for _ in range(pick.randint(0, 9))]) for _ in range(500)]
    want = {name: content for name, content in rows if name != 7}  # the last one of an id counts
    path = write(tmp_path / "units.jsonl", rows)
    # Few hashes, so that ids share them.
    for hashed in (units._hash, lambda name: len(name)):
        monkeypatch.setattr(units, "_hash", hashed)
        for cache in (None, tmp_path / hashed.__name__.strip("<>"), tmp_path / hashed.__name__.strip("<>")):
            found = read_units(path, cache)
            assert isinstance(found, Units)
            assert {name: found[name].tolist() for name in found} == want
            assert len(found) == len(want)
            assert all(found[name].dtype == np.int32 for name in want)
            asked = [name for name in names if name != 7] + ["missing"]
            assert [name in found for name in asked] == [name in want for name in asked]
            assert found.get("missing") is None
            with pytest.raises(KeyError):
                found["missing"]
            assert found.lengths(asked).tolist() == [len(want[name]) if name in want else -1 for name in asked]
            most = max(unit for content in want.values() for unit in content)
            assert found.highest()[0] == most
            assert most in want[found.highest()[1]]
            assert pickle.loads(pickle.dumps(found))[rows[-1][0]].tolist() == want[rows[-1][0]]


def test_what_a_worker_is_sent_does_not_grow_with_the_units(tmp_path):
    sizes = []
    for count in (10, 4000):
        path = write(tmp_path / f"{count:04d}.jsonl", [(f"u{n}", [n] * 20) for n in range(count)])
        sizes.append(len(ForkingPickler.dumps(read_units(path, tmp_path))))
    assert abs(sizes[0] - sizes[1]) < 20


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "u.jsonl", [("a", [1, 2])])
    assert read_units(path, tmp_path)["a"].tolist() == [1, 2]
    write(path, [("a", [1, 3])])
    assert read_units(path, tmp_path)["a"].tolist() == [1, 3]


def test_no_units_and_units_that_are_not_flat(tmp_path):
    none = read_units(write(tmp_path / "none.jsonl", []), tmp_path)
    assert dict(none) == {}
    assert isinstance(none, Units)
    assert none.highest() == (-1, "")
    nested = read_units(write(tmp_path / "nested.jsonl", [("a", [[1, 2], [3, 4]])]), tmp_path)
    assert nested["a"].tolist() == [[1, 2], [3, 4]]


def test_an_empty_line_is_no_row(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_text('{"id": "a", "units": [1]}\n\n{"id": "b", "units": [2]}\n')
    for cache in (None, tmp_path):
        assert {name: units.tolist() for name, units in read_units(path, cache).items()} == {"a": [1], "b": [2]}


@pytest.mark.parametrize("line", ["{oops", '{"id": "b"}', '{"id": ["b"], "units": [1]}', '{"id": "b", "units": ["x"]}'])
def test_a_faulty_line_is_named(tmp_path, line):
    path = tmp_path / "u.jsonl"
    path.write_text('{"id": "a", "units": [1]}\n' + line + "\n")
    for cache in (None, tmp_path):
        with pytest.raises(UserError, match=r'line 2: expected \{"id"'):
            read_units(path, cache)
    assert not list(tmp_path.glob("manifests/*.units"))
