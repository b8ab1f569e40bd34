"""Training on tar files with shares of languages: two processes, two workers, killed in the middle, on with one."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import PARTS
from small_corpora import clip, lines
from test_kill import Runs
from voxzoo.datamodules.packing import pack

SIZES = {"que": 60, "fra": 90, "spa": 150}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows of three languages, as files and in several tar files."""
    folder = tmp_path_factory.mktemp("shares")
    rows = []
    for lang, size in SIZES.items():
        for n in range(size):
            path = clip(folder / "clips" / f"{lang}{n}.wav", 0.3 + 0.002 * n, 200 + n)
            row = {"id": f"{lang}-{n}", "audio": f"clips/{path.name}", "duration": round(0.3 + 0.002 * n, 4)}
            rows.append(
                {**row, "src_lang": lang, "tgt_lang": "eng", "src_text": f"uno {n % 7}", "tgt_text": f"one {n % 5}"}
            )
    assert pack(lines(folder / "files.jsonl", *rows), folder / "packed", 200_000).files > 5
    lines(folder / "valid.jsonl", *rows[::40])
    return folder


def words(folder: Path, manifest: str) -> list[str]:
    data = [
        "data=manifest",
        f"data.train={folder}/{manifest}",
        f"data.valid={folder}/valid.jsonl",
        "data.num_workers=2",
    ]
    mix = ["data.mix.by=src_lang", "data.mix.temperature=inf"]
    return [*PARTS, *data, *mix, f"cache_dir={folder}/cache", "tokenizer.vocab_size=40"]


def languages(ids: list[str]) -> Counter[str]:
    return Counter(name.partition("-")[0] for name in ids)


@pytest.mark.slow
def test_shares_and_weights_are_those_of_a_run_that_was_never_killed(popen, corpus: Path, tmp_path: Path):
    runs = Runs(tmp_path, words(corpus, "packed/manifest.jsonl"))
    for name, more in (("whole", []), ("files", [f"data.train={corpus}/files.jsonl"])):
        code, said = runs.run(name, "ddp", "none 0 0 0", *more)
        assert code == 0, said
        assert "300 utterances an epoch: " in said
        first = [note for note in runs.notes(name) if "step" in note and note["epoch"] == 0]
        assert languages([row for note in first for row in note["ids"]]) == dict.fromkeys(SIZES, 100)
    # From tar files as from files, bit by bit.
    weights = [runs.last(name)["state_dict"] for name in ("whole", "files")]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])

    code, _ = runs.run("killed", "ddp", f"step -1 9 {int(signal.SIGKILL)}")
    assert code != 0
    code, said = runs.run("killed", "ddp")
    assert code == 0, said
    runs.same_end("killed", "whole")


@pytest.mark.slow
def test_shares_of_an_epoch_that_two_processes_begin_and_one_ends(popen, corpus: Path, tmp_path: Path):
    runs, longer = Runs(tmp_path, words(corpus, "packed/manifest.jsonl")), "trainer.max_steps=44"
    code, _ = runs.run("moved", "ddp", f"step -1 9 {int(signal.SIGKILL)}", longer)
    assert code != 0
    before = [note for note in runs.notes("moved") if "step" in note and note["step"] <= 8]
    for path in (tmp_path / "notes-moved").iterdir():
        path.unlink()
    code, said = runs.run("moved", "ddp", "none 0 0 0", longer, "trainer.devices=1")
    assert code == 0, said
    assert "the rest of it is dealt anew" in said
    after = [note for note in runs.notes("moved") if "step" in note and note["epoch"] == 0]
    assert min(note["step"] for note in after) == 9
    taken = languages([row for note in (*before, *after) for row in note["ids"]])
    assert taken == dict.fromkeys(SIZES, 100)
