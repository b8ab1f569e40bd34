"""Weights that stay in their file: what a load costs, and that it changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from voxzoo.components import ConformerEncoder
from voxzoo.configs import compose
from voxzoo.configs.targets import allow_list
from voxzoo.tasks.checkpoints.files import AtomicCheckpointIO, read_checkpoint, write_atomically
from voxzoo.tasks.checkpoints.mapped import fill, materialise, parameters_on_meta
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.runs.run import load_run
from voxzoo.tasks.task import Task

ENCODER = ["task=encode_speech", "speech_encoder=tiny", "adaptor=none", "data=tiny", "frontend=tiny"]


def write(path: Path, words: list[str], **settings: Any) -> tuple[Task, dict[str, Any]]:
    """A checkpoint of random weights at `path`: the task that it is of, and what it holds."""
    config = compose([*ENCODER, *words])
    OmegaConf.set_struct(config, False)
    config.update(settings)
    torch.manual_seed(1)
    task = assemble(config, allow_list(config)).eval()
    content = {"state_dict": task.state_dict(), "voxzoo": {"config": task.config, "assets": {}}}
    write_atomically(path, lambda file: torch.save(content, file))
    return task, content


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) and value.dtype == theirs[key].dtype for key, value in ours.items()
    )


MEASURED = """
import sys, torch
from pathlib import Path
from voxzoo.tasks.runs.run import load_run

def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))

before = own()
task = load_run(sys.argv[1]).task
print(own() - before, sum(float(p.double().sum()) for p in task.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not say what is private")
def test_a_load_takes_no_memory_for_the_weights(tmp_path: Path):
    path = tmp_path / "large.ckpt"
    large = ["speech_encoder.dim=384", "speech_encoder.ffn_dim=1536", "speech_encoder.num_layers=5"]
    task, _ = write(path, large)
    assert path.stat().st_size > 60e6
    command = [sys.executable, "-c", MEASURED, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    taken, total = done.stdout.split()
    assert int(taken) < 0.2 * path.stat().st_size
    assert float(total) == sum(float(p.detach().double().sum()) for p in task.parameters())


def test_a_trained_run_is_not_initialised_first(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    task, _ = write(path, [])
    before = torch.get_rng_state()
    loaded = load_run(path).task
    assert torch.equal(torch.get_rng_state(), before)
    assert same(loaded, task)
    assert is_mapped(path)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in task.parameters()]


@pytest.mark.parametrize("words", [["vocoder=tiny"], ["t2u=tiny_unity2", "vocoder=tiny"]])
def test_what_no_checkpoint_has_is_computed(words: list[str], tmp_path: Path):
    """Tables of every part are those of a task that was initialised."""
    parts = ["frontend=tiny", "adaptor=tiny", "speech_encoder=tiny", "text_seq2seq=tiny", "tokenizer=tiny", "data=tiny"]
    config = compose([*parts, "unit_extractor=tiny", "t2u=tiny", "task=speech_to_speech_unity", *words])
    from voxzoo.tasks.planning.shapes import FakeTokenizer

    tokenizer = FakeTokenizer(int(config.tokenizer.vocab_size), ["eng", "spa"])
    drawn = assemble(config, allow_list(config), tokenizer=tokenizer)
    empty = assemble(config, allow_list(config), tokenizer=tokenizer, weights="empty")
    assert all(p.is_meta for p in empty.parameters())
    assert fill(empty, drawn.state_dict(), cast=True)
    assert same(drawn, empty)
    tables = dict(empty.named_buffers())
    assert tables.keys() - drawn.state_dict().keys()
    assert all(torch.equal(buffer, tables[name]) for name, buffer in drawn.named_buffers())


def test_dtypes_of_trained_and_imported_runs(tmp_path: Path):
    """Training in half precision is loaded in float32, as ever; an imported model stays what it was imported as."""
    for settings, expected in (({}, torch.float32), ({"model_type": "wav2vec2-bert"}, torch.bfloat16)):
        path = tmp_path / f"{expected}.ckpt"
        task, content = write(path, [], **settings)
        content["state_dict"] = {key: value.bfloat16() for key, value in content["state_dict"].items()}
        write_atomically(path, lambda file, content=content: torch.save(content, file))
        loaded = load_run(path).task
        assert {p.dtype for p in loaded.parameters()} == {expected}
        assert same(loaded, task.bfloat16().to(expected))


def test_the_format_before_torch_1_6_is_still_read(tmp_path: Path):
    path = tmp_path / "old.ckpt"
    task, content = write(path, [])
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert same(load_run(path).task, task)
    assert not is_mapped(path)


def test_a_file_system_that_maps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.ckpt"
    task, _ = write(path, [])
    load = torch.load

    def without(*args: Any, mmap: bool = False, **options: Any) -> Any:
        if mmap:
            raise RuntimeError(f"unable to mmap 5 bytes from file <{path}>: No such device (19)")
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", without)
    assert same(load_run(path).task, task)
    assert not is_mapped(path)


def test_the_file_may_be_replaced_and_is_not_written_to(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    task, content = write(path, [])
    before = path.read_bytes()
    loaded = load_run(path).task
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before
    again = load_run(path).task
    content["state_dict"] = {key: torch.zeros_like(value) for key, value in content["state_dict"].items()}
    write_atomically(path, lambda file: torch.save(content, file))  # a training that goes on
    assert same(again, task)
    assert not any(bool(p.any()) for p in load_run(path).task.parameters())


def test_merged_lora_leaves_the_file_as_it_is(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    words = ["++lora.speech_encoder.targets.all='*'", "++lora.speech_encoder.rank=2"]
    task, content = write(path, words)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()
    write_atomically(path, lambda file: torch.save(content, file))
    before = path.read_bytes()
    merged = load_run(path).task
    assert not [name for name in merged.state_dict() if "lora" in name]
    name = "speech_encoder.layers.0.ffn1.inner.weight"
    assert torch.equal(merged.state_dict()[name], task.get_submodule(name.rpartition(".")[0]).merged())  # pyright: ignore
    assert path.read_bytes() == before


def test_a_training_that_goes_on_lets_the_file_go(tmp_path: Path):
    """States of its optimizer are memory of its own: the next save frees the space of the last one."""
    path = tmp_path / "last.ckpt"
    _, content = write(path, [])
    content["optimizer_states"] = [{"state": {0: {"exp_avg": torch.ones(50), "step": torch.tensor(3.0)}}}]
    content["callbacks"] = {"average": {"weights": [torch.ones(50)]}}
    write_atomically(path, lambda file: torch.save(content, file))
    mapped = read_checkpoint(path)
    assert is_mapped(path)
    del mapped
    read = AtomicCheckpointIO().load_checkpoint(path)
    assert is_mapped(path)
    weights = read.pop("state_dict")
    assert weights.keys() == content["state_dict"].keys()
    del weights
    assert not is_mapped(path)
    assert float(read["optimizer_states"][0]["state"][0]["exp_avg"].sum()) == 50
    assert float(read["callbacks"]["average"]["weights"][0].sum()) == 50


# Parts of someone's own


class Tied(nn.Module):
    """Two layers with one matrix, a counter under two names, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.output.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("again", self.count)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


@pytest.mark.parametrize("how", ["fill", "materialise"])
def test_shared_parameters_stay_shared(how: str):
    with parameters_on_meta():
        module = Tied()
    assert module.embedding.weight.is_meta
    if how == "fill":
        state = Tied().state_dict()
        assert fill(module, state, cast=True)
        assert all(
            torch.equal(value, state[key]) for key, value in module.state_dict().items() if key != "output.weight"
        )
    else:
        materialise(module, torch.device("cpu"))
    assert module.output.weight is module.embedding.weight
    assert module.count is module.again
    assert len(list(module.parameters())) == 2
    assert module.table.tolist() == [0, 1, 2]
    assert isinstance(nn.Linear(2, 2).weight.sum().item(), float)  # outside, all is as it was


@pytest.mark.parametrize("kind", ["reads", "keeps"])
def test_a_part_that_looks_into_its_weights_while_it_is_built(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.ckpt"
    start = ConformerEncoder.__init__

    def curious(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        weight = next(self.parameters())
        self.seen = weight.sum().item() if kind == "reads" else weight.detach() * 2

    monkeypatch.setattr(ConformerEncoder, "__init__", curious)
    task, _ = write(path, [])
    loaded = load_run(path).task
    assert same(loaded, task)
    seen = loaded.parts()["speech_encoder"].seen
    assert isinstance(seen, float) or not seen.is_meta
