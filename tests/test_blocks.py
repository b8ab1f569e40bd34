"""Precision, activation checkpointing, compiled blocks and weights that arrive shard by shard."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from voxzoo.components.layers.convolution import MaskedBatchNorm
from voxzoo.components.types import Batch, Loss, Padded
from voxzoo.components.unit_extractor import KMeansUnits
from voxzoo.tasks.precision import BFloat16

SETTINGS = [
    "data.batch_size=5", "schedule=constant", "optim.lr=0.01", "optim.eps=1e-3", "trainer.log_every_n_steps=1",
    "logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}",
    "++logger.flush_logs_every_n_steps=1", "checkpoint.every_steps=2", "checkpoint.keep_best=0",
    "text_seq2seq.dropout=0", "adaptor.dropout=0", "text_seq2seq.attention_dropout=0",
]  # fmt: skip
CPU = ["trainer.accelerator=cpu", "trainer.max_epochs=-1", "trainer.devices=2"]
HOW = {
    "one": ["trainer.accumulate_grad_batches=2"],
    "ddp": ["trainer=ddp", *CPU],
    "fsdp2": ["trainer=fsdp2", *CPU],
}


def logged(run: Path, name: str) -> list[float]:
    """A metric at every step."""
    (path,) = run.rglob("metrics.csv")
    with path.open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def dtypes(tensors) -> Counter:
    return Counter(value.dtype for value in tensors if value.is_floating_point())


# Precision


def test_bfloat16_weights_leave_statistics_counts_and_samples_alone():
    """257 is 256 in bfloat16, and a running mean that moves by a thousandth does not move at all."""
    plugin = BFloat16()
    norm, units = MaskedBatchNorm(4), KMeansUnits(num_units=3)
    units.centroids.uniform_()
    centroids = units.centroids.clone()
    module = plugin.convert_module(torch.nn.ModuleList([norm, units]))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in module.buffers() if buffer.is_floating_point()} == {torch.float32}
    assert torch.equal(units.centroids, centroids)
    for mode in (True, False):  # both give the next layer what it takes
        assert norm.train(mode)(torch.randn(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    seconds = torch.tensor([257.125])
    batch = Batch(
        ids=("a",),
        speech=Padded(torch.randn(1, 5, 2), torch.tensor([5])),
        target_speech=Padded(torch.randn(1, 9), torch.tensor([9])),
        seconds=seconds,
    )
    given = plugin.convert_input(batch)
    assert given.speech is not None
    assert given.speech.data.dtype == torch.bfloat16
    assert given.target_speech is batch.target_speech
    assert given.seconds is seconds
    with plugin.train_step_context():
        assert float((Loss.zero() + Loss(torch.ones(()), torch.tensor(257.0))).count) == 257


@pytest.fixture(scope="module")
def exact(voxzoo, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps in float32."""
    folder = tmp_path_factory.mktemp("precision")
    words = [*HOW["one"], *tiny, *SETTINGS, f"root={folder}", "name=exact", "trainer.max_steps=4"]
    done = voxzoo("train", *words, "trainer.val_check_interval=4", "trainer.precision=32-true", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "exact"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "precision"),
    [
        ("one", "bf16-true"),
        ("ddp", "bf16-true"),
        ("ddp", "bf16-mixed"),
        ("fsdp2", "bf16-true"),
        ("fsdp2", "bf16-mixed"),
    ],
)
def test_low_precision_follows_the_run_in_float32(how: str, precision: str, voxzoo, tiny: list[str], exact: Path):
    """Measured: losses within 0.2%, gradient norms within 0.3%, for each strategy."""
    folder, name = exact.parent, f"{how}-{precision}"
    words = [*HOW[how], *tiny, *SETTINGS, f"root={folder}", f"name={name}", f"trainer.precision={precision}"]
    words += ["trainer.max_steps=4", "trainer.val_check_interval=4"]
    done = voxzoo("train", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    for metric in ("train/loss", "train/grad_norm", "valid/loss"):
        # Validation is counted in batches: one process has two of them a step here.
        last_only = slice(-1, None) if metric == "valid/loss" else slice(None)
        there, here = logged(exact, metric)[last_only], logged(folder / name, metric)[last_only]
        assert here == pytest.approx(there, rel=1e-2)
        assert here != pytest.approx(there, rel=1e-6), "this run was in float32 too"
    checkpoint = last(folder / name)
    kept = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert set(dtypes(checkpoint["state_dict"].values())) == {kept}
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert dtypes(v for state in states for key, v in state.items() if key != "step").keys() == {kept}


@pytest.mark.slow
def test_a_run_in_bfloat16_goes_on_as_it_was_and_is_evaluated(voxzoo, tiny: list[str], exact: Path):
    folder = exact.parent
    words = [*tiny, *SETTINGS, "trainer.precision=bf16-true", "trainer.val_check_interval=2", "trainer.max_steps=4"]
    words += ["checkpoint.keep_best=2", f"root={folder}", "name=half"]
    assert voxzoo("train", *words, cwd=folder).returncode == 0
    stopped = folder / "half"
    stopped.rename(folder / "straight")
    (stopped / "checkpoints").mkdir(parents=True)  # as it was when step 2 was saved
    for name in ("config.yaml", "tokenizer.model"):
        shutil.copy(folder / "straight" / name, stopped / name)
    shutil.copy(folder / "straight/checkpoints/step00000002.ckpt", stopped / "checkpoints/last.ckpt")
    done = voxzoo("train", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    whole, resumed = last(folder / "straight"), last(stopped)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    for number, state in whole["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            other = resumed["optimizer_states"][0]["state"][number][key]
            assert value.dtype == other.dtype
            assert torch.equal(value, other)
    done = voxzoo("evaluate", stopped, "--split", "test", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (audio, *_) = sorted(Path(tiny[-1].removeprefix("cache_dir=")).rglob("test_*.flac"))
    done = voxzoo("translate", stopped, audio, "--to", "eng", "--out", folder / "out", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_float16_weights_are_refused_in_one_line(voxzoo, tiny: list[str], tmp_path: Path):
    done = voxzoo("train", *tiny, f"root={tmp_path}", "trainer.precision=16-true", cwd=tmp_path)
    assert done.returncode != 0
    assert "trainer.precision=16-true" in done.stderr.splitlines()[-1]
    assert "bf16-true" in done.stderr.splitlines()[-1]
