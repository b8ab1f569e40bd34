"""SentencePieceTokenizer: id layout, training, characters, what is refused."""

import io
import random
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import torch
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.errors import UserError
from voxzoo.components.roles import Tokenizer
from voxzoo.components.tokenizer import train_sentencepiece, vocabulary
from voxzoo.components.tokenizer.normalise import Charsmap, nllb, seamless_m4t
from voxzoo.components.tokenizer.vocabulary_process import sample
from voxzoo.configs.compose import compose
from voxzoo.tasks.planning.shapes import trace
from voxzoo.tasks.training.train import train

TEXTS = [f"the train to Perú leaves on may {day} at {hour} o'clock" for day in range(1, 8) for hour in range(1, 6)]
LANGUAGES = ["spa", "eng"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return train_sentencepiece(TEXTS, tmp_path_factory.mktemp("spm") / "a" / "t.model", 90, num_languages=2)


@pytest.fixture(scope="module")
def tokenizer(path):
    return SentencePieceTokenizer(str(path), LANGUAGES, 90)


def test_layout_is_that_of_m4t(tokenizer):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.lang_id("spa") == tokenizer.num_pieces + 1
    assert tokenizer.lang_id("eng") == tokenizer.num_pieces + 2
    assert [tokenizer.lang_of(i) for i in (3, tokenizer.num_pieces, tokenizer.lang_id("eng"))] == [None, None, "eng"]
    ids = tokenizer.encode(TEXTS[0])
    assert all(4 <= i <= tokenizer.num_pieces for i in ids)
    assert tokenizer.target(TEXTS[0], "eng") == [3, tokenizer.lang_id("eng"), *ids, 3]
    assert tokenizer.source(TEXTS[0], "spa") == [tokenizer.lang_id("spa"), *ids, 3]


def test_ids_are_pieces_of_the_model_plus_one(path, tokenizer):
    peer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.encode(TEXTS[3]) == [i + 1 for i in peer.encode(TEXTS[3])]
    assert (peer.unk_id(), peer.bos_id(), peer.eos_id(), peer.pad_id()) == (0, 1, 2, -1)


def test_decode_drops_what_is_no_piece(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    noisy = [3, tokenizer.lang_id("eng"), *ids[:4], 0, 1, 2, *ids[4:], 3, 0, 89, 500, -7]
    assert tokenizer.decode(noisy) == TEXTS[0]
    assert tokenizer.decode(torch.tensor(noisy)) == TEXTS[0]
    assert tokenizer.decode([3, 0]) == ""
    assert tokenizer.decode([]) == ""


def test_unknown_characters_are_unk(tokenizer):
    assert tokenizer.unk_id in tokenizer.encode("the 火")


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_training_is_deterministic_and_fits_the_rows(tmp_path, model_type):
    first = train_sentencepiece(TEXTS, tmp_path / "1.model", 60, num_languages=2, model_type=model_type)
    second = train_sentencepiece(iter(TEXTS), tmp_path / "2.model", 60, num_languages=2, model_type=model_type)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.model", "2.model"]  # no half-written file stays
    tokenizer = SentencePieceTokenizer(str(first), LANGUAGES, 60)
    assert tokenizer.decode(tokenizer.encode(TEXTS[5])) == TEXTS[5]
    if model_type == "bpe":
        assert tokenizer.num_pieces == 57  # with pad and two languages exactly the rows


def many(count):
    """Texts of which few have a rare letter."""
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdefgh", k=pick.randint(2, 6))) for _ in range(200)]
    return [" ".join(pick.choices(words, k=5)) + (f" {chr(0x4E00 + n)}" if n % 500 == 7 else "") for n in range(count)]


@pytest.mark.parametrize("size", [2000, 10**6])
def test_a_process_of_its_own_trains_the_same_model(tmp_path, monkeypatch, size):
    texts, said = [*many(3000), "", "  "], []
    here = train_sentencepiece(texts, tmp_path / "here", 300, 1, max_texts=size)
    monkeypatch.setattr(vocabulary, "_HERE", 100)
    there = train_sentencepiece(
        iter(texts), tmp_path / "there", 300, 1, max_texts=size, report=lambda *counts: said.append(counts)
    )
    assert here.read_bytes() == there.read_bytes()
    ((used, total),) = said
    assert total == 3000
    assert 2000 <= used < 2010 if size == 2000 else used == 3000  # the drawn ones and those with lost letters


def test_a_corpus_below_the_size_of_a_sample_is_used_whole(tmp_path):
    """The bytes that SentencePiece gives for all of the texts, without anything of ours between."""
    texts, buffer = many(1000), io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=buffer, vocab_size=298, model_type="bpe", character_coverage=1.0,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    ours = train_sentencepiece(texts, tmp_path / "t", 300, 1)
    assert ours.read_bytes() == buffer.getvalue()


def test_a_sample_loses_no_character_and_keeps_the_order():
    texts = many(3000)
    chosen, total = sample(texts, 500, seed=1)
    assert total == 3000
    assert 500 <= len(chosen) <= 506
    assert set("".join(chosen)) == set("".join(texts))
    places = [texts.index(text) for text in chosen]
    assert places == sorted(places)
    assert (np.histogram(places, 4, (0, 3000))[0] > 90).all()  # drawn from everywhere
    assert sample(texts, 500, seed=1) == (chosen, total)
    assert sample(texts, 500, seed=2)[0] != chosen
    assert sample(texts, 3000, seed=1) == (texts, 3000)


def test_the_process_that_trains_needs_no_torch():
    file = vocabulary.vocabulary_process.__file__
    code = f"import sys, runpy; runpy.run_path({file!r}, run_name='x'); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "sentencepiece" in said
    assert not {"torch", "voxzoo"} & set(said)


def test_errors_of_the_process_that_trains_are_those_of_this_one(tmp_path, monkeypatch):
    texts = [chr(0x4E00 + n) * 3 for n in range(300)]
    said = []
    for here in (1000, 10):
        monkeypatch.setattr(vocabulary, "_HERE", here)
        with pytest.raises(UserError, match="300 sentences with 300 different characters") as error:
            train_sentencepiece(texts, tmp_path / "t", 50, 1)
        said.append(str(error.value))
    assert said[0] == said[1]
    monkeypatch.setattr(vocabulary.vocabulary_process, "__file__", str(tmp_path / "missing.py"))
    with pytest.raises(UserError, match="ended with status"):
        train_sentencepiece(texts, tmp_path / "t", 500, 1)
    assert not list(tmp_path.iterdir())


def test_more_rows_than_the_corpus_can_fill(tmp_path):
    path = train_sentencepiece(TEXTS, tmp_path / "t.model", 8000, num_languages=1)
    tokenizer = SentencePieceTokenizer(str(path), ["eng"], 8000)
    assert tokenizer.num_pieces < 400
    assert tokenizer.vocab_size == 8000


def test_bytes_carry_the_model(tokenizer):
    data = tokenizer.to_bytes()
    for carried in (data, torch.frombuffer(bytearray(data), dtype=torch.uint8)):
        again = SentencePieceTokenizer.from_bytes(carried, LANGUAGES, 90)
        assert again.target(TEXTS[2], "eng") == tokenizer.target(TEXTS[2], "eng")
        assert torch.equal(again.piece_characters(), tokenizer.piece_characters())


def test_characters_spell_the_text(tokenizer):
    table, lengths = tokenizer.piece_characters(), tokenizer.piece_lengths()
    assert table.shape[0] == 90
    assert torch.equal(lengths, (table > 0).sum(1))
    assert int(table.max()) == tokenizer.num_characters - 1
    assert lengths[[0, 2, 3, tokenizer.lang_id("spa"), tokenizer.lang_id("eng")]].tolist() == [0] * 5
    assert lengths[1] == 1
    assert table[1, 0] == tokenizer.unknown_character_id
    ids = tokenizer.encode(TEXTS[0])
    spelled = [int(c) for i in ids for c in table[i, : lengths[i]]]
    marked = "\u2581" + TEXTS[0].replace(" ", "\u2581")
    assert len(spelled) == len(marked)
    # The same character always has the same id and different ones differ.
    assert len(set(zip(marked, spelled, strict=True))) == len(set(marked)) == len(set(spelled))


def test_what_is_refused(path, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"nothing\.model' is no file.*voxzoo train"):
        SentencePieceTokenizer(str(tmp_path / "nothing.model"), LANGUAGES, 90)
    pieces = tokenizer.num_pieces
    with pytest.raises(
        ValueError, match=rf"vocab_size={pieces + 2} .*{pieces} pieces.*2 languages need {pieces + 3} rows"
    ):
        SentencePieceTokenizer(str(path), LANGUAGES, pieces + 2)
    SentencePieceTokenizer(str(path), LANGUAGES, pieces + 3)
    with pytest.raises(ValueError, match="spa more than once"):
        SentencePieceTokenizer(str(path), ["spa", "spa"], 90)
    with pytest.raises(ValueError, match=r"'fra'.*spa, eng"):
        tokenizer.lang_id("fra")
    (tmp_path / "broken.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        SentencePieceTokenizer(str(tmp_path / "broken.model"), LANGUAGES, 90)


def test_a_model_with_other_controls_is_refused(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = str(tmp_path / "other")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=prefix, vocab_size=60, model_type="bpe", pad_id=0, unk_id=1,
        bos_id=2, eos_id=3, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"unk, s, /s at \(1, 2, 3\), expected \(0, 1, 2\)"):
        SentencePieceTokenizer(prefix + ".model", LANGUAGES, 90)


@pytest.mark.parametrize(("texts", "vocab_size", "match"), [([], 90, "empty"), (["", " "], 90, "empty"),
                         (TEXTS, 12, "different characters"), (TEXTS, 6, "no piece")])  # fmt: skip
def test_training_that_cannot_work(tmp_path, texts, vocab_size, match):
    with pytest.raises(ValueError, match=match):
        train_sentencepiece(texts, tmp_path / "t.model", vocab_size, num_languages=2)
    assert not list(tmp_path.iterdir())


def test_layout_of_nllb(path):
    languages = ["ace_Arab", "ace_Latn", "eng_Latn", "<mask>"]
    tokenizer = SentencePieceTokenizer(str(path), languages, 96, layout="nllb")
    first = tokenizer.num_pieces + 1
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.languages == ("ace", "ace_Latn", "eng")
    assert [tokenizer.lang_id(name) - first for name in ("ace", "ace_Arab", "ace_Latn", "eng", "eng_Latn")] == [
        0,
        0,
        1,
        2,
        2,
    ]
    assert [tokenizer.lang_of(first + place) for place in range(5)] == ["ace", "ace_Latn", "eng", None, None]
    ids = tokenizer.encode(TEXTS[0])
    assert tokenizer.target(TEXTS[0], "eng_Latn") == [2, first + 2, *ids, 2]
    assert tokenizer.source(TEXTS[0], "ace") == [first, *ids, 2]
    assert tokenizer.decode([0, 1, 2, 3, first, *ids, first + 3, 95]) == TEXTS[0]
    assert tokenizer.unk_id in tokenizer.encode("the 火")
    assert 3 not in ids
    assert tokenizer.piece_characters()[3].tolist()[:2] == [1, 0]
    with pytest.raises(ValueError, match="no token for language '<mask>'"):
        tokenizer.lang_id("<mask>")
    with pytest.raises(ValueError, match="layout='m2m': expected one of"):
        SentencePieceTokenizer(str(path), languages, 96, layout="m2m")


def test_a_code_of_its_own_comes_before_a_shortened_one(path):
    tokenizer = SentencePieceTokenizer(str(path), ["cmn_Hant", "cmn", "zho_Hans"], 96)
    first = tokenizer.num_pieces + 1
    assert tokenizer.languages == ("cmn_Hant", "cmn", "zho")
    assert [tokenizer.lang_id(name) - first for name in ("cmn_Hant", "cmn", "zho", "zho_Hans")] == [0, 1, 2, 2]


def test_a_long_list_of_languages_comes_with_a_guess(path):
    tokenizer = SentencePieceTokenizer(
        str(path), [f"a{c}x_Latn" for c in "abcdefghijklmnopqrstuvw"] + ["eng_Latn"], 120
    )
    with pytest.raises(ValueError, match=r"'eng_Lat' \(did you mean eng_Latn"):
        tokenizer.lang_id("eng_Lat")


def test_pieces_spell_as_the_model_writes(tokenizer):
    pieces = tokenizer.pieces()
    assert len(pieces) == 90
    ids = tokenizer.encode(TEXTS[0])
    assert "".join(pieces[i] for i in ids) == "\u2581" + TEXTS[0].replace(" ", "\u2581")
    assert [i for i in range(90) if not pieces[i]] == [0, 1, 2, 3, *range(tokenizer.num_pieces + 1, 90)]
    # What a role has without saying more: no word marks.
    assert "".join(Tokenizer.pieces(tokenizer)[i] for i in ids) == TEXTS[0].replace(" ", "")


def test_normalisation():
    assert seamless_m4t(" a\tb  c \n") == "\u2581a\u2581b\u2581c"
    assert seamless_m4t("\u2581 \u2581") == seamless_m4t("") == seamless_m4t("  ") == ""
    assert seamless_m4t("\uff21\ufb01") == "\u2581Afi"
    assert nllb("a  b ", None) == "\u2581a\u2581\u2581b\u2581"


def test_characters_of_the_model_are_mapped_as_sentencepiece_does_it(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from voxzoo.components.tokenizer.pieces import _charsmap

    path = train_sentencepiece(TEXTS, tmp_path / "t.model", 90, num_languages=2, normalisation="nmt_nfkc")
    charsmap = Charsmap(_charsmap(path.read_bytes()))
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    changed = 0
    for code in [*range(0x21, 0x3000), *range(0xF900, 0xFFF0)]:
        character = chr(code)
        want = model.normalize(f"0{character}0")[2:-1]
        got = charsmap(character)
        assert got.strip(" ").replace(" ", "\u2581") == want.strip("\u2581"), hex(code)
        changed += got != character
    assert changed > 1000
    assert charsmap("e\u0301") == "é"
    assert charsmap("e\u0302\u0301") == "ê"  # both marks are looked up at once, and the shorter entry is taken


@pytest.mark.parametrize(
    ("choice", "rows", "ids"),
    [
        ("nllb", 256206, "ace_Arab:256001 eng_Latn:256047 fra_Latn:256057 zul_Latn:256202 <mask>:256203"),
        ("seamless_m4t_large", 256102, "afr:256001 eng:256022 fra:256026 zul:256098 <SMT_BT_DATA>:256101"),
        ("seamless_m4t_v2", 256102, "afr:256001 eng:256022 fra:256026 zul:256098 <SMT_BT_DATA>:256101"),
        ("seamless_m4t_medium", 256206, "ace:256001 eng:256047 cmn:256200 zul:256202 <SMT_BT_DATA>:256205"),
    ],
)
def test_published_vocabularies(choice, rows, ids):
    node = compose([f"tokenizer={choice}"]).tokenizer
    languages = list(node.languages)
    assert len(set(languages)) == len(languages)
    for name, _, number in (entry.partition(":") for entry in ids.split()):
        assert 256001 + languages.index(name) == int(number), name
    assert node.vocab_size == rows
    assert not node.train


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (
            ["tokenizer=tiny", "tokenizer.model=typo.model"],
            r"typo\.model: no such file; correct the path, or leave it out",
        ),
        (["tokenizer=nllb"], r"sentencepiece\.bpe\.model' is no file: give the path of a SentencePiece model$"),
        (["tokenizer=tiny", "tokenizer.train=false"], "is no file: give the path of a SentencePiece model$"),
    ],
)
def test_a_vocabulary_that_is_missing_is_not_trained_behind_your_back(tmp_path, monkeypatch, overrides, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        train(["task=text_to_text", "text_seq2seq=tiny", "data=tiny", "root=runs", "name=x", *overrides])
    assert not list(tmp_path.rglob("*.model"))


@pytest.mark.parametrize(
    "overrides",
    [["task=text_to_text"], ["task=speech_to_text", "speech_encoder=tiny", "adaptor=tiny", "frontend=tiny"]],
)
@pytest.mark.parametrize("rows", [300, 500])
def test_a_vocabulary_of_another_model_is_refused(overrides, rows):
    config = compose(["text_seq2seq=tiny", "tokenizer=tiny", "data=tiny", *overrides])
    config.text_seq2seq.vocab_size = rows
    with pytest.raises(ValueError, match=rf"text_seq2seq.vocab_size is {rows}, but tokenizer.vocab_size is 400"):
        trace(config)
