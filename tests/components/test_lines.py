"""A line of text ends at LF or CRLF and nowhere else, wherever text is read."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from voxzoo.components import lines
from voxzoo.components.errors import UserError
from voxzoo.components.lines import json_line, open_text, raw_lines
from voxzoo.datamodules import read_manifest
from voxzoo.datamodules.units import read_units
from voxzoo.tasks.serving.translator import read_inputs

ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"


def test_only_lf_and_crlf_end_a_line():
    text = f"\ufeff{ODD}\r\n\n{ODD}\nlast"
    assert [line.decode() for line in raw_lines(io.BytesIO(text.encode()), "x")] == [ODD, "", ODD, "last"]
    assert list(raw_lines(io.BytesIO(b""), "x")) == []


def test_manifests_units_files_and_standard_input_have_the_same_lines(tmp_path: Path, monkeypatch):
    rows = [{"id": f"{ODD}{n}", "src_lang": "spa", "src_text": ODD} for n in range(3)]
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(plain.encode())
    assert [row.src_text for row in read_manifest(tmp_path / "rows.jsonl")] == [ODD] * 3
    header = "id\tsrc_lang\tsrc_text\n"
    (tmp_path / "rows.tsv").write_bytes((header + "".join(f"{n}\tspa\t{ODD}\n" for n in range(3))).encode())
    assert [row.src_text for row in read_manifest(tmp_path / "rows.tsv")] == [ODD] * 3
    units = "".join(json.dumps({"id": f"{ODD}{n}", "units": [n]}, ensure_ascii=False) + "\n" for n in range(3))
    (tmp_path / "units.jsonl").write_bytes(units.encode())
    assert len(dict(read_units(tmp_path / "units.jsonl"))) == 3
    text = "".join(f"{ODD}\n" for _ in range(3)).encode()
    (tmp_path / "text.txt").write_bytes(text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    items = list(read_inputs([str(tmp_path / "text.txt"), "-"], text=True, out=None))
    assert [item.text for item in items] == [ODD] * 6


def test_a_line_that_is_not_text_costs_itself_alone(tmp_path: Path):
    (tmp_path / "text.txt").write_bytes(b"one\n\xff\xfe\nthree\n")
    items = list(read_inputs([str(tmp_path / "text.txt")], text=True, out=None))
    assert [(item.text, item.error) for item in items] == [("one", None), (None, "not UTF-8 text"), ("three", None)]


def test_what_has_no_lines_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    with pytest.raises(UserError, match="zeros, line 1: longer than"):
        list(raw_lines(io.BytesIO(b"\0" * 1000), "zeros"))
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=str(path)):
            open_text(path)


def test_odd_inputs_take_nothing_with_them(tmp_path: Path, monkeypatch):
    """Of the others, each comes out; of these, one line each."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good.txt").write_text("a sentence\n")
    odd = ["\0", "x" * 5000, str(tmp_path / "loop"), str(tmp_path / "pipe"), "/dev/zero", "\udcff", " "]
    good = str(tmp_path / "good.txt")
    items = list(read_inputs([good, *odd, good], text=True, out=None))
    assert [item.error is None for item in items] == [True, *[False] * len(odd), True]
    assert all("\n" not in str(item.error) for item in items)
    monkeypatch.setattr("sys.stdin", None)
    assert [item.error for item in read_inputs(["-"], text=True, out=None)] == ["it is closed; give a file or folder"]


def test_json_lines_can_always_be_written_and_read_back():
    content = {"text": f"{ODD} \udcff \U0001f600", "id": "\ud800"}
    line = json_line(content)
    assert len(line.encode().splitlines()) == len(line.splitlines()) == 1
    assert json.loads(line) == content
    assert "\U0001f600" in line
    assert json_line({"a": "ü"}) == '{"a": "ü"}'
