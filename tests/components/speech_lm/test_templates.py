"""Sequences as text, what they refuse, and the card of the joint vocabulary."""

from __future__ import annotations

import pytest
import torch
import yaml
from voxzoo.components.cards import Card
from voxzoo.components.errors import UserError
from voxzoo.components.joint_vocabulary import JointVocabulary
from voxzoo.components.speech_lm.templates import Template, label_mask

VOCABULARY = JointVocabulary(10, 16, ["eng", "spa"])
TRANS = "<bos> <lang:src> S_src <trans> <lang:tgt> | S_tgt <eos>"
GEN = "<bos> <lang:tgt> S_tgt A_prompt <gen> | A_tgt <eos>"
CHAIN = "<bos> <lang:src> S_src A_prompt <trans> <lang:tgt> | S_tgt <gen> A_tgt <eos>"
PIECES = {
    "S_src": torch.tensor([1, 2]),
    "S_tgt": torch.tensor([3]),
    "A_prompt": torch.tensor([5, 6]),
    "A_tgt": torch.tensor([7, 8, 9]),
}


def said(ids: torch.Tensor) -> str:
    return " ".join(VOCABULARY.name(number).replace(" ", "") for number in ids.tolist())


@pytest.mark.parametrize(
    ("text", "given", "learned"),
    [
        (TRANS, "<bos> <spa> unit1 unit2 <trans> <eng>", "unit3 <eos>"),
        (GEN, "<bos> <eng> unit3 code5 code6 <gen>", "code7 code8 code9 <eos>"),
        (CHAIN, "<bos> <spa> unit1 unit2 code5 code6 <trans> <eng>", "unit3 <gen> code7 code8 code9 <eos>"),
    ],
)
def test_a_template_packs_what_it_says(text: str, given: str, learned: str):
    template = Template("one", text, VOCABULARY)
    ids, start = template.pack(PIECES, "es", "eng", "a")
    assert said(ids) == f"{given} {learned}"
    assert said(ids[:start]) == given
    assert torch.equal(template.prompt(PIECES, "spa", "eng", "a"), ids[:start])


def test_each_segment_has_the_block_that_may_come_and_the_token_that_ends_it():
    template = Template("chain", CHAIN, VOCABULARY)
    assert [(one.piece, one.block.name, VOCABULARY.name(one.end)) for one in template.segments] == [
        ("S_tgt", "units", "<gen>"),
        ("A_tgt", "codes", "<eos>"),
    ]
    ids, _ = template.pack(PIECES, "spa", "eng", "a")
    assert said(ids).startswith(said(template.prompt(PIECES, "spa", "eng", "a", 1)))
    assert said(template.prompt(PIECES, "spa", "eng", "a", 1)).endswith("unit3 <gen>")


def test_labels_are_those_behind_the_bar_or_all():
    mask = label_mask(torch.tensor([6, 4]), torch.tensor([3, 3]), 5, "target")
    assert mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    mask = label_mask(torch.tensor([6, 4]), torch.tensor([3, 3]), 5, "all")
    assert mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "<bos> S_src <tran> | S_tgt <eos>",
            "task.templates.t: there is no token <tran>; there are: <pad>, <bos>, <eos>",
        ),
        ("<bos> S_src S_tgt <eos>", "expected one bar"),
        ("<bos> | S_src | S_tgt <eos>", "expected one bar"),
        ("<bos> S_source | S_tgt <eos>", "there is no piece 'S_source'; there are: S_src"),
        ("<bos> <lang:spa> | S_tgt <eos>", "<lang:spa> is no language"),
        ("<bos> S_src | S_tgt", "each with a token that ends it"),
        ("<bos> S_src | S_tgt A_tgt <eos>", "each with a token that ends it"),
        ("<bos> | S_src <eos>", "behind the bar stand S_tgt and A_tgt"),
        ("| S_tgt <eos>", "expected tokens before the bar"),
        ("<bos> S_src | <trans> S_tgt <eos>", "S_tgt or A_tgt right behind it"),
        ("<bos> S_src | S_tgt <eos> <gen>", "<gen> behind the bar would be generated alone"),
    ],
)
def test_a_template_that_cannot_be_is_refused_in_a_line(text: str, words: str):
    with pytest.raises(UserError) as caught:
        Template("t", text, VOCABULARY)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_codes_nothing_of_a_codec_can_be_put_in():
    with pytest.raises(UserError, match=r"A_tgt needs codes, but speech_lm.codebook_size is 0"):
        Template("gen", "<bos> S_tgt <gen> | A_tgt <eos>", JointVocabulary(10, 0, ["eng"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"S_src": torch.empty(0, dtype=torch.int64)}, "utterance a: units of the source are empty, too short"),
        ({"A_prompt": torch.empty(0, dtype=torch.int64)}, "utterance a: the acoustic prompt is empty, too short"),
        ({"S_src": torch.tensor([10])}, "utterance a, units of the source: units 10 is outside of the vocabulary"),
        ({"A_prompt": torch.tensor([3, 16])}, "utterance a, the acoustic prompt: codes 16 is outside"),
    ],
)
def test_what_an_utterance_lacks_is_said_in_a_line(change: dict[str, torch.Tensor], words: str):
    with pytest.raises(UserError) as caught:
        Template("chain", CHAIN, VOCABULARY).pack({**PIECES, **change}, "spa", "eng", "utterance a")
    assert words in str(caught.value)
    with pytest.raises(UserError, match="no tag for the language 'fra'; it has: eng, spa"):
        Template("chain", CHAIN, VOCABULARY).pack(PIECES, "fra", "eng", "utterance a")


# The card


def test_the_order_of_keys_in_yaml_changes_no_id_and_no_card():
    one = yaml.safe_load("{num_units: 10, codebook_size: 16, languages: [spa, eng], specials: [<trans>, <gen>]}")
    two = yaml.safe_load("{specials: [<gen>, <trans>], languages: [eng, spa], codebook_size: 16, num_units: 10}")
    cards = [JointVocabulary(**settings).card(Card("units", {"a": 1})) for settings in (one, two)]
    assert cards[0] == cards[1]
    assert cards[0].hash == cards[1].hash


@pytest.mark.parametrize(
    ("settings", "made", "words"),
    [
        ({"languages": ["eng", "fra"]}, {}, "languages is"),
        ({"num_units": 11}, {}, "blocks.codes.start is 18, expected 17"),
        ({}, {"units": Card("units", {"centroids": "b"})}, 'units.centroids is "b", expected "a"'),
        ({}, {"codec": Card("codec", {"weights": "y"})}, 'codec.weights is "y", expected "x"'),
    ],
)
def test_another_order_other_units_and_another_codec_are_refused_in_a_line(settings, made, words: str):
    plain = {"num_units": 10, "codebook_size": 16, "languages": ["eng", "spa"]}
    cards = {"units": Card("units", {"centroids": "a"}), "codec": Card("codec", {"weights": "x"})}
    ours = JointVocabulary(**plain).card(**cards)
    theirs = JointVocabulary(**{**plain, **settings}).card(**{**cards, **made})
    with pytest.raises(UserError) as caught:
        theirs.require(ours, "this run", "train anew")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
