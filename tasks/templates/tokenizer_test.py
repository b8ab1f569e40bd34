"""The contract of a tokenizer, and what is its own."""

from voxzoo.components.contract import check_part

from .tokenizer import MineTokenizer


def test_contract():
    check_part(lambda: MineTokenizer(["eng", "spa"]))


def test_every_letter_comes_back():
    tokenizer = MineTokenizer(["eng"])
    assert tokenizer.decode(tokenizer.encode("ni\u00f1o, \u6c34")) == "ni\u00f1o, \u6c34"
