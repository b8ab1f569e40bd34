"""`voxzoo check` says what training would leave out of its manifests, and refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import PARTS
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.configs.compose import compose
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.planning import leaving_out
from voxzoo.tasks.planning.leaving_out import left_out_of
from voxzoo.tasks.planning.shapes import fake_task

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def rows(path: Path, count: int, **changes: dict) -> Path:
    """`changes`: place (`u3`) -> what is otherwise there."""
    with path.open("w") as out:
        for number in range(count):
            row = {"id": f"u{number}", "audio": "none.wav", "duration": 2.0, "src_lang": "spa", "tgt_lang": "eng",
                   "src_text": "uno", "tgt_text": " ".join(WORDS[: 1 + number % 3])}  # fmt: skip
            row.update(changes.get(f"u{number}", {}))
            out.write(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece([" ".join(WORDS)] * 5, tmp_path_factory.mktemp("v") / "tokenizer.model", 60, 2)


def asked(train: Path, *more: str) -> list[str]:
    return [*PARTS, "data=manifest", f"data.train={train}", *more]


def known(vocabulary: Path) -> list[str]:
    return [f"tokenizer.model={vocabulary}", "tokenizer.languages=[eng,spa]", "text_seq2seq.max_positions=20"]


def test_the_rows_that_training_would_leave_out_are_named(tmp_path, vocabulary, capfd):
    train = rows(
        tmp_path / "train.jsonl", 9,
        u1={"tgt_lang": "deu"}, u2={"tgt_text": " ".join(WORDS * 4)}, u4={"tgt_text": ""}, u5={"duration": 99.0},
        u6={"duration": None},
    )  # fmt: skip
    valid = rows(tmp_path / "valid.jsonl", 3)
    words = asked(train, f"data.valid={valid}", *known(vocabulary))
    assert main(["check", *words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["stages"]["run"]["left_out"]
    assert found["valid"] == {"rows": 3, "all_rows": True, "reasons": {}}
    assert found["train"]["rows"] == 9
    assert {reason: one["first"] for reason, one in found["train"]["reasons"].items()} == {
        "no token for the language 'deu' in the tokenizer": ["u1"],
        "more than 18 tokens, the most that the model has positions for": ["u2"],
        "no target text": ["u4"],
        "longer than 35 s": ["u5"],
    }
    assert main(["check", *words]) == 0
    said = capfd.readouterr().out
    assert "data.train: 1 of 9 rows would be left out: no token for the language 'deu' in the tokenizer: u1" in said
    assert "data.valid: none of 3 rows would be left out" in said
    # Without a vocabulary nothing is said of tokens.
    assert main(["check", *asked(train, "text_seq2seq.max_positions=20"), "--json"]) == 0
    reasons = json.loads(capfd.readouterr().out)["stages"]["run"]["left_out"]["train"]["reasons"]
    assert [*reasons] == ["no target text", "longer than 35 s"]


def test_what_training_refuses_is_refused(tmp_path, vocabulary, capfd):
    train = rows(tmp_path / "train.jsonl", 4, u2={"src_lang": "klingon"})
    assert main(["check", *asked(train)]) == 1
    assert "train.jsonl: 1 fault\n  line 3, src_lang: no language has the code 'klingon'" in capfd.readouterr().err
    assert main(["check", *asked(train, "data.on_error=skip")]) == 0
    train = rows(tmp_path / "none.jsonl", 2, u0={"tgt_lang": "deu"}, u1={"tgt_text": None})
    assert main(["check", *asked(train, *known(vocabulary))]) == 1
    assert "data.train: none of 2 rows can be used: 1 no token for the language 'deu'" in capfd.readouterr().err


def test_large_manifests_are_looked_at_from_their_beginning(tmp_path, monkeypatch, vocabulary, capfd):
    monkeypatch.setattr(leaving_out, "MOST_ROWS", 10)
    train = rows(tmp_path / "train.jsonl", 12, u3={"tgt_lang": "deu"}, u11={"src_lang": "klingon"})
    assert main(["check", *asked(train, *known(vocabulary))]) == 0
    assert "data.train: 1 of the first 10 rows would be left out" in capfd.readouterr().out


@pytest.mark.slow
def test_a_million_rows_take_seconds(tmp_path, vocabulary):
    train = rows(tmp_path / "train.jsonl", 1_000_000)
    config = compose(asked(train, *known(vocabulary), "data.max_tokens=30"))
    task = fake_task(config)
    begin = time.process_time()
    found = left_out_of(config, task)
    assert time.process_time() - begin < 8
    assert found["train"].rows == leaving_out.MOST_ROWS
    assert not found["train"].is_all
