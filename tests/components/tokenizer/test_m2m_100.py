"""M2M-100 of 2020: ids, generated text and files of a folder that transformers wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from published import publish_m2m_100
from voxzoo.components import M2M100Tokenizer
from voxzoo.components.contract import check_part
from voxzoo.components.converters import from_transformers, to_transformers
from voxzoo.components.errors import UserError
from voxzoo.components.types import Batch, Padded
from voxzoo.configs.build import build
from voxzoo.tasks.runs.published import export_run, write_run
from voxzoo.tasks.runs.run import load_run

transformers = pytest.importorskip("transformers")

MINE = '{"tokenizer_class": "M2M100Tokenizer", "language_codes": "mine"}'
TEXTS = [
    "the train leaves at nine",
    "  neun\tUhr,   bitte ",
    "¿verdad?",
    "日本 🙂 x",
    "__en__ </s> is no token",
    "",
    " ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_m2m_100(tmp_path_factory.mktemp("m2m") / "published")


def theirs(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_and_texts_are_those_of_transformers(folder: Path):
    ours, peer = from_transformers(folder).tokenizer, theirs(folder)
    assert isinstance(peer, transformers.M2M100Tokenizer)
    for lang, code in (("eng", "en"), ("de", "de"), ("zho_Hans", "zh"), ("nso", "ns")):
        assert ours.lang_id(lang) == peer.get_lang_id(code)
        peer.src_lang = peer.tgt_lang = code
        for text in TEXTS:
            if "__en__" in text:  # there text becomes a special token, here it never does
                assert not {ours.eos_id, ours.lang_id("eng")} & {*ours.encode(text)}
                continue
            assert ours.source(text, lang) == peer(text).input_ids
            assert ours.target(text, lang)[1:] == peer(text_target=text).input_ids
            ids = ours.encode(text)
            assert ours.decode(ours.target(text, lang)) == peer.decode(ids, skip_special_tokens=True)
    assert ours.unk_id in ours.encode("日")
    known = peer.get_vocab()
    assert [*ours.pieces()][: ours.num_entries] == [
        "" if number < 4 else name for name, number in sorted(known.items(), key=lambda item: item[1])
    ][: ours.num_entries]
    for code, name in zip(ours.codes, ours.languages, strict=True):
        assert peer.get_lang_id(code) == ours.lang_id(name) == ours.lang_id("nso" if code == "ns" else code)


def test_contract(folder: Path):
    node = {**from_transformers(folder).nodes["tokenizer"]}
    node.pop("_target_")
    assert len(check_part(lambda: M2M100Tokenizer(**node))) > 6


@pytest.mark.parametrize("languages", ["m2m100", "wmt21"])
def test_a_run_says_what_transformers_says_and_goes_out_as_it_came(languages: str, tmp_path: Path):
    published = publish_m2m_100(tmp_path / "published", languages)
    peer = transformers.M2M100ForConditionalGeneration.from_pretrained(published).eval()
    tokenizer = theirs(published)
    inputs = tokenizer(["the train leaves at nine", "neun Uhr"], return_tensors="pt", padding=True)
    rows = peer.generate(**inputs, forced_bos_token_id=tokenizer.get_lang_id("de"), suppress_tokens=[1])
    # Languages are no special tokens to transformers (5.x), so that its texts keep them.
    want = [re.sub("__[a-z]+__", "", text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    assert any(want)
    write_run(from_transformers(published), tmp_path / "run")
    published.rename(tmp_path / "gone")
    task = load_run(tmp_path / "run").task
    assert isinstance(task.tokenizer, M2M100Tokenizer)
    rows = [torch.tensor(task.tokenizer.source(text, "eng")) for text in ("the train leaves at nine", "neun Uhr")]
    source = Padded.from_list(rows, task.tokenizer.pad_id)
    assert torch.equal(source.data, inputs.input_ids)
    batch = Batch(ids=("a", "b"), task=("t2tt",) * 2, src_lang=("eng",) * 2, tgt_lang=("deu",) * 2, source=source)
    assert [found.text for found in task.predict(batch)] == want
    assert export_run(tmp_path / "run", tmp_path / "out")[1] == "m2m_100"
    for path in sorted((tmp_path / "gone").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_model_of_ones_own_goes_out_with_the_vocabulary(folder: Path, tmp_path: Path):
    model = from_transformers(folder)
    model.files = {}
    to_transformers(model, tmp_path / "out")
    tokenizer, before = theirs(tmp_path / "out"), theirs(folder)
    assert isinstance(tokenizer, transformers.M2M100Tokenizer)
    assert tokenizer("the train leaves at nine").input_ids[1:] == before("the train leaves at nine").input_ids[1:]
    assert json.loads((tmp_path / "out/config.json").read_text())["decoder_start_token_id"] == 2
    again = from_transformers(tmp_path / "out")
    assert again.nodes["tokenizer"]["languages"] == model.nodes["tokenizer"]["languages"]
    assert again.tokenizer.to_bytes() == model.tokenizer.to_bytes()
    few = {**model.nodes["tokenizer"], "languages": ["en", "de"]}
    model.tokenizer = build(few)
    with pytest.raises(UserError, match="2 languages; the published layout has the 100 of M2M-100"):
        to_transformers(model, tmp_path / "few")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("vocab.json", "{oops", r"vocab\.json: .*not.*JSON"),
        ("vocab.json", '{"<s>": 0, "<pad>": 1, "</s>": 2}', "the tokenizer has 103 ids"),
        ("vocab.json", None, r"there is no vocab\.json"),
        ("sentencepiece.bpe.model", "no model", "is not a SentencePiece model"),
        ("sentencepiece.bpe.model", None, r"there is no sentencepiece\.bpe\.model"),
        ("tokenizer_config.json", MINE, "'mine': expected one"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, content: str | None, match: str):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=match):
        from_transformers(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda vocabulary: vocabulary.pop("<unk>"), "is no vocabulary of M2M-100: it has no <unk>"),
        (lambda vocabulary: vocabulary.update({"</s>": 5}), "expected the ids 0 to"),
        (lambda vocabulary: vocabulary.update({"</s>": "2"}), "pieces and their ids, whole numbers"),
    ],
)
def test_a_vocabulary_of_another_form_is_refused(folder: Path, tmp_path: Path, change, match: str):
    node = {**from_transformers(folder).nodes["tokenizer"]}
    vocabulary = json.loads((folder / "vocab.json").read_text())
    change(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "sentencepiece.bpe.model").write_bytes((folder / "sentencepiece.bpe.model").read_bytes())
    with pytest.raises(UserError, match=match):
        M2M100Tokenizer(str(tmp_path / "vocab.json"), node["languages"], node["vocab_size"])
    good = str(folder / "vocab.json")
    with pytest.raises(UserError, match="names eng more than once"):
        M2M100Tokenizer(good, ["en", "eng"], node["vocab_size"])
    with pytest.raises(UserError, match="'xx' is no code of a language"):
        M2M100Tokenizer(good, ["xx"], node["vocab_size"])
    with pytest.raises(UserError, match="vocab_size=20 is too small"):
        M2M100Tokenizer(good, ["en"], 20)
