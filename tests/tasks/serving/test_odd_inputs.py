"""Inputs that cannot be served take nothing else with them: files, lines of text, rows of a split."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from broken import WAYS, write_broken
from test_evaluate import Parrot, Samples
from test_translate import bad_files, call, wav
from test_translate import model as model  # a fixture
from voxzoo.datamodules import SpeechTranslationData
from voxzoo.tasks.serving.evaluation import evaluate


def odd_files(folder: Path) -> list[str]:
    """40 names that lead to nothing that can be served."""
    names = [str(path) for path in bad_files(folder).values()]
    names += [str(folder / "absent" / f"{number}.wav") for number in range(8)]
    for number in range(4):
        (folder / f"loop{number}.wav").symlink_to(f"loop{number}.wav")
        (folder / f"dangling{number}.wav").symlink_to("nowhere.wav")
        names += [str(folder / f"{kind}{number}.wav") for kind in ("loop", "dangling")]
    names += [f"{folder}/nul\0{number}.wav" for number in range(3)]
    names += [str(folder / ("x" * (250 + 10 * number) + ".wav")) for number in range(3)]
    names += [str(wav(folder / "a.wav", 16000) / "below.wav"), str(folder / "\udcff\udcfe.wav"), str(folder / "empty")]
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo.wav")
    names.append(str(folder / "fifo.wav"))
    for number in range(40 - len(names)):
        path = folder / f"text{number}.flac"
        path.write_bytes(b"fLaC" + bytes(number))
        names.append(str(path))
    return names


@pytest.mark.parametrize("task", ["s2tt", "s2st"])
def test_of_sixty_inputs_the_twenty_good_ones_are_served(model, tmp_path: Path, capsys, task: str):
    odd = odd_files(tmp_path / "odd")
    good = [str(wav(tmp_path / f"good{number}.wav", 16000 + 100 * number)) for number in range(18)]
    good.append(str(wav(tmp_path / "latin.wav", 17900).rename(tmp_path / os.fsdecode(b"latin\xe9.wav"))))
    good.append(str(wav(tmp_path / f"{'y' * 250}.wav", 17950)))
    sys.stderr.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]  # as `cli.main`
    inputs = [name for pair in zip(odd, [*good, *[""] * 20], strict=True) for name in pair if name]
    assert len(inputs) == 60
    options = ["--to", "eng", *(["--out", tmp_path / "out"] if task == "s2st" else [])]
    found = call(*inputs, "--task", task, *options)
    assert [row["input"] for row in found["results"]] == good
    assert sorted(row["input"] for row in found["failures"]) == sorted(odd)
    assert found["error"].startswith("40 of 60 inputs could not be served")
    assert all("\n" not in row["error"] and row["error"] for row in found["failures"])
    assert "should not happen" not in capsys.readouterr().err
    if task == "s2st":
        files = [row["audio"] for row in found["results"]]
        assert len(set(files)) == 20
        assert all(Path(file).is_file() for file in files)


def test_paths_on_standard_input_are_served_likewise(model, tmp_path: Path, monkeypatch):
    odd = odd_files(tmp_path / "odd")
    good = [str(wav(tmp_path / f"good{number}.wav", 16000)) for number in range(3)]
    sys.stderr.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]  # as `cli.main`
    lines = os.fsencode("\n".join([*odd, *good]) + "\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    found = call("-", "--task", "s2tt", "--to", "eng")
    assert [row["input"] for row in found["results"]] == good
    assert len(found["failures"]) == 40


def test_links_in_a_folder_that_lead_nowhere_are_named(model, tmp_path: Path):
    wav(tmp_path / "in" / "good.wav", 16000)
    (tmp_path / "in" / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "in" / "gone.wav").symlink_to("nowhere")
    found = call(tmp_path / "in", "--task", "s2tt", "--to", "eng")
    assert [row["id"] for row in found["results"]] == ["good"]
    assert sorted(row["id"] for row in found["failures"]) == ["gone", "loop"]


def test_rows_that_cannot_be_read_take_no_prediction_with_them(tmp_path: Path, capsys):
    """Every way that a file can be broken; and ids and texts that are no text."""
    ways = {way: 1 for way in WAYS if not way.startswith("no ") or way == "no window"}
    path, broken = write_broken(tmp_path, 6, ways, name="test")
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    good = [row for row in rows if row["id"] not in broken]
    for row, name in zip(good, ["a/b", "a_b", "\udcff", "x" * 300, "..", "é"], strict=True):
        row["id"], row["tgt_text"] = name, row["tgt_text"] + " \ud800"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = SpeechTranslationData(test={"test": str(path)}, frontend=Samples(), batch_size=4)  # pyright: ignore
    texts = {f"s2st/{row['id']}": row["tgt_text"] for row in good}
    found = evaluate(Parrot(texts), data, "test", tmp_path / "out", recogniser="none")
    assert found["num_utterances"] == 6
    assert sorted(row["id"] for row in found["dropped"]) == sorted(broken)
    lines = [json.loads(line) for line in (tmp_path / "out" / "test.hypotheses.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(texts_id.partition("/")[2] for texts_id in texts)
    assert len({line["audio"] for line in lines}) == 6
    assert "should not happen" not in capsys.readouterr().err
