"""Cards: equal where what they say is equal, and a difference in one line."""

from __future__ import annotations

import json

import pytest
import torch
from voxzoo.components.cards import Card, weights_hash
from voxzoo.components.errors import UserError


def _codec(**changes) -> Card:
    return Card("codec", {"sample_rate": 24000, "frame_rate": 75, "weights": "3f1c", "ratios": [8, 5], **changes})


def test_the_order_of_keys_and_the_way_a_number_is_written_do_not_count():
    other = Card("codec", {"ratios": (8, 5), "weights": "3f1c", "frame_rate": 75.0, "sample_rate": 24000})
    assert other == _codec()
    assert other.json == _codec().json
    assert other.hash == _codec().hash
    assert len({other, _codec()}) == 1
    assert _codec().difference(other) is None


def test_the_order_of_a_list_counts():
    assert _codec(ratios=[5, 8]).hash != _codec().hash
    assert _codec(ratios=[5, 8]).difference(_codec()) == "ratios is [5, 8], expected [8, 5]"


def test_json_and_back():
    card = Card("vocabulary", {"codec": _codec(), "blocks": [["units", 7, 100]], "languages": ["eng", "spa"]})
    assert Card.from_dict(json.loads(card.json)) == card
    assert Card.from_dict(card.to_dict()) == card
    assert card["codec"]["frame_rate"] == 75


def test_a_difference_of_a_card_within_a_card_is_named_by_its_path():
    ours, theirs = (Card("vocabulary", {"codec": _codec(weights=w), "size": s}) for w, s in (("a", 1), ("b", 2)))
    assert ours.difference(theirs) == 'codec.weights is "a", expected "b"; also size'
    assert _codec(more=1).difference(_codec()) == "more is 1, expected not there"
    assert str(Card("units", {}).difference(_codec())).startswith('kind is "units", expected "codec"; also ')


def test_require_names_what_and_what_to_do():
    with pytest.raises(UserError) as error:
        _codec(weights="77ab").require(_codec(), "codes.bin", "prepare them again")
    assert str(error.value) == 'codes.bin: weights is "77ab", expected "3f1c"; prepare them again'
    _codec().require(_codec(), "codes.bin", "prepare them again")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, torch.ones(1)])
def test_only_plain_values(value):
    with pytest.raises(UserError, match=r"a card of codec\.x: .* is no plain value"):
        Card("codec", {"x": value})


def test_what_is_no_card_is_refused():
    with pytest.raises(UserError, match=r"file\.json: expected a card, an object with a 'kind'; found \[1\]"):
        Card.from_dict([1], "file.json")
    with pytest.raises(UserError, match="its own name"):
        Card("codec", {"kind": "x"})


def test_the_hash_of_weights_sees_names_shapes_dtypes_and_each_bit():
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    known = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == known
    assert weights_hash({"a": weights["a"].T.contiguous().T, "b": weights["b"]}) == known
    others = [
        {"c": weights["a"], "b": weights["b"]},
        {"a": weights["a"].view(3, 2), "b": weights["b"]},
        {"a": weights["a"].double(), "b": weights["b"]},
        {"a": weights["a"].nextafter(torch.tensor(9.0)), "b": weights["b"]},
    ]
    assert len({known, *map(weights_hash, others)}) == 5
    assert weights_hash({"a": torch.zeros(2, dtype=torch.bfloat16)}) != weights_hash({"a": torch.zeros(0)})
