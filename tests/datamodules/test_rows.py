"""Columns of a manifest: they say what its lines say, are made once, and hold when processes start or die together."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import soundfile
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.errors import UserError
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.datamodules import SpeechTranslationData, Utterance, array_file, derived, read_manifest, rows
from voxzoo.datamodules.audio import AudioError, AudioFiles, audio_seconds
from voxzoo.datamodules.collator import FROM_SPEECH, TASKS
from voxzoo.datamodules.rows import open_rows
from voxzoo.datamodules.selection import Limits, as_task, measure_files, select

FORK = multiprocessing.get_context("fork")
TEXTS = ["", "hola", "¿qué tal?", "日本語 テキスト", "a b c d e f g", "  wide  ", "line\u2028end", "\ud800", "😀 x"]
PATHS = ["w1.wav", "w2.wav", "./sub//w1.wav", "sub/../w2.wav", "é/ñ.wav", ".", "/there/x.wav", "/", "sub/", "bad.wav"]


@pytest.fixture(autouse=True)
def small_ones_are_kept_too(monkeypatch):
    monkeypatch.setattr(derived, "WORTH_KEEPING", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    (root / "sub").mkdir()
    for number, name in enumerate(("w1.wav", "w2.wav", "sub/w1.wav")):
        soundfile.write(root / name, 0.1 * np.ones(4000 + 9000 * number), 16000)
    (root / "bad.wav").write_bytes(b"RIFF no more")
    return root


def manifest(folder, seed, count=40):
    """Odd rows that are all good."""
    pick = random.Random(seed)
    content = []
    for number in range(count):
        row = {"id": pick.choice([f"u{number}", f"ü {number}", number]), "src_lang": pick.choice(["spa", "fra", "deu"])}
        optional = {
            "audio": pick.choice(PATHS),
            "duration": pick.choice([0.05, 0.2, 1.5, 7, "40.0"]),
            "src_text": pick.choice(TEXTS),
            "tgt_audio": pick.choice(PATHS),
            "speaker": pick.choice(["ana", "ñu", ""]),
            "split": pick.choice(["train", "test"]),
            "mood": pick.choice([None, 3]),
        }
        row.update({key: value for key, value in optional.items() if pick.random() < 0.6})
        if pick.random() < 0.7:
            row.update(tgt_lang="eng", tgt_text=pick.choice(TEXTS))
        if not row.get("audio") and not row.get("src_text", "").strip():
            row["src_text"] = "said"
        content.append(json.dumps(row, ensure_ascii=pick.random() < 0.5 or "\ud800" in "".join(map(str, row.values()))))
    path = folder / f"{seed}.jsonl"
    path.write_bytes("\r\n".join(content).encode())
    return path


@pytest.mark.parametrize("seed", range(12))
def test_columns_say_what_the_lines_say(folder, tmp_path, seed, monkeypatch):
    path = manifest(folder, seed)
    lines = read_manifest(path)
    monkeypatch.chdir(folder)
    for name, cache in ((path, None), (path, tmp_path), (path, tmp_path), (Path(path.name), None)):
        want = lines if name is path else read_manifest(name)
        found = open_rows(name, cache)
        assert list(found) == list(want)
        assert [found[place] for place in range(-len(want), len(want))] == [*want, *want]
        assert list(found[3:30:4]) == want[3:30:4]
        assert list(found[5:][2:9]) == want[5:][2:9]
        assert found.extra == want.extra
        assert list(pickle.loads(pickle.dumps(found[::3]))) == want[::3]
        assert list(found.texts("tgt_text")) == [row.tgt_text for row in want]
        assert found.characters("src_text").tolist() == [len(row.src_text) for row in want]
        assert found.has("audio").tolist() == [bool(row.audio) for row in want]
        assert found.labels("speaker") == {row.speaker or "" for row in want}
        assert list(found.of_split("test")) == [row for row in want if row.split == "test"]
        seconds = [None if np.isnan(value) else value for value in found.durations()]
        assert seconds == [row.duration for row in want]
    assert len(list((tmp_path / "manifests").glob("*.rows"))) == 1


FAULTY = [
    '{"id": "a"}\n',
    "",
    "\n\n",
    "{oops\n",
    '{"id": "a", "src_lang": "spa", "src_text": "x"}\n' * 2,
    '{"id": "a", "src_lang": "spa", "src_text": "x"}\n{"id": "a", "src_lang": "spa", "duration": -1}\n',
    '{"id": "a", "src_lang": "spa", "src_text": "x"}\n' + "[1]\n" * 30,
]


@pytest.mark.parametrize("content", FAULTY)
@pytest.mark.parametrize("kept", [True, False])
def test_faults_are_said_as_ever_and_nothing_is_kept(tmp_path, content, kept):
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as want:
        read_manifest(path)
    with pytest.raises(UserError) as found:
        open_rows(path, tmp_path / "cache" if kept else None)
    assert str(found.value) == str(want.value)
    assert not list(tmp_path.glob("cache/manifests/*.rows"))


@pytest.mark.parametrize("name", ["m.csv", "missing.jsonl"])
def test_what_is_no_manifest(tmp_path, name):
    with pytest.raises(UserError, match=r"ends in|no such manifest"):
        open_rows(tmp_path / name, tmp_path)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Counts the times that columns are made, over all processes."""
    log, make = tmp_path / "made", rows._columns

    def counted(*where):
        with log.open("a") as file:
            file.write("x")
        return make(*where)

    monkeypatch.setattr(rows, "_columns", counted)
    return lambda: len(log.read_text()) if log.exists() else 0


def row(name, text="hola"):
    return Utterance(id=name, src_lang="spa", src_text=text)


def write(path, *utterances):
    path.write_text(
        "".join(json.dumps({"id": u.id, "src_lang": "spa", "src_text": u.src_text}) + "\n" for u in utterances)
    )
    return path


def test_a_changed_manifest_is_read_again_and_one_that_is_touched_is_not(tmp_path, made):
    path = write(tmp_path / "m.jsonl", row("a"), row("b"))
    time = path.stat().st_mtime_ns
    assert [list(open_rows(path, tmp_path)) for _ in range(3)] == [[row("a"), row("b")]] * 3
    assert made() == 1
    os.utime(path, ns=(time + 10**12, time + 10**12))
    open_rows(path, tmp_path)
    assert made() == 1
    write(path, row("a"), row("c"))  # of equal size, and as old as before
    os.utime(path, ns=(time, time))
    assert list(open_rows(path, tmp_path)) == [row("a"), row("c")]
    assert made() == 2
    write(path, row("a"), row("c"), row("d"))
    assert len(open_rows(path, tmp_path)) == 3
    assert made() == 3
    assert len(list((tmp_path / "manifests").glob("*.rows"))) == 1


def test_an_old_manifest_is_known_by_its_state_alone(tmp_path, made, monkeypatch):
    path = write(tmp_path / "m.jsonl", row("a"))
    monkeypatch.setattr(derived, "_SETTLED", -1)
    open_rows(path, tmp_path)
    monkeypatch.setattr(derived, "_digest", lambda path: pytest.fail("read again"))
    assert list(open_rows(path, tmp_path)) == [row("a")]
    assert made() == 1


def test_processes_that_start_at_once_make_the_columns_once(folder, tmp_path, made):
    path = manifest(folder, 99, 300)
    barrier, queue = FORK.Barrier(4), FORK.SimpleQueue()

    def start():
        barrier.wait(20)
        queue.put([one.id for one in open_rows(path, tmp_path)])

    processes = [FORK.Process(target=start) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert found == [[one.id for one in read_manifest(path)]] * 4
    assert made() == 1


def test_a_killed_build_leaves_nothing_half(tmp_path, monkeypatch, made):
    path = write(tmp_path / "m.jsonl", row("a"), row("b"))

    def die(*_):
        os._exit(9)

    monkeypatch.setattr(array_file.os, "replace", die)  # all is written, nothing has its name yet
    process = FORK.Process(target=open_rows, args=(path, tmp_path))
    process.start()
    process.join()
    monkeypatch.undo()
    monkeypatch.setattr(derived, "WORTH_KEEPING", 0)
    assert process.exitcode == 9
    cache = tmp_path / "manifests"
    assert len(list(cache.glob(".*.tmp"))) == 1
    assert not list(cache.glob("*.rows"))
    assert list(open_rows(path, tmp_path)) == [row("a"), row("b")]
    assert not list(cache.glob(".*.tmp"))
    (file,) = cache.glob("*.rows")
    file.write_bytes(file.read_bytes()[:-70])  # a disk that lost its end
    assert list(open_rows(path, tmp_path)) == [row("a"), row("b")]


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path):
    path = write(tmp_path / "m.jsonl", row("a"))
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="in memory instead"):
        found = open_rows(path, tmp_path / "cache")
    assert list(found) == [row("a")]


def make(path, **options):
    return SpeechTranslationData(**{"train": str(path), "batch_size": 8, "tasks": {"t2tt": True}, **options})


def test_what_a_worker_is_sent_does_not_grow_with_the_rows(tmp_path):
    sizes = []
    for count in (200, 5000):
        path = write(tmp_path / f"{count:04d}.jsonl", *(row(f"u{n}") for n in range(count)))
        data = make(path, cache_dir=str(tmp_path / "cache"))
        data.needs = frozenset({"source"})
        items, _, _ = data.plan(data.needs)
        assert len(items) == count
        sent = ForkingPickler.dumps(items)
        again = pickle.loads(sent)
        assert again[count - 1] == items[count - 1] == replace(row(f"u{count - 1}"), task="t2tt")
        sizes.append(len(sent))
    assert abs(sizes[0] - sizes[1]) < 20
    assert sizes[1] < 4000


def test_columns_that_changed_since_they_were_sent_are_refused(tmp_path):
    path = write(tmp_path / "m.jsonl", row("a"))
    sent = pickle.dumps(open_rows(path, tmp_path))
    write(path, row("a"), row("b"))
    open_rows(path, tmp_path)
    with pytest.raises(RuntimeError, match="written anew"):
        pickle.loads(sent)


# What is chosen


def judged(item, needs, limits, units, count):
    """Why one utterance is left out, its seconds and tokens: the rules one by one."""
    spoken = item.task in FROM_SPEECH
    reads_speech = spoken and "speech" in needs
    for lacks, reason in (
        (reads_speech and not item.audio, "no audio"),
        (not spoken and not item.src_text, "no source text"),
        ("target" in needs and not item.tgt_text and limits is not None, "no target text"),
        ("target_speech" in needs and not item.tgt_audio, "no target audio"),
        ("units" in needs and item.id not in units, "no units"),
    ):
        if lacks:
            return reason, 0, 0
    length = 0.0
    try:
        if reads_speech:
            length = item.duration or audio_seconds(item.audio)
        elif "target_speech" in needs:
            length = audio_seconds(item.tgt_audio)
        elif "units" in needs:
            length = 0.02 * len(units[item.id])
    except AudioError as error:
        return f"unreadable audio ({error})", 0, 0
    if length and limits is not None:
        if length < limits.min_seconds:
            return f"shorter than {limits.min_seconds:g} s", 0, 0
        if limits.max_seconds is not None and length > limits.max_seconds:
            return f"longer than {limits.max_seconds:g} s", 0, 0
        if reads_speech and limits.longest is not None and length / limits.slowest > limits.longest:
            speed = f" at {limits.slowest:g} times the speed" if limits.slowest < 1 else ""
            return f"longer than {limits.longest:g} s{speed}, the most that the model takes", 0, 0
    tokens = 0
    if count:
        tokens = len(item.tgt_text) + 3
        if not spoken:
            tokens = max(tokens, len(item.src_text) + 2)
        if limits is not None and limits.max_tokens is not None and tokens > limits.max_tokens:
            return f"more than {limits.max_tokens} tokens", 0, 0
    return "", length, tokens


@pytest.mark.parametrize("seed", range(60))
def test_what_is_chosen_is_what_is_judged_one_by_one(folder, seed):
    pick = random.Random(seed)
    found = open_rows(manifest(folder, seed % 7))
    if pick.random() < 0.4:
        found = found.of_split("train")
    tasks = tuple(task for task in TASKS if pick.random() < 0.5) or ("s2tt",)
    needs = frozenset(need for need in ("speech", "target", "units", "target_speech") if pick.random() < 0.4)
    limits = Limits(
        0.1, pick.choice([None, 5.0]), pick.choice([None, 3.0]), pick.choice([0.9, 1.0]), pick.choice([None, 9])
    )
    limits = pick.choice([None, limits, limits])
    units = {one.id: np.arange(pick.randint(1, 90)) for one in found if pick.random() < 0.8}
    count = pick.random() < 0.5

    def characters(key, places):
        return found.characters(key)[places]

    chosen = select(
        found, tasks, needs, limits=limits, units=units, count=characters if count else None,
        measure=lambda key, places: measure_files(found, key, places, AudioFiles()),
    )  # fmt: skip
    items, seconds, tokens, dropped = [], [], [], {}
    for one in found:
        for task in tasks:
            item = as_task(one, task)
            reason, length, number = judged(item, needs, limits, units, count)
            if reason:
                dropped.setdefault(reason, []).append(item.id)
            else:
                items.append(item if item.duration is not None or not item.audio else replace(item, duration=length))
                seconds.append(length)
                tokens.append(number)
    assert list(chosen.items) == items
    assert list(chosen.items[2:7]) == items[2:7]
    assert chosen.seconds.tolist() == seconds
    assert (chosen.tokens is None) == (not count)
    assert chosen.tokens is None or chosen.tokens.tolist() == tokens
    assert list(chosen.dropped.items()) == list(dropped.items())
    assert np.nan_to_num(chosen.items.durations()).tolist() == [item.duration or 0 for item in items]
    assert chosen.items.characters().tolist() == [max(len(i.src_text), len(i.tgt_text)) for i in items]
    assert [sorted(tasks)[number] for number in chosen.items.groups()] == [item.task for item in items]
    assert list(pickle.loads(pickle.dumps(chosen.items))) == items


def test_a_file_of_several_rows_is_measured_once_and_not_again(folder, monkeypatch):
    path = folder / "shared.jsonl"
    names = ["w1.wav", "w2.wav", "w1.wav", "gone.wav", "gone.wav"]
    path.write_text(
        "".join(json.dumps({"id": n, "audio": name, "src_lang": "spa"}) + "\n" for n, name in enumerate(names))
    )
    read = []
    monkeypatch.setattr(
        "voxzoo.datamodules.audio.audio_seconds", lambda path: read.append(Path(path).name) or audio_seconds(path)
    )
    data = make(path, tasks={"s2tt": True})
    for _ in range(2):
        items, _, _ = data.plan({"speech"})
        assert [item.id for item in items] == ["0", "1", "2"]
        assert [round(item.duration, 4) for item in items] == [0.25, 0.8125, 0.25]
        assert [ids for reason, ids in data.dropped["train"].items() if "no such audio file" in reason] == [["3", "4"]]
    assert sorted(read) == ["gone.wav", "gone.wav", "w1.wav", "w2.wav"]  # what could not be read is tried again


# Tokens


def test_tokens_are_counted_once_for_a_vocabulary(tmp_path, monkeypatch):
    texts = [f"the train {n} to Perú leaves at {n * 7 % 24} o'clock" for n in range(60)]
    tokenizers = [
        SentencePieceTokenizer(str(train_sentencepiece(texts, tmp_path / f"{size}", size, 1)), ["spa"], size)
        for size in (60, 90)
    ]
    path = write(tmp_path / "m.jsonl", *(row(f"u{n}", text) for n, text in enumerate(texts)))
    calls = []
    encode = SentencePieceTokenizer.encode
    monkeypatch.setattr(SentencePieceTokenizer, "encode", lambda self, text: calls.append(1) or encode(self, text))

    def counted(tokenizer, cache=tmp_path):
        data = make(path, cache_dir=None if cache is None else str(cache), tokenizer=tokenizer, batch_tokens=40)
        data.needs = frozenset({"source"})
        loader, before = data.train_dataloader(), len(calls)
        calls.clear()
        return [len(encode(tokenizer, item.src_text)) for item in loader.dataset.items], list(loader._plan), before

    first, second = tokenizers
    want = [counted(tokenizer, None)[:2] for tokenizer in tokenizers]
    assert want[0] != want[1]
    assert [counted(first), counted(first)] == [
        (*want[0], 60 + 60),
        (*want[0], 0),
    ]  # of both sides: the target is empty
    assert counted(second)[2] > 0
    assert counted(pickle.loads(pickle.dumps(second))) == (*want[1], 0)
    assert counted(first)[2] == 0
    write(path, *(row(f"u{n}", text + " now") for n, text in enumerate(texts)))
    assert counted(first)[2] > 0
    for size in range(91, 97):
        name = train_sentencepiece(texts, tmp_path / f"{size}", size, 1)
        counted(SentencePieceTokenizer(str(name), ["spa"], size))
    assert len(list((tmp_path / "manifests").glob("*.src_text-*.tokens"))) == 4


def test_tokens_of_a_tokenizer_that_is_not_ours_are_counted_each_time(tmp_path):
    class Own(SentencePieceTokenizer):
        def encode(self, text):
            return [*super().encode(text), *[1] * Own.more]

    model = train_sentencepiece(["hola que tal"] * 9, tmp_path / "v", 40, 1)
    path = write(tmp_path / "m.jsonl", row("a"), row("b", "que"))
    for Own.more in (0, 5):
        data = make(path, cache_dir=str(tmp_path), tokenizer=Own(str(model), ["spa"], 40), batch_tokens=40)
        tokens = data._select("train", False, ("t2tt",), frozenset(), data.budget).tokens
        assert tokens.tolist() == [len(data.tokenizer.encode(text)) + 2 for text in ("hola", "que")]
