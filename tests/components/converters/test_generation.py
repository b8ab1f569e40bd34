"""generation_config.json is read key by key: zero is a value, and what is not taken is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from voxzoo.components.converters.generation import generation_content, longest_of, search_node, unread
from voxzoo.components.converters.keymap import KeyMap, same
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions


def options(**found: Any) -> dict[str, Any]:
    return search_node(found, score="generated", longest=20, prompt=2)


def test_zero_is_a_value_and_null_is_none():
    assert options(length_penalty=0.0)["length_penalty"] == 0.0
    assert options(length_penalty=None)["length_penalty"] == 1.0
    assert options(num_beams=None)["method"] == "greedy"
    assert longest_of({"max_new_tokens": None, "max_length": 9}, 20, prompt=2) == 7


@pytest.mark.parametrize(
    ("found", "key", "value"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram", 3),
        ({"min_new_tokens": 4}, "min_length", 4),
        ({"min_length": 6}, "min_length", 4),  # counts the two tokens of the prompt
        ({"min_new_tokens": 20}, "min_length", 20),  # as many as there may be at most
        ({"suppress_tokens": [-1, 7]}, "suppress", [7]),
        ({"begin_suppress_tokens": [5]}, "begin_suppress", [5]),
        ({"early_stopping": "never"}, "early_stopping", False),
        ({"num_beams": 4}, "beam_size", 4),
    ],
)
def test_each_key_is_read(found: dict[str, Any], key: str, value: Any):
    assert options(**found)[key] == value


@pytest.mark.parametrize("found", [{"num_beams": 0}, {"num_beams": 1.5}, {"length_penalty": "1"}, {"num_beams": True}])
def test_a_value_of_another_kind_is_refused_by_key(found: dict[str, Any]):
    with pytest.raises(UserError, match=rf"{next(iter(found))}=.*: expected"):
        options(**found)


def test_what_is_not_taken_is_said():
    found = {"repetition_penalty": 1.2, "do_sample": True, "top_p": 0.9, "early_stopping": "never", "bad_words_ids": []}
    lines = unread(found)
    for key in ("repetition_penalty=1.2", "do_sample=True", "top_p=0.9", "early_stopping='never'"):
        assert any(key in line for line in lines), key
    assert len(lines) == 4
    assert unread({"top_p": 0.9, "repetition_penalty": 1.0, "do_sample": False, "forced_eos_token_id": None}) == []


@pytest.mark.parametrize("forced", [0, 1])
def test_what_is_written_is_read_back(forced: int):
    search = {"beam_size": 4, "length_penalty": 0.0, "no_repeat_ngram": 2, "max_length": 30, "min_length": 3}
    search |= {"suppress": [1, 2], "begin_suppress": [9], "early_stopping": True}
    content = generation_content({"task": {"search": search}}, forced)
    longest = longest_of(content, 99) - forced
    again = search_node(content, score="generated", longest=longest, prompt=1, forced=forced)
    assert {key: again[key] for key in search} == search
    SearchOptions(**{key: value for key, value in again.items() if key != "_target_"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([1.0, float("nan")]), "not all values are finite"),
        (torch.tensor([1.0, float("inf")], dtype=torch.bfloat16), "not all values are finite"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8, expected floating-point weights"),
        (torch.tensor([1 + 2j, 0j]), "complex64, expected floating-point weights"),
        (torch.tensor([True, False]), "bool, expected floating-point weights"),
    ],
)
def test_weights_of_another_kind_are_refused_by_key(value: torch.Tensor, said: str):
    with pytest.raises(UserError, match=rf"layer.weight: {said}"):
        KeyMap([same("part.weight", "layer.weight")]).load({"layer.weight": value})
