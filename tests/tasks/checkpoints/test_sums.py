"""A checkpoint that is not what was written is refused before its numbers are used."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from voxzoo.components import sums
from voxzoo.components.errors import UserError
from voxzoo.tasks.checkpoints.files import AtomicCheckpointIO, read_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = {f"layer{index}.weight": torch.randn(16, 16) for index in range(4)}
    content = {"state_dict": weights, "voxzoo": {"config": {"name": "x"}, "assets": {}}}
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def flip(path: Path, place: int, to: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    to.write_bytes(content)
    return to


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    return a == b


def test_one_flipped_byte_is_noticed_wherever_it_is(path: Path, tmp_path: Path):
    whole, seen, places = read_checkpoint(path), 0, range(path.stat().st_size)
    for place in random.Random(0).sample(places, 150):
        damaged = flip(path, place, tmp_path / "damaged.ckpt")
        try:
            found = read_checkpoint(damaged)
        except UserError as error:
            said = str(error)
            seen += said.startswith(str(damaged)) and "\n" not in said
        else:  # between the records there is room that nobody reads
            assert equal(found, whole), place
    assert seen > 75


def test_a_weight_is_named(path: Path, tmp_path: Path):
    weight = read_checkpoint(path)["state_dict"]["layer2.weight"].numpy().tobytes()
    place = path.read_bytes().index(weight)
    with pytest.raises(UserError, match=r"damaged\.ckpt: damaged at \S+/data/2 .*holds other bytes than were written"):
        read_checkpoint(flip(path, place + 500, tmp_path / "damaged.ckpt"))


def test_large_records_are_compared_on_demand_and_before_a_training_goes_on(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sums, "CHEAP", 3000)
    weight = read_checkpoint(path)["state_dict"]["layer3.weight"].numpy().tobytes()
    damaged = flip(path, path.read_bytes().index(weight) + 7, tmp_path / "damaged.ckpt")
    read_checkpoint(damaged)  # it was not looked at
    with pytest.raises(UserError, match="damaged at"):
        read_checkpoint(damaged, verify=True)
    with pytest.raises(UserError, match="damaged at"):
        AtomicCheckpointIO().load_checkpoint(damaged)


def test_a_tensor_is_as_large_as_what_is_stored_of_it(path: Path, tmp_path: Path):
    content = torch.load(path, weights_only=True)
    bomb = torch.zeros(1, dtype=torch.uint8).expand(30_000_000_000)
    content["voxzoo"]["assets"]["tokenizer"] = bomb
    torch.save(content, tmp_path / "bomb.ckpt")
    assert (tmp_path / "bomb.ckpt").stat().st_size < 20_000
    with pytest.raises(UserError, match=r"assets\.tokenizer says 30,000,000,000 numbers, of which 1 are stored"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    content["voxzoo"]["assets"] = {}
    content["state_dict"]["layer0.weight"] = torch.zeros(1).expand(1 << 40)
    torch.save(content, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match=r"state_dict\.layer0\.weight says"):
        read_checkpoint(tmp_path / "bomb.ckpt")
