"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os

import pytest
from voxzoo.components.whole import link_whole, remove_unfinished, whole_file, whole_folder, write_whole


def test_a_file_appears_when_it_is_whole_with_the_modes_of_any_other(tmp_path):
    path = tmp_path / "new" / "a.json"
    with whole_file(path) as file:
        file.write(b"12")
        assert not path.exists()
    assert path.read_bytes() == b"12"
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    write_whole(path, b"3")
    assert path.read_bytes() == b"3"
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_what_raises_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"old")

    def stop():
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


def test_the_disk_has_it_where_that_is_asked_for(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda number: order.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("named"))
    with whole_file(tmp_path / "a", sync=True) as file:
        file.write(b"12")
    with whole_file(tmp_path / "b") as file:
        file.write(b"12")
    assert order == [2, "named", "named"]


def test_two_at_once_are_each_whole(tmp_path):
    path = tmp_path / "a"
    with whole_file(path) as one, whole_file(path) as other:
        one.write(b"1" * 9)
        other.write(b"2")
    assert path.read_bytes() == b"1" * 9  # the last one to end
    assert len(list(tmp_path.iterdir())) == 1


def test_only_what_was_left_is_removed(tmp_path):
    for name in (".a.json.1f.tmp", ".b.json.2f.tmp", ".a.json.lock", "a.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "a.json.*")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".a.json.lock", ".b.json.2f.tmp", "a.tmp"]
    remove_unfinished(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".a.json.lock", "a.tmp"]


def test_another_name_is_a_link_or_a_copy(tmp_path, monkeypatch):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    link_whole(source, target)
    assert target.samefile(source)

    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    link_whole(source, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"new"
    assert not (tmp_path / "c").samefile(source)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "model"
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / "left").touch()  # of a process that was killed
    path.mkdir()
    with whole_folder(path) as part:
        (part / "a").touch()
        assert not any(path.iterdir())
    assert [one.name for one in path.iterdir()] == ["a"]
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as part:
        (part / "b").touch()
    with pytest.raises(KeyError), whole_folder(tmp_path / "other") as part:
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
    assert [one.name for one in path.iterdir()] == ["a"]
