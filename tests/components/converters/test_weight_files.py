"""Weights as files: shards that follow each other through memory."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from voxzoo.components.converters import files
from voxzoo.components.converters.files import Weights, write_weights
from voxzoo.components.converters.keymap import KeyMap, same, stack, tied


def some_tensors() -> dict[str, Tensor]:
    """Names in no order, rows of one matrix, one matrix under two names, integers."""
    torch.manual_seed(0)
    fused, table = torch.randn(12, 4), torch.randn(10, 4)
    return {
        "z.q": fused[:4],
        "a.k": fused[4:8],
        "m.v": fused[8:],
        "embed": table,
        "head": table,
        "count": torch.arange(3),
        "across": torch.randn(4, 6).T,
    }


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_views_and_shared_tensors_are_written_as_copies_would_be(tmp_path: Path, dtype: torch.dtype | None) -> None:
    tensors = some_tensors()
    write_weights(tmp_path, tensors, dtype)
    copies = {
        key: (value.to(dtype) if dtype and value.is_floating_point() else value).contiguous().clone()
        for key, value in tensors.items()
    }
    save_file(copies, str(tmp_path / "expected"), metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    tensors = some_tensors()
    for name, limit in (("one", 10**9), ("many", 200)):
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name, tensors, shard_bytes=limit)
    many = Weights(tmp_path / "many")
    assert len([name for name in bytes_of(tmp_path / "many") if name.endswith(".safetensors")]) > 2
    for key, value in load_file(tmp_path / "one" / "model.safetensors").items():
        assert torch.equal(many[key], value)
    assert set(many) == set(tensors)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_only_one_shard_is_copied_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    """What one shard took is gone when the next one is written."""
    rules = KeyMap([stack("p.*.qkv", "p.*.q", "p.*.k", "p.*.v"), same("p.*.w", "p.*.w"), tied("e", "embed", "head")])
    names = ["e", *(f"p.{i}.{name}" for i in range(6) for name in ("qkv", "w"))]
    ours = {name: torch.randn(12, 50) for name in names}
    tensors = rules.save(ours)
    sources = {value.untyped_storage().data_ptr() for value in ours.values()}
    made: list[list[weakref.ref]] = []
    most = 0

    def spy(shard: dict[str, Tensor], *args: object, **kwargs: object) -> None:
        nonlocal most
        assert not any(ref() is not None for refs in made for ref in refs), "an earlier shard is still there"
        copies = [value for value in shard.values() if value.untyped_storage().data_ptr() not in sources]
        made.append([weakref.ref(value) for value in copies])
        most = max(most, sum(value.nbytes for value in copies))
        save_file(shard, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr(files, "save_file", spy)
    write_weights(tmp_path, tensors, dtype, shard_bytes=6000)
    assert len(made) >= 3
    assert 0 < most <= 6000
    assert set(Weights(tmp_path)) == set(tensors)
