"""Key maps: rules read in both directions, and what does not fit them."""

from __future__ import annotations

import pytest
import torch
from voxzoo.components.converters.keymap import KeyMap, same, squeeze, stack, tied, within
from voxzoo.components.errors import UserError

RULES = [
    *within("part.layers.*.", "block.*.", [stack("qkv.weight", "q.w", "k.w", "v.w"), same("norm.~", "ln.~")]),
    squeeze("part.point.weight", "conv.weight"),
    tied("part.table", "embed", "head"),
]


def theirs() -> dict[str, torch.Tensor]:
    found = {f"block.{n}.{key}.w": torch.randn(2, 3) for n in range(12) for key in "qkv"}
    found |= {f"block.{n}.ln.{key}": torch.randn(2) for n in range(12) for key in ("weight", "bias")}
    table = torch.randn(4, 2)
    return {**found, "conv.weight": torch.randn(3, 2, 1), "embed": table, "head": table.clone()}


def test_there_and_back_is_bit_equal():
    given = theirs()
    key_map = KeyMap(RULES)
    loaded = key_map.load(given)
    assert not [*loaded.left, *loaded.unused, *loaded.missing]
    assert loaded.state["part.layers.11.qkv.weight"].shape == (6, 3)
    assert torch.equal(loaded.state["part.layers.10.qkv.weight"][2:4], given["block.10.k.w"])
    written = key_map.save(loaded.state)
    assert written.keys() == given.keys() - {"head"}  # a tied matrix is written once
    assert all(torch.equal(value, given[key]) for key, value in written.items())


def test_what_has_no_place_is_listed():
    given = {**theirs(), "pooler.weight": torch.zeros(1), "masks.0": torch.zeros(1)}
    del given["block.3.k.w"]
    loaded = KeyMap(RULES, left=[r"pooler\..*"]).load(given, {"part.layers.3.qkv.weight": torch.Size([6, 3])})
    assert loaded.left[0].startswith("block.")
    assert "pooler.weight" in loaded.left
    assert sorted(loaded.unused) == ["block.3.q.w", "block.3.v.w", "masks.0"]
    assert loaded.missing == ["part.layers.3.qkv.weight"]
    assert "part.layers.2.norm.bias" in loaded.beyond


def test_tied_matrices_that_differ_and_other_shapes_are_refused():
    given = theirs()
    with pytest.raises(UserError, match=r"conv.weight: gives \(3, 2\), but part.point.weight is \(3, 9\)"):
        KeyMap(RULES).load(given, {"part.point.weight": torch.Size([3, 9])})
    given["head"] = given["head"] + 1
    with pytest.raises(UserError, match="head differs from embed"):
        KeyMap(RULES).load(given)


def test_keys_of_ours_without_a_place():
    state = {"part.table": torch.zeros(1), "part.helper.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"no place for part\.helper\.weight"):
        KeyMap(RULES).save(state)
    assert KeyMap(RULES, only_ours=[r"part\.helper\..*"]).save(state).keys() == {"embed"}


def test_older_names():
    key_map = KeyMap([same("part.norm.~", "norm.~")], rename=[(r"^model\.", ""), (r"gamma$", "weight")])
    assert key_map.load({"model.norm.gamma": torch.ones(2)}).state.keys() == {"part.norm.weight"}
