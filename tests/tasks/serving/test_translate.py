"""`voxzoo translate` on real files, good and bad, with a task that answers with what it was given."""

from __future__ import annotations

import argparse
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions
from voxzoo.components.types import Batch, Prediction
from voxzoo.tasks.commands import translate as command
from voxzoo.tasks.distributed.devices import pick_device
from voxzoo.tasks.scoring.speech import cut_at_quiet
from voxzoo.tasks.serving import shelf
from voxzoo.tasks.serving import translator as engine
from voxzoo.tasks.serving.translator import Item, Translator


class Samples:
    sample_rate, output_dim, fingerprint = 16000, 1, "samples"

    def __call__(self, waveform):
        return waveform

    def output_length(self, num_samples):
        return num_samples


class Letters:
    languages = ("spa", "eng", "cmn")
    pad_id = 0

    def knows(self, lang):
        return lang in self.languages

    def source(self, text, lang):
        return [1, *[ord(letter) for letter in text], 3]

    def prefix(self, lang, src_lang=None, task=None):
        return [3, 0]


class Echo:
    """Says how long its input was; speaks it back."""

    modes = frozenset({"s2tt", "s2st", "asr", "t2tt", "t2st"})
    longest_seconds = None
    device = torch.device("cpu")

    def __init__(self):
        self.frontend, self.tokenizer, self.search = Samples(), Letters(), SearchOptions(beam_size=4)
        self.batches: list[list[int]] = []
        self.options: list[SearchOptions] = []

    def predict(self, batch: Batch, *, task=None, options=None):
        assert task is not None
        given = batch.source if task.startswith("t2") else batch.speech
        assert given is not None
        assert options is not None
        self.batches.append(given.lengths.tolist())
        self.options.append(options)
        if any(length == 16001 for length in given.lengths.tolist()):
            raise RuntimeError("cannot take 16001 samples")
        speaks = task.endswith("2st")
        return [
            Prediction(
                i, task, s, t, text=f"<{len(row)}>", units=[len(row) % 7] if speaks else None,
                audio=row.float() if speaks else None, score=-0.5,
            )
            for i, s, t, row in zip(batch.ids, batch.src_lang, batch.tgt_lang, given.unpad(), strict=True)
        ]  # fmt: skip


@pytest.fixture
def model(monkeypatch):

    echo = Echo()
    monkeypatch.setattr(engine, "load_run", lambda path, **_: argparse.Namespace(task=echo))
    return echo


def wav(path: Path, num_samples: int, rate: int = 16000, level: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.sin(np.arange(num_samples) * 0.1), rate)
    return path


def call(*words: object, as_json: bool = True) -> dict:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    args = parser.parse_args(["RUN", *(str(word) for word in words)])
    args.json = as_json
    return command.run(args)


def test_files_and_folders_come_out_in_order_and_are_batched_by_length(model, tmp_path, capsys):
    long, short = wav(tmp_path / "long.wav", 48000), wav(tmp_path / "short.flac", 8000)
    wav(tmp_path / "in" / "b" / "x.wav", 32000)
    wav(tmp_path / "in" / "a.wav", 22050, rate=22050)
    (tmp_path / "in" / "notes.md").write_text("not audio")
    out = tmp_path / "out"
    found = call(long, short, tmp_path / "in", "--task", "s2st", "--to", "eng", "--out", out, "--batch-size", 2)
    assert found["status"] == "ok"
    assert [row["id"] for row in found["results"]] == ["long", "short", "a", "x"]
    assert [row["text"] for row in found["results"]] == ["<48000>", "<8000>", "<16000>", "<32000>"]
    assert model.batches == [[8000, 16000], [32000, 48000]]
    first = found["results"][0]
    assert first["units"] == [48000 % 7]
    assert (first["task"], first["src_lang"], first["tgt_lang"]) == ("s2st", None, "eng")
    assert (first["duration"], first["source_duration"], first["score"]) == (3.0, 3.0, -0.5)
    info = soundfile.info(first["audio"])
    assert (info.subtype, info.samplerate, info.frames) == ("PCM_16", 16000, 48000)
    assert sorted(p.name for p in out.iterdir()) == ["a.eng.wav", "long.eng.wav", "short.eng.wav", "x.eng.wav"]
    assert capsys.readouterr().out == ""


def test_without_json_each_input_is_one_line_on_standard_output(model, tmp_path, capsys):
    found = call(
        wav(tmp_path / "a.wav", 8000), wav(tmp_path / "b.wav", 9000), "--task", "asr", "--to", "spa", as_json=False
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["<8000>", "<9000>"]
    assert lines[0]["src_lang"] == lines[0]["tgt_lang"] == "spa"
    assert lines[0]["audio"] is None
    assert found["status"] == "ok"


def bad_files(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    files = {name: folder / f"{name}.wav" for name in ("missing", "empty", "text", "header", "nan", "cut")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("hello there, this is not audio at all")
    files["header"].write_bytes(wav(folder / "h.wav", 100).read_bytes()[:44])
    files["cut"].write_bytes(wav(folder / "h.wav", 1000).read_bytes()[:20])
    soundfile.write(files["nan"], np.full(16000, np.nan), 16000, subtype="FLOAT")
    files["short"] = wav(folder / "short.wav", 800)
    files["silent"] = wav(folder / "silent.wav", 16000, level=0.0)
    files["refused"] = wav(folder / "refused.wav", 16001)
    return files


def test_bad_inputs_get_a_line_each_and_the_rest_is_served(model, tmp_path, capsys):
    good = [wav(tmp_path / "one.wav", 16000), wav(tmp_path / "two.wav", 17000)]
    bad = bad_files(tmp_path / "bad")
    found = call(good[0], *bad.values(), good[1], "--task", "s2tt", "--to", "eng")
    assert found["status"] == "failed"
    assert [row["id"] for row in found["results"]] == ["one", "two"]
    assert {Path(row["input"]).stem for row in found["failures"]} == set(bad)
    reasons = {row["id"]: row["error"] for row in found["failures"]}
    assert "no such" in reasons["missing"]
    assert "empty" in reasons["empty"]
    assert "empty" in reasons["header"]
    assert "silent" in reasons["silent"]
    assert "0.050 s" in reasons["short"]
    assert "finite" in reasons["nan"]
    assert "cannot take 16001 samples" in reasons["refused"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(bad)
    assert all(line.startswith("voxzoo translate: ") for line in said)
    assert f"{len(bad)} of {len(bad) + 2}" in found["error"]


def test_long_audio_is_cut_at_quiet_places_and_joined(model, tmp_path):
    wave = 0.3 * np.sin(np.arange(600 * 16000) * 0.1)
    for second in range(20, 600, 25):
        wave[second * 16000 : second * 16000 + 8000] = 0
    soundfile.write(tmp_path / "talk.flac", wave, 16000)
    found = call(tmp_path / "talk.flac", "--task", "s2st", "--to", "eng", "--out", tmp_path / "out")["results"][0]
    segments = found["segments"]
    assert segments[0]["start"] == 0
    assert segments[-1]["end"] == 600
    assert all(a["end"] == b["start"] for a, b in pairwise(segments))
    assert all(s["end"] - s["start"] <= 30 for s in segments)
    assert all((s["end"] - 20) % 25 < 0.5 for s in segments[:-1])
    assert found["text"] == " ".join(segment["text"] for segment in segments)
    assert len(found["units"]) == len(segments)
    assert found["duration"] == found["source_duration"] == 600
    spoken, _ = soundfile.read(found["audio"])
    assert np.abs(spoken - wave).max() < 1e-3
    assert max(model.batches[-1]) <= 30 * 16000


def test_long_audio_takes_the_memory_of_its_pieces(model, tmp_path, monkeypatch):
    """What is read, cut, translated and written of a file is held a part at a time."""
    monkeypatch.setattr(shelf, "ROOM", 40 * 16000 * 4)
    pick = np.random.default_rng(0)
    wave = 0.1 * pick.standard_normal(400 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "talk.wav", wave, 16000)
    held: list[int] = []
    put = shelf.Shelf.put

    def counted(self, samples):
        place = put(self, samples)
        held.append(0 if place.samples is None else len(place.samples))
        return place

    monkeypatch.setattr(shelf.Shelf, "put", counted)
    found = call(tmp_path / "talk.wav", "--task", "s2st", "--to", "eng", "--out", tmp_path / "out")["results"][0]
    assert sum(held) <= 2 * 40 * 16000  # of 400 s heard and 400 s spoken
    assert len(held) == 2 * len(found["segments"])
    spoken, _ = soundfile.read(found["audio"], dtype="float32")
    read, _ = soundfile.read(tmp_path / "talk.wav", dtype="float32")
    np.testing.assert_allclose(spoken, read, atol=1e-4)
    starts = [round(segment["start"] * 16000) for segment in found["segments"]]
    want = [start for start, _ in cut_at_quiet(torch.from_numpy(read), 16000, 30.0)]
    np.testing.assert_allclose(starts, want, atol=8)  # said to a millisecond


def test_hours_are_refused_before_they_are_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LONGEST_MINUTES", 0.01)
    found = call(wav(tmp_path / "a.wav", 16000), "--task", "s2tt", "--to", "eng")
    assert "the limit is 0.01" in found["failures"][0]["error"]


def test_same_names_do_not_collide_and_inputs_are_never_overwritten(model, tmp_path):
    inputs = [wav(tmp_path / folder / "a.wav", size) for folder, size in (("x", 8000), ("y", 9000))]
    inputs.append(wav(tmp_path / "out" / "a.eng.wav", 9500))
    before = inputs[2].read_bytes()
    found = call(*inputs, "--task", "s2st", "--to", "eng", "--out", tmp_path / "out")
    paths = [row["audio"] for row in found["results"]]
    assert len(set(paths)) == 3
    assert inputs[2].read_bytes() == before
    assert [soundfile.info(path).frames for path in paths] == [8000, 9000, 9500]
    again = call(*inputs[:2], "--task", "s2st", "--to", "eng", "--out", tmp_path / "fresh")
    assert again["status"] == "ok"


def test_text_from_a_file_and_from_standard_input(model, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("hola\n\nbuenos dias\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("adios\n"))
    found = call(tmp_path / "in.txt", "-", "--task", "t2tt", "--from", "spa", "--to", "cmn", "--beam", 1)
    assert [row["text"] for row in found["results"]] == ["<6>", "<13>", "<7>"]
    assert found["results"][0]["src_lang"] == "spa"
    assert found["failures"][0]["input"].endswith("line 2")
    assert model.options[0] == SearchOptions(method="greedy", beam_size=1)


def test_paths_from_standard_input(model, tmp_path, monkeypatch):
    path = wav(tmp_path / "a b.wav", 8000)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{path}\n\n{tmp_path / 'gone.wav'}\n"))
    found = call("-", "--task", "s2tt", "--to", "eng")
    assert [row["id"] for row in found["results"]] == ["a b"]
    assert [row["id"] for row in found["failures"]] == ["gone"]
    assert model.options[0].beam_size == 4


def test_an_empty_folder_and_binary_text_are_failures(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert ".wav" in call(tmp_path / "empty", "--task", "s2tt", "--to", "eng")["failures"][0]["error"]
    found = call(tmp_path / "bad.txt", "--task", "t2tt", "--from", "spa", "--to", "eng")
    assert "UTF-8" in found["failures"][0]["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "s2tt", "--to", "xxx"], "--to xxx: unknown language; this run knows spa, eng, cmn"),
        (["--task", "t2tt", "--to", "eng", "--from", "yyy"], "--from yyy: unknown language"),
        (["--task", "t2tt", "--to", "eng"], "needs --from"),
        (["--task", "s2st", "--to", "eng"], "needs --out"),
        (["--task", "asr", "--to", "eng", "--from", "spa"], "--to alone"),
        (["--task", "s2tt", "--to", "eng", "--batch-size", "0"], "--batch-size 0"),
        (["--task", "s2tt", "--to", "eng", "--segment", "0.5"], "--segment 0.5"),
    ],
)
def test_bad_calls_are_refused_in_one_line(model, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as error:
        call(wav(tmp_path / "a.wav", 8000), *words)
    assert "\n" not in str(error.value)
    assert model.batches == []


def test_a_task_the_run_cannot_do_is_refused(model, tmp_path):
    model.modes = frozenset({"s2tt"})
    with pytest.raises(UserError, match="--task asr: this run can do s2tt"):
        call(wav(tmp_path / "a.wav", 8000), "--task", "asr", "--to", "eng")


def test_output_inside_an_input_folder_is_refused(model, tmp_path):
    wav(tmp_path / "in" / "a.wav", 8000)
    with pytest.raises(UserError, match="would become input"):
        call(tmp_path / "in", "--task", "s2st", "--to", "eng", "--out", tmp_path / "in" / "out")


def test_many_inputs_are_served_in_windows(model, tmp_path):
    paths = [wav(tmp_path / f"{n}.wav", 2000 + 10 * ((n * 7) % 40)) for n in range(40)]
    translator = Translator(model, "s2tt", "eng", batch_size=1)
    served = translator.serve([Item(p.stem, str(p), p) for p in paths])
    first = next(iter(served))
    assert first.id == "0"
    # Lines come out before all is read: one window is 16 batches.
    assert len(model.batches) == 16
    assert [item.id for item in served] == [str(n) for n in range(1, 40)]
    assert len(model.batches) == 40


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="--device cuda:99: there is none here"):
        pick_device("cuda:99")
    with pytest.raises(UserError, match="--device tpuu"):
        pick_device("tpuu")
    assert pick_device("cpu").type == "cpu"
