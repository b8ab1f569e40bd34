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
from voxzoo.components.errors import UserError


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


def test_one_flipped_byte_in_a_shard_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_weights(tmp_path, tensors, shard_bytes=200)
    seen = 0
    for path in sorted(tmp_path.iterdir()):
        before = path.read_bytes()
        for place in range(0, len(before), 5):
            changed = bytearray(before)
            changed[place] ^= 0x10
            path.write_bytes(changed)
            try:
                found = dict(Weights(tmp_path))
            except UserError as error:
                seen += "\n" not in str(error)
            else:  # a name that no part has is refused by what maps the keys
                assert all(torch.equal(value, tensors[key]) for key, value in found.items() if key in tensors)
        path.write_bytes(before)
    assert seen > 100


def test_large_tensors_are_compared_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path, some_tensors(), shard_bytes=200)
    path = Weights(tmp_path)._where["embed"]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    monkeypatch.setattr(files, "CHEAP", 30)
    assert dict(Weights(tmp_path)).keys() == some_tensors().keys()
    with pytest.raises(UserError, match=r"safetensors: damaged at \w+: it holds other bytes than were written"):
        dict(Weights(tmp_path, verify=True))


def test_transformers_reads_an_index_with_sums(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.HubertConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, conv_dim=[8],
        conv_kernel=[20], conv_stride=[20], num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.HubertModel(config)
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    write_weights(tmp_path / "b", dict(Weights(tmp_path / "a")), shard_bytes=3000)
    again, about = transformers.HubertModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not about["missing_keys"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
