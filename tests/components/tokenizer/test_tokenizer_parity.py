"""Tokenizers of NLLB and SeamlessM4T against transformers, both sides from the same folder."""

import json

import pytest
import torch
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.converters.tokenizers import export_tokenizer_files, generation_entries, tokenizer_node
from voxzoo.components.errors import UserError
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.configs.compose import compose

transformers = pytest.importorskip("transformers")

SAMPLE = [
    "Hello world",
    "hello",
    "¿Dónde está la biblioteca de Perú?",
    "Ça va? À bientôt, naïve coöperation Ångström",
    "Привет, мир! Ёлка",
    "你好，世界。欢迎",
    "日本語のテキスト カタカナ ｶﾞ",
    "한국어 텍스트",
    "العربية جميلة ٣٤",
    "हिन्दी भाषा क्षत्रिय",
    "ไทยภาษา",
    "ქართული ἑλληνικά",
    "0 1 23 456 7890 3.14 1,000 ½ ² ①",
    "😀 👍🏽 👨\u200d👩\u200d👧 🇪🇸 ❤\ufe0f 1\ufe0f\u20e3",
    "e\u0301 n\u0303 a\u0308 o\u0302",
    "e\u0302\u0301 u\u031b\u0301 a\u0306\u0300 \ufb01\u0301 q\u0301\u0302",
    "\u1e69 s\u0323\u0307 s\u0307\u0323",
    "ש\u05c1\u05bc \u0628\u064e\u0651",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁ ﬀ ㎏ ™ …",
    "",
    " ",
    "   ",
    "\u2581",
    "\u2581\u2581",
    " \u2581 \u2581a",
    "a\u2581b",
    " leading",
    "trailing ",
    "trailing   ",
    "  two  spaces   three",
    "tab\there\nnew\r\nline\rend\n",
    "\n",
    "\t a \n",
    "no\u00a0break\u2003em\u3000ideographic \u00a0",
    "zero\u200bwidth\u200d\u00adsoft\ufeffbom",
    "control\x01\x1c\x7f end\x1c",
    "unknown \u4e9c\u5516\u0b85\U00010348 unknown\u0b85",
    "\u0b85\u0b86 \u0b87",
    "a-b_c/d\\e'f\"g (h) [i] {j} #k @l %m &n *o",
    "UPPER lower MiXeD ıİß",
    "\u0600\u0661 \u06dd1",
]
TEXTS = [
    *[text for text in SAMPLE if text.strip(" \u2581\n\t") and "unknown" not in text and "\u0b85" not in text],
    *[f"the train to Perú leaves on may {day} at {hour} o'clock" for day in range(1, 8) for hour in range(1, 6)],
    "Việt Nam tiếng Việt ở đâu ê ế ệ ể",
    "hello world where is the library",
]
NLLB = ["ace_Arab", "ace_Latn", "eng_Latn", "zho_Hans", "zho_Hant", "<mask>"]
M4T = ["arb", "cmn", "cmn_Hant", "eng", "<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>"]
PEERS = {"nllb": transformers.NllbTokenizer, "seamless_m4t": transformers.SeamlessM4TTokenizer}
V = 420


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(
        TEXTS,
        tmp_path_factory.mktemp("spm") / "t.model",
        V - 10,
        num_languages=8,
        character_coverage=0.995,
        normalisation="nmt_nfkc",  # as published ones
    )


@pytest.fixture(scope="module", params=["nllb", "seamless_m4t"])
def layout(request):
    return request.param


@pytest.fixture(scope="module", params=["spm", "json"])
def pair(request, layout, model, tmp_path_factory):
    """(ours, theirs) from one folder, with a SentencePiece model or with tokenizer.json alone."""
    languages = NLLB if layout == "nllb" else M4T
    folder = tmp_path_factory.mktemp("folder")
    export_tokenizer_files(SentencePieceTokenizer(str(model), languages, V, layout), folder)
    if request.param == "json":
        saved = tmp_path_factory.mktemp("fast")
        PEERS[layout].from_pretrained(folder).save_pretrained(saved)
        assert not list(saved.glob("*.model"))
        folder = saved
    return from_folder(folder), PEERS[layout].from_pretrained(folder)


def from_folder(folder, **settings):
    node = tokenizer_node(folder, {"vocab_size": V, "model_type": "seamless_m4t", **settings})
    return SentencePieceTokenizer(**{key: value for key, value in node.items() if key != "_target_"})


def test_ids(pair):
    ours, theirs = pair
    unknown = 0
    for text in SAMPLE:
        want = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == want, (text, theirs.convert_ids_to_tokens(want))
        unknown += ours.unk_id in want
    assert 3 <= unknown <= len(SAMPLE) // 2  # the vocabulary knows most characters, and not all


@pytest.mark.parametrize("text", ["<s> </s> a", "eng_Latn hello __eng__", "<mask>the<MINED_DATA>", "<unk>"])
def test_text_never_becomes_a_control(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not {2, 0, ours.eos_id, ours.lang_id("eng")} & set(ours.encode(text))


def test_text(pair):
    ours, theirs = pair
    for text in SAMPLE:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        framed = ours.target(text, "eng")
        assert ours.decode(framed) == theirs.decode(framed, skip_special_tokens=True), text
    assert ours.decode(ours.encode("Hello world")) == "Hello world"


def test_sequences(pair, layout):
    ours, theirs = pair
    name = "eng_Latn" if layout == "nllb" else "eng"
    theirs.src_lang = theirs.tgt_lang = name
    call = theirs("Hello world", text_target="the train")
    assert ours.source("Hello world", "eng") == call.input_ids
    target = ours.target("the train", "eng")
    if layout == "nllb":  # the start token is put in front by the model
        assert target == [theirs.eos_token_id, *call.labels]
    else:
        assert target == call.labels
    assert ours.prefix("eng", "arb", "s2tt") == [theirs.eos_token_id, theirs.convert_tokens_to_ids(token(name, layout))]
    assert (ours.pad_id, ours.unk_id, ours.bos_id, ours.eos_id) == (
        theirs.pad_token_id,
        theirs.unk_token_id,
        theirs.bos_token_id,
        theirs.eos_token_id,
    )


def token(name, layout):
    return name if layout == "nllb" else f"__{name}__"


def test_languages(pair, layout):
    ours, theirs = pair
    written = [name for name in (NLLB if layout == "nllb" else M4T) if not name.startswith("<")]
    for name in written:
        assert ours.lang_id(name) == theirs.convert_tokens_to_ids(token(name, layout)) != ours.unk_id
    short = ("ace", "ace_Latn", "eng", "zho", "zho_Hant") if layout == "nllb" else ("arb", "cmn", "cmn_Hant", "eng")
    assert ours.languages == short
    assert all(ours.knows(name) for name in (*short, *written))
    assert not any(ours.knows(name) for name in ("xxx", "<mask>", "eng_Cyrl"))
    assert [ours.lang_id(name) for name in short] == [ours.lang_id(name) for name in written]
    assert [ours.lang_of(ours.lang_id(name)) for name in written] == list(short)
    assert len(ours.added) == len(NLLB if layout == "nllb" else M4T)
    assert ours.lang_of(ours.lang_id(short[-1]) + 1) is None


def test_pieces_are_those_of_the_vocabulary(pair):
    ours, theirs = pair
    pieces = ours.pieces()
    assert len(pieces) == V
    ordinary = range(4, ours.num_pieces + 1)
    assert [pieces[i] for i in ordinary] == theirs.convert_ids_to_tokens(list(ordinary))
    assert not any(pieces[i] for i in (0, 1, 2, 3, *range(ours.num_pieces + 1, V)))


def test_bytes_give_the_same(pair, layout):
    ours, _ = pair
    settings = {"languages": list(ours.added), "vocab_size": V, "layout": layout, "normaliser": "transformers"}
    again = SentencePieceTokenizer.from_bytes(
        torch.frombuffer(bytearray(ours.to_bytes()), dtype=torch.uint8), **settings
    )
    assert [again.encode(text) for text in SAMPLE] == [ours.encode(text) for text in SAMPLE]
    assert again.languages == ours.languages


def test_written_files_read_again(pair, layout, tmp_path):
    ours, _ = pair
    export_tokenizer_files(ours, tmp_path)
    peer = PEERS[layout].from_pretrained(tmp_path)
    for text in SAMPLE:
        assert peer(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert peer.convert_tokens_to_ids(token("eng_Latn" if layout == "nllb" else "eng", layout)) == ours.lang_id("eng")
    assert from_folder(tmp_path).added == ours.added


def test_the_original_normaliser_is_another(model, layout):
    """What the switch is for: the model's own normalisation strips the end and drops control characters."""
    languages = NLLB if layout == "nllb" else M4T
    original, peer = (
        SentencePieceTokenizer(str(model), languages, V, layout, normaliser)
        for normaliser in ("sentencepiece", "transformers")
    )
    assert original.encode("Hello world") == peer.encode("Hello world")
    differ = {text for text in SAMPLE if original.encode(text) != peer.encode(text)}
    assert "control\x01\x1c\x7f end\x1c" in differ if layout == "seamless_m4t" else "trailing " in differ
    assert original.encode("trailing ") == original.encode("trailing")


def test_legacy_source_of_nllb(model, tmp_path):
    export_tokenizer_files(SentencePieceTokenizer(str(model), NLLB, V, "nllb", legacy_source=True), tmp_path)
    theirs = transformers.NllbTokenizer.from_pretrained(tmp_path, src_lang="zho_Hant")
    ours = from_folder(tmp_path)
    assert ours.legacy_source
    assert ours.source("the train", "zho_Hant") == theirs("the train").input_ids
    assert ours.source("the train", "zho_Hant")[-2:] == [ours.eos_id, ours.lang_id("zho_Hant")]


def test_languages_of_older_files(model, tmp_path, layout):
    """No ids written down: languages stand behind the pieces in the order of a list."""
    ours = SentencePieceTokenizer(str(model), NLLB if layout == "nllb" else M4T, V, layout)
    export_tokenizer_files(ours, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    listed = config.pop("additional_special_tokens")
    path.write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": listed}))
    assert from_folder(tmp_path).added == ours.added


def test_another_vocabulary_is_refused(model, tmp_path):
    ours = SentencePieceTokenizer(str(model), M4T, V)
    export_tokenizer_files(ours, tmp_path)
    rows = 1 + ours.num_pieces + len(M4T)
    for vocab_size in (rows - 1, rows + 65):
        with pytest.raises(UserError, match=rf"the tokenizer has {rows} ids .* vocab_size is {vocab_size}"):
            from_folder(tmp_path, vocab_size=vocab_size)
    for vocab_size in (rows, rows + 64):
        assert (
            tokenizer_node(tmp_path, {"vocab_size": vocab_size, "model_type": "seamless_m4t"})["vocab_size"]
            == vocab_size
        )
    (tmp_path / "generation_config.json").write_text(json.dumps({"text_decoder_lang_to_code_id": {"eng": 300}}))
    with pytest.raises(UserError, match=r"says that eng is 300, but in the tokenizer it is \d+"):
        from_folder(tmp_path)


def test_characters_of_v2(model, tmp_path):
    ours = SentencePieceTokenizer(str(model), M4T, V)
    export_tokenizer_files(ours, tmp_path)
    alphabet = sorted({c for text in ours.pieces() for c in text if c != "ñ"}, reverse=True)
    known = {"<pad>": 0, "<unk>": 1, **{c: number for number, c in enumerate(alphabet, start=7)}}
    texts = {str(number): text or "<special>" for number, text in enumerate(ours.pieces())}
    written = {**generation_entries(ours), "char_to_id": known, "id_to_text": texts, "max_new_tokens": 256}
    (tmp_path / "generation_config.json").write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    spelling = from_folder(tmp_path)
    assert spelling.pieces() == ours.pieces()
    table = spelling.piece_characters()
    assert table.shape[0] == V
    assert spelling.num_characters == 7 + len(alphabet) == int(table.max()) + 1
    for number, text in enumerate(spelling.pieces()):
        want = [1] if number == 1 else [known.get(character, 1) for character in text]
        assert table[number, : len(want)].tolist() == want
        assert not table[number, len(want) :].any()
    assert any("ñ" in text for text in spelling.pieces())
    # A checkpoint carries both; the file may be gone.
    settings = {"languages": M4T, "vocab_size": V, "normaliser": "transformers", "characters": "gone.json"}
    again = SentencePieceTokenizer.from_bytes(spelling.to_bytes(), **settings)
    assert torch.equal(again.piece_characters(), table)
    assert again.encode("Hello") == spelling.encode("Hello")
    assert generation_entries(again)["char_to_id"] == known
    assert generation_entries(again)["text_decoder_lang_to_code_id"]["cmn_Hant"] == again.lang_id("cmn_Hant")
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"characters=.*char_to_id"):
        SentencePieceTokenizer(
            str(tmp_path / "sentencepiece.bpe.model"), M4T, V, characters=str(tmp_path / "generation_config.json")
        )


def test_damaged_files(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: expected a tokenizer\.json"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(UserError, match="Unigram"):
        from_folder(tmp_path)
    fast = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    with pytest.raises(UserError, match="normaliser=transformers"):
        SentencePieceTokenizer(str(tmp_path / "tokenizer.json"), [], 10)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
        {"model": []},
        {"added_tokens": [{"content": "a"}]},
        {"added_tokens": {"a": 1}},
        {"added_tokens": [{"id": "1", "content": "a"}]},
    ],
)
def test_a_malformed_tokenizer_json_is_one_line(tmp_path, change):
    fast = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **change}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    with pytest.raises(UserError, match=r"tokenizer\.json: expected a tokenizer\.json with byte-pair encoding \(\w+: "):
        from_folder(tmp_path)


@pytest.mark.parametrize("normaliser", [{"normalizers": ["a"]}, {"type": "Precompiled"}, [1]])
def test_a_malformed_normalizer_is_one_line(tmp_path, normaliser):
    vocab = {name: number for number, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a"])}
    fast = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "normalizer": normaliser}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    with pytest.raises(UserError, match=r"tokenizer\.json: its normalizer cannot be read \(\w+: "):
        SentencePieceTokenizer(str(tmp_path / "tokenizer.json"), [], 10, normaliser="transformers")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": ["a"]}, "not in the form of transformers"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": "a"}}, "not in the form of transformers"),
        ("added_tokens.json", {"a": "many"}, "not in the form of transformers"),
        ("added_tokens.json", {"a": None}, "not in the form of transformers"),
        ("generation_config.json", {"text_decoder_lang_to_code_id": [1]}, "not in the form of transformers"),
        ("added_tokens.json", {"<a>": 3_000_000}, "<a> has the id 3000000 .* vocab_size is"),
    ],
)
def test_malformed_files_beside_it_are_one_line(tmp_path, model, name, content, match):
    export_tokenizer_files(SentencePieceTokenizer(str(model), M4T, V), tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    for settings in ({"vocab_size": V}, {}):
        with pytest.raises(UserError, match=match):
            tokenizer_node(tmp_path, {"model_type": "seamless_m4t", **settings})


def test_folders_without_a_tokenizer(tmp_path):
    assert tokenizer_node(None, {}) == {}
    assert tokenizer_node(tmp_path, {"vocab_size": 10}) == {}


def test_languages_of_nllb_are_those_of_the_peer():
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    assert list(compose(["tokenizer=nllb"]).tokenizer.languages) == [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]


def test_a_unigram_model_has_no_place_there(tmp_path):
    path = train_sentencepiece(TEXTS, tmp_path / "t.model", V, num_languages=7, model_type="unigram")
    with pytest.raises(UserError, match="a unigram SentencePiece model"):
        export_tokenizer_files(SentencePieceTokenizer(str(path), M4T, V), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["t.model"]


def test_files_of_older_versions(model, layout, tmp_path):
    """tokenizer.json with languages in the vocabulary too and merges as one string; beside the model or not."""
    languages = NLLB if layout == "nllb" else M4T
    export_tokenizer_files(SentencePieceTokenizer(str(model), languages, V, layout), tmp_path)
    theirs = PEERS[layout].from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"].update({token["content"]: token["id"] for token in content["added_tokens"]})
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for name in ("sentencepiece.bpe.model", "tokenizer.json"):
        ours = from_folder(tmp_path)
        assert ours.added == tuple(languages)
        for text in SAMPLE:
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, (name, text)
        (tmp_path / name).unlink()
    assert tokenizer_node(tmp_path, {}) == {}
