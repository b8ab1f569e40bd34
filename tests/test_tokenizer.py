"""SentencePieceTokenizer: id layout, training, characters, what is refused."""

import pickle

import pytest
import torch
from voxzoo.components import SentencePieceTokenizer
from voxzoo.components.tokenizer import train_sentencepiece

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
    sentencepiece = pytest.importorskip("sentencepiece")
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


def test_pickles_for_data_workers(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.target(TEXTS[2], "spa") == tokenizer.target(TEXTS[2], "spa")


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
