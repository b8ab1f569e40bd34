"""Published models as people have them: without a tokenizer, with vocab.json, of another kind than they look."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from published import publish_nllb, publish_whisper
from voxzoo.components import WhisperTokenizer
from voxzoo.components.converters import from_transformers, to_transformers
from voxzoo.components.errors import UserError
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.runs.published import write_run

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_whisper(tmp_path_factory.mktemp("published") / "whisper")


def split_up(folder: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json in place of tokenizer.json."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.unlink()
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))


TEXTS = ["the train leaves at nine", "  ¿verdad?  ", "neuf\theures\n日本 🙂", "<|en|> is no token", ""]


def test_whisper_with_vocab_and_merges_alone(whisper: Path, tmp_path: Path):
    shutil.copytree(whisper, tmp_path / "old")
    split_up(tmp_path / "old")
    new, old = from_transformers(whisper), from_transformers(tmp_path / "old")
    assert old.nodes["tokenizer"]["model"].endswith("vocab.json")
    for text in TEXTS:
        ids = old.tokenizer.encode(text)
        assert ids == new.tokenizer.encode(text)
        assert old.tokenizer.decode(ids) == new.tokenizer.decode(ids)
    assert old.tokenizer.languages == new.tokenizer.languages
    assert old.tokenizer.prefix("eng", "spa") == new.tokenizer.prefix("eng", "spa")
    write_run(old, tmp_path / "run")
    task = load_run(tmp_path / "run").task
    assert isinstance(task.tokenizer, WhisperTokenizer)
    assert task.tokenizer.encode(TEXTS[0]) == new.tokenizer.encode(TEXTS[0])
    to_transformers(old, tmp_path / "out")
    assert (tmp_path / "out/merges.txt").read_bytes() == (tmp_path / "old/merges.txt").read_bytes()


def test_a_vocabulary_without_merges_is_named(whisper: Path, tmp_path: Path):
    shutil.copytree(whisper, tmp_path / "old")
    split_up(tmp_path / "old")
    (tmp_path / "old/merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.json: expected merges\.txt beside it; there are added_tokens"):
        from_transformers(tmp_path / "old")
    (tmp_path / "old/merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match=r"merges\.txt: expected two pieces in each line; got 'a b c'"):
        from_transformers(tmp_path / "old")


@pytest.mark.parametrize("kind", ["whisper", "nllb"])
def test_a_checkpoint_of_a_trainer_with_the_tokenizer_of_its_base(
    kind: str, whisper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = whisper if kind == "whisper" else publish_nllb(tmp_path / "base")
    checkpoint = tmp_path / "checkpoint-500"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(base / name, checkpoint / name)
    (checkpoint / "optimizer.pt").write_bytes(b"not looked at")
    (checkpoint / "trainer_state.json").write_text("{}")
    assert main(["import", str(checkpoint), str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "beside config.json: generation_config.json, trainer_state.json" in said
    assert "--tokenizer FOLDER" in said
    assert main(["import", str(checkpoint), str(tmp_path / "run"), "--tokenizer", str(base)]) == 0
    task, whole = load_run(tmp_path / "run").task, from_transformers(base)
    assert task.tokenizer is not None
    assert task.tokenizer.encode(TEXTS[0]) == whole.tokenizer.encode(TEXTS[0])
    if kind == "whisper":
        assert task.config["frontend"] == whole.nodes["frontend"]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    capsys.readouterr()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/notes.txt").touch()
    assert main(["import", str(checkpoint), str(tmp_path / "b"), "--tokenizer", str(tmp_path / "nothing")]) == 1
    assert "model there; it holds notes.txt" in capsys.readouterr().err
    assert main(["import", str(base), str(tmp_path / "b"), "--tokenizer", str(base)]) == 1
    assert "has a tokenizer already" in capsys.readouterr().err
