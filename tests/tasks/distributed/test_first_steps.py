"""The quickstart's first 50 steps of its first pass, the same global batches cut up in four ways.

Rounding differs between the four, and training amplifies it: a ReLU that one run sees a hair above 0 and another below
changes all that follows, and Adam divides what is only rounding by itself. So activations are smooth here and Adam's
epsilon is large; sizes, voices, schedule, clipping and losses are the quickstart's, dropout and masking are off.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import logged

pytest.importorskip("espeakng_loader")

PACKAGE = '''
from torch.nn import functional
from voxzoo.components.layers import activations
from voxzoo.datamodules import SpeechTranslationData
from voxzoo.datamodules.batching import BatchSampler

activations.ACTIVATIONS["relu"] = functional.gelu


class Cut(SpeechTranslationData):
    """The quickstart's data."""


class _Pairs(BatchSampler):
    """What two processes take at a time, as one batch."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self._world_size = 2

    def __len__(self):
        return len(self.plan(0)) // 2

    def __iter__(self):
        batches = self.plan(self.epoch)
        pairs = [one + other for one, other in zip(batches[::2], batches[1::2], strict=True)]
        return iter([[(self.epoch, index) for index in pair] for pair in pairs[self.start :]])


class Joined(SpeechTranslationData):
    """The same with batches of twice the size."""

    def batch_sampler(self, **settings):
        return (_Pairs if settings["name"] == "train" else BatchSampler)(**settings)
'''
TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]
HOW = {
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "one": ["data._target_=quickstart_cuts.Joined"],
    "ddp": ["trainer=ddp", *TWO],
    "fsdp2": ["trainer=fsdp2", *TWO],
}
SETTINGS = [
    "experiment=quickstart", "stages=null", "task=speech_to_text", "t2u=none",
    "data._target_=quickstart_cuts.Cut", "allow=[quickstart_cuts]",
    "speech_encoder.spec_augment=null", "speech_encoder.dropout=0", "speech_encoder.conv_dropout=0",
    "adaptor.dropout=0", "text_seq2seq.dropout=0", "text_seq2seq.attention_dropout=0",
    "optim.lr=2e-3", "++optim.eps=1e-3", "trainer.max_steps=50", "trainer.val_check_interval=24",
    "data.corpus.num_train=192", "data.corpus.num_valid=8", "data.corpus.num_test=4", "data.batch_size=8",
    "logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}",
    "trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(voxzoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first_steps")
    (folder / "quickstart_cuts.py").write_text(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        for name, words in HOW.items():
            call = [*SETTINGS, *words, f"name={name}", f"cache_dir={folder / 'cache'}", f"root={folder}"]
            done = voxzoo("train", *call, cwd=folder, timeout=400)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "ddp", "fsdp2"])
def test_first_50_steps_of_the_quickstart(name: str, runs: Path):
    """Losses, gradient norms and final weights are those of one process that accumulates two batches a step."""
    first, second = runs / "accumulated", runs / name
    for metric in ("train/loss", "train/text", "train/ctc", "train/grad_norm"):
        expected = logged(first, metric)
        assert len(expected) == 50
        assert logged(second, metric) == pytest.approx(expected, rel=1e-5)
    assert logged(first, "train/loss")[-1] < 0.6 * logged(first, "train/loss")[0]
    expected, found = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    )
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        difference = float((value.double() - found[key].double()).norm())
        assert difference <= 1e-5 * float(value.double().norm()), f"{key}: {difference}"
