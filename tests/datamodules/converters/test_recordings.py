"""Corpora of parts of recordings: MuST-C, IWSLT, Kaldi, Lhotse, NeMo, SeamlessM4T."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from small_corpora import clip, converted, encoded, lines, table, tar
from voxzoo.components.errors import UserError


def must_c(root: Path, *, translations: int = 3) -> Path:
    split = root / "en-de" / "data" / "train"
    clip(split / "wav" / "ted_1.wav", 4.0)
    table(
        split / "txt" / "train.yaml",
        "- {duration: 1.5, offset: 0.25, rW: 9, uW: 0, speaker_id: spk.1, wav: ted_1.wav}",
        "- duration: 1.0\n  offset: 2.0\n  speaker_id: spk.1\n  wav: ted_1.wav",
        "- {duration: 1.0, offset: 0.0, rW: 1, uW: 0, speaker_id: spk.2, wav: ted_2.wav}",
    )
    table(split / "txt" / "train.en", "Hello: \u2028world.", "Good morning.", "Not there.")
    table(split / "txt" / "train.de", *["Hallo: Welt.", "Guten Morgen.", "Nicht da."][:translations])
    return root / "en-de"


def test_must_c(tmp_path: Path):
    rows, result = converted("mustc", must_c(tmp_path), tmp_path / "m.jsonl")
    assert rows[0] == {
        "id": "train/ted_1_0", "audio": "en-de/data/train/wav/ted_1.wav", "offset": 0.25, "duration": 1.5,
        "src_lang": "eng", "tgt_lang": "deu", "src_text": "Hello: \u2028world.", "tgt_text": "Hallo: Welt.",
        "speaker": "spk.1", "split": "train",
    }  # fmt: skip
    assert (rows[1]["id"], rows[1]["offset"], rows[1]["tgt_text"]) == ("train/ted_1_1", 2.0, "Guten Morgen.")
    assert result.left_out == {"no such audio file": 1}
    assert result.seconds == 2.5


def test_mtedx_has_flac(tmp_path: Path):
    folder = must_c(tmp_path)
    clip(folder / "data" / "train" / "wav" / "ted_2.flac", 1.0)
    rows, result = converted("mustc", folder, tmp_path / "m.jsonl")
    assert rows[2]["audio"].endswith("wav/ted_2.flac")
    assert not result.left_out


def test_texts_that_do_not_fit_must_c(tmp_path: Path):
    with pytest.raises(UserError, match=r"train\.de ends behind line 2, and others do not"):
        converted("mustc", must_c(tmp_path, translations=2), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def test_iwslt_in_yaml(tmp_path: Path):
    """As `que_spa_clean`: three letters, one clip a line, a true-cased text beside, no source text in the test set."""
    root = tmp_path / "que_spa_clean"
    for split in ("train", "valid"):
        clip(root / split / "wav" / f"{split}1.wav", 1.0)
        table(
            root / split / "txt" / f"{split}.yaml",
            f"- {{duration: 1.0, offset: 0.0, speaker_id: ANA, wav: {split}1.wav}}",
        )
        table(root / split / "txt" / f"{split}.spa", "matemos a esos")
        table(root / split / "txt" / f"{split}.spa.tc", "Matemos a esos")
        table(root / split / "txt" / "segments", "x")
    table(root / "train" / "txt" / "train.que", "wañuchisunchu")
    rows, _ = converted("iwslt", root, tmp_path / "m.jsonl")
    assert [(row["split"], row.get("src_text"), row["tgt_text"]) for row in rows] == [
        ("train", "wañuchisunchu", "matemos a esos"),
        ("valid", None, "matemos a esos"),
    ]
    assert {(row["src_lang"], row["tgt_lang"], row["speaker"]) for row in rows} == {("que", "spa", "ANA")}


def test_iwslt_with_its_recordings_elsewhere_and_by_stm(tmp_path: Path):
    root = tmp_path / "taq_fra"
    clip(tmp_path / "all_files" / "a.wav", 3.0)
    table(
        root / "train" / "stm" / "train.stm", ";; of 2022", "a 1 spk 0.5 1.75 <o,f0,male> bonjour à tous", "a 1 spk 0.5"
    )
    rows, result = converted("iwslt", root, tmp_path / "m.jsonl", beside=tmp_path / "all_files")
    assert [(row["offset"], row["duration"], row["tgt_text"], row["tgt_lang"]) for row in rows] == [
        (0.5, 1.25, "bonjour à tous", "fra")
    ]
    assert rows[0]["src_lang"] == "taq"
    assert result.left_out == {"a line of train.stm with fewer than five fields": 1}


def test_iwslt_as_rows(tmp_path: Path):
    root = tmp_path / "que_spa"
    row = {"id": "q0", "audio": "audio/train/q0.ogg", "duration": 0.5, "src_lang": "que", "tgt_lang": "spa"}
    row = {**row, "src_text": "wañuchisunchu", "tgt_text": "matemos", "speaker": "ANA"}
    clip(root / "audio" / "train" / "q0.ogg")
    lines(root / "train.jsonl", row)
    lines(root / "test.jsonl", {**row, "id": "q1", "src_text": None})
    rows, _ = converted("iwslt", root, tmp_path / "m.jsonl")
    assert [(one["id"], one["split"]) for one in rows] == [("q1", "test"), ("q0", "train")]
    assert {**rows[1], "audio": row["audio"]} == {**row, "split": "train"}


def kaldi(root: Path, scp: str = "rec1 talk.wav") -> Path:
    clip(root / "talk.wav", 4.0)
    (root / "wav.scp").write_text(f"{scp}\n")
    table(root / "segments", "utt2 rec1 2.0 -1", "utt1 rec1 0.5 1.5", "utt3 rec1 3 2", "utt4 rec9 0 1")
    table(root / "text", "utt1 uno dos", "utt2 tres")
    table(root / "text.tc.en", "utt2 Three.", "utt1 One, two.")
    table(root / "text.lc.rm.en", "utt1 one two", "utt2 three")
    table(root / "utt2spk", "utt1 ana", "utt2 eva")
    return root


def test_kaldi(tmp_path: Path):
    rows, result = converted("kaldi", kaldi(tmp_path / "d"), tmp_path / "m.jsonl", src_lang="spa", tgt_lang="eng")
    assert [(row["id"], row["offset"], row["duration"]) for row in rows] == [("utt2", 2.0, 2.0), ("utt1", 0.5, 1.0)]
    assert (rows[1]["src_text"], rows[1]["tgt_text"], rows[1]["speaker"]) == ("uno dos", "One, two.", "ana")
    assert result.left_out == {
        "a segment that ends before it begins": 1,
        "a segment of a recording that wav.scp does not have": 1,
    }
    with pytest.raises(UserError, match=r"no text in fra; expected text.fra"):
        converted("kaldi", tmp_path / "d", tmp_path / "n.jsonl", src_lang="spa", tgt_lang="fra")


def test_kaldi_without_segments(tmp_path: Path):
    folder = kaldi(tmp_path / "d", "utt1 talk.wav")
    (folder / "segments").unlink()
    table(folder / "utt2lang", "utt1 es")
    rows, _ = converted("kaldi", folder, tmp_path / "m.jsonl")
    assert [(row["id"], row["duration"], row["src_lang"], row["audio"]) for row in rows] == [
        ("utt1", 4.0, "spa", "d/talk.wav")
    ]


@pytest.mark.parametrize(
    ("scp", "words"),
    [
        ("rec1 sph2pipe -f wav a.sph |", r"wav\.scp, line 1: the recording 'rec1' is a command, which is not run here"),
        (
            "rec1 wavs.ark:1234",
            r"wav\.scp, line 1: the recording 'rec1' lies in an archive of Kaldi; write it as a file",
        ),
    ],
)
def test_what_kaldi_would_run(tmp_path: Path, scp: str, words: str):
    with pytest.raises(UserError, match=words):
        converted("kaldi", kaldi(tmp_path / "d", scp), tmp_path / "m.jsonl", src_lang="spa")


def cut(name: str, **changed: object) -> dict:
    recording = {
        "id": "talk", "sources": [{"type": "file", "channels": [0], "source": "talk.wav"}],
        "sampling_rate": 16000, "num_samples": 64000, "duration": 4.0, "channel_ids": [0],
    }  # fmt: skip
    spoken = {"id": f"{name}-s", "recording_id": "talk", "start": 0.0, "duration": 1.0, "channel": 0, "text": "hola"}
    spoken = {**spoken, "language": "Spanish", "speaker": "ana", "custom": {"translated_text": {"eng": "hello"}}}
    whole = {"id": name, "start": 1.0, "duration": 1.0, "channel": 0, "supervisions": [spoken], "recording": recording}
    return {**whole, "type": "MonoCut", **changed}


def test_lhotse(tmp_path: Path):
    clip(tmp_path / "talk.wav", 4.0)
    one = cut("c1")
    said = one["supervisions"][0]
    stereo = {**one["recording"], "sources": [{"type": "file", "channels": [0, 1], "source": "two.wav"}]}
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "two.wav", np.zeros((64000, 2)) + 0.1, 16000)
    cuts = [
        one,
        cut("c2", start=0.0, duration=4.0),
        cut("c3", supervisions=[{**said, "id": "s1"}, {**said, "id": "s2", "start": 1.5, "custom": None}]),
        cut("c4", recording={**stereo, "channel_ids": [0, 1]}, channel=1),
        cut("c5", type="MixedCut"),
        cut("c6", recording={**one["recording"], "transforms": [{"name": "Speed"}]}),
        cut("c7", recording={**one["recording"], "sources": [{"type": "command", "source": "cat a"}]}),
    ]
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(each) + "\n" for each in cuts)
    rows, result = converted("lhotse", tmp_path / "cuts.jsonl.gz", tmp_path / "m.jsonl")
    assert [(row["id"], row.get("offset"), row["duration"], row.get("channel")) for row in rows] == [
        ("c1", 1.0, 1.0, None), ("c2", None, 4.0, None), ("s1", 1.0, 1.0, None), ("s2", 2.5, 1.0, None),
        ("c4", 1.0, 1.0, 1),
    ]  # fmt: skip
    assert (rows[0]["src_lang"], rows[0]["tgt_lang"], rows[0]["tgt_text"]) == ("spa", "eng", "hello")
    assert "tgt_text" not in rows[3]
    assert sum(result.left_out.values()) == 3
    assert result.left_out["a recording of the kind command"] == 1


def test_nemo(tmp_path: Path):
    clip(tmp_path / "a.wav", 3.0)
    row = {"audio_filepath": "a.wav", "duration": 1.0, "offset": 0.5, "text": "hola", "lang": "es"}
    canary = {"audio_filepath": "a.wav", "duration": 3.0, "text": "hello", "source_lang": "es", "target_lang": "en"}
    path = lines(
        tmp_path / "train.json", row, canary, {**canary, "target_lang": "de", "text": "hola", "answer": "hallo"},
        {**row, "audio_filepath": "b.wav"}, {"text": "no audio"}, {**row, "duration": None}, {**row, "lang": "qq"},
    )  # fmt: skip
    path.write_text(path.read_text() + "{broken\n")
    rows, result = converted("nemo", path, tmp_path / "m.jsonl")
    assert [(row["id"], row.get("src_text"), row.get("tgt_lang"), row.get("tgt_text")) for row in rows] == [
        ("a-0.5", "hola", None, None), ("a-en", None, "eng", "hello"), ("a-de", "hola", "deu", "hallo")
    ]  # fmt: skip
    assert sum(result.left_out.values()) == 5
    assert any("'qq'" in reason for reason in result.left_out)


def test_tarred_nemo(tmp_path: Path):
    for shard in range(2):
        tar(tmp_path / "tars" / f"audio_{shard}.tar", {f"{shard}.flac": encoded(seconds=0.5 + shard)})
    rows = [
        {"audio_filepath": f"{i}.flac", "shard_id": i % 2, "duration": 0.5 + i, "text": "x", "lang": "en"}
        for i in range(3)
    ]
    path = lines(tmp_path / "train.json", *rows)
    rows, result = converted("nemo", path, tmp_path / "m.jsonl", beside=tmp_path / "tars")
    assert [row["audio"].partition("#")[0] for row in rows] == ["tars/audio_0.tar", "tars/audio_1.tar"]
    assert result.left_out == {"audio that its shard does not have": 1}
    with pytest.raises(UserError, match=r"there is no audio_N\.tar: say --with FOLDER"):
        converted("nemo", path, tmp_path / "n.jsonl")


def test_seamless_m4t(tmp_path: Path):
    clip(tmp_path / "a.wav")
    clip(tmp_path / "b.wav", 0.7)
    near = {"id": 7, "lang": "eng", "text": "hello", "audio_local_path": "a.wav", "sampling_rate": 16000, "units": None}
    far = {"id": 7, "lang": "cmn_Hant", "text": "你好", "audio_local_path": str(tmp_path / "b.wav"), "units": [1, 2]}
    path = lines(tmp_path / "train_manifest.json", {"source": near, "target": far}, {"source": near})
    rows, result = converted("seamless_m4t", path, tmp_path / "m.jsonl")
    assert [(row["id"], row["tgt_lang"], row["tgt_text"], row["tgt_audio"], row["duration"]) for row in rows] == [
        ("7-eng-cmn_Hant-a", "cmn_Hant", "你好", "b.wav", 0.5)
    ]
    assert result.left_out == {"a row without source and target": 1}
    assert "1 rows have target units" in result.said[0]
