"""Codec frames of a corpus: lines, reading, writing them from a codec, going on, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from voxzoo.components.cards import Card
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded
from voxzoo.datamodules.codes import line_of, parse_line, read_codes
from voxzoo.datamodules.manifest import Utterance
from voxzoo.tasks.units import card_beside, extract_codes


def test_a_line_is_compact_and_comes_back():
    codes = np.arange(750 * 8).reshape(750, 8) % 1024
    line = line_of("a", codes)
    assert len(line) < 10 * 1650  # ten seconds
    name, again = parse_line(line)
    assert name == "a"
    assert np.array_equal(again, codes)
    assert parse_line(line_of("b", codes[:0]))[1].shape == (0, 8)


def test_codes_are_found_by_id_the_last_line_counts_and_workers_get_them(tmp_path: Path):
    path = tmp_path / "codes.jsonl"
    rows = {"a": np.ones((3, 2), int), "b": np.full((5, 2), 7), "c": np.zeros((0, 2), int)}
    first = line_of("b", np.full((1, 2), 3))
    path.write_text(first + "".join(line_of(name, codes) for name, codes in rows.items()))
    found = pickle.loads(pickle.dumps(read_codes(path)))
    assert found.streams == 2
    assert sorted(found) == ["a", "b", "c"]
    assert all(np.array_equal(found[name], codes) for name, codes in rows.items())
    assert found.lengths(["b", "none", "a", "c"]).tolist() == [5, -1, 3, 0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "b", "units": [1]}', 'line 2: expected {"id": ..., "streams": 8, "codes": base64}'),
        ('{"id": "b", "streams": 2, "codes": "&&&&"}', "line 2: expected"),
        ('{"id": "b", "streams": 4, "codes": "AAAA"}', "line 2: expected"),
        (line_of("b", np.zeros((2, 3), int)), "line 2: 3 streams, but those before have 2; write the file anew"),
    ],
)
def test_a_line_that_is_none_is_refused_with_its_number(line: str, words: str, tmp_path: Path):
    (tmp_path / "codes.jsonl").write_text(line_of("a", np.zeros((2, 2), int)) + line + "\n")
    with pytest.raises(UserError) as caught:
        read_codes(tmp_path / "codes.jsonl")
    assert words in str(caught.value)


class Steps:
    """A codec of 320 samples a frame; a code is the frame's number plus the stream."""

    num_codebooks, codebook_size, device = 4, 1000, torch.device("cpu")

    def __init__(self, weights: str = "w") -> None:
        self.weights, self.calls = weights, 0

    def encode(self, speech: Padded, streams: int, rate: int) -> Padded:
        assert rate == 16000
        self.calls += 1
        lengths = speech.lengths // 320
        frames = torch.arange(int(lengths.max()))[None, :, None] + torch.arange(streams)
        return Padded(frames.expand(len(speech), -1, -1), lengths)

    def card(self) -> Card:
        return Card("codec", {"weights": self.weights})


def clips(folder: Path, count: int) -> list[Utterance]:
    rows = []
    for number in range(count):
        path = folder / f"{number}.wav"
        soundfile.write(path, np.zeros(3200 * (number + 1)), 16000)
        rows.append(SimpleNamespace(id=str(number), audio=None, tgt_audio=str(path)))
    return rows


def extract(codec: Any, rows: Any, path: Path, streams: int = 2) -> dict[str, Any]:
    return extract_codes(codec, rows, path=path, num_codebooks=streams, batch_seconds=0.5)


def test_codes_of_a_corpus_are_written_once_and_gone_on_with(tmp_path: Path):
    rows, path, codec = clips(tmp_path, 5), tmp_path / "codes.jsonl", Steps()
    first = extract(codec, rows[:3], path)
    assert (first["utterances"], first["new"], first["frames"]) == (3, 3, 10 + 20 + 30)
    assert card_beside(path) == Card("codec", {"weights": "w"})
    assert read_codes(path)["1"].tolist() == [[n, n + 1] for n in range(20)]
    calls = codec.calls
    assert extract(codec, rows[:3], path)["new"] == 0
    assert codec.calls == calls
    assert extract(codec, rows, path)["new"] == 2
    assert sorted(read_codes(path)) == list("01234")
    # A call that was killed in the middle of a line.
    whole = path.read_text()
    partial = tmp_path / ".codes.jsonl.partial"
    path.rename(partial)
    partial.write_text("".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:20])
    assert extract(codec, rows, path)["new"] == 3
    assert {name: codes.tolist() for name, codes in read_codes(path).items()} == {
        name: codes.tolist() for name, codes in read_codes(_again(tmp_path, whole)).items()
    }


def test_codes_of_another_recording_are_refused(tmp_path: Path):
    path = tmp_path / "codes.jsonl"
    (tmp_path / "valid").mkdir()
    extract(Steps(), clips(tmp_path, 2), path)
    others = clips(tmp_path / "valid", 3)  # the same clips elsewhere, and one more
    assert extract(Steps(), others, path)["new"] == 1
    others[1].id = "0"
    with pytest.raises(UserError, match=r"codes.jsonl: the id '0' is there already, of another recording than .*1.wav"):
        extract(Steps(), others[1:], path)
    assert len(read_codes(path)) == 3


def _again(folder: Path, text: str) -> Path:
    (folder / "again.jsonl").write_text(text)
    return folder / "again.jsonl"


def test_codes_of_another_codec_or_of_more_streams_are_written_anew(tmp_path: Path):
    rows, path = clips(tmp_path, 2), tmp_path / "codes.jsonl"
    extract(Steps(), rows, path)
    assert extract(Steps("other"), rows, path)["new"] == 2
    assert json.loads((tmp_path / "codes.card.json").read_text())["weights"] == "other"
    assert extract(Steps("other"), rows, path, streams=4)["new"] == 2
    assert read_codes(path).streams == 4
    with pytest.raises(UserError, match="5 codebooks: the codec has 4; expected 1 to that"):
        extract(Steps(), rows, path, streams=5)
