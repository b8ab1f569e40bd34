"""Callbacks of one line: early stopping, a decoded score, the mean of the best checkpoints, a learning rate that is
found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.metrics.chrf import CHRF
from torch.optim.lr_scheduler import ReduceLROnPlateau
from voxzoo.components.errors import UserError
from voxzoo.tasks import load_run, train
from voxzoo.tasks.checkpoints.files import Checkpointer
from voxzoo.tasks.serving.translator import search_options
from voxzoo.tasks.training.averaging import AverageBest
from voxzoo.tasks.training.decoded import DecodedScore
from voxzoo.tasks.training.learning_rate import LearningRateFinder, steepest
from voxzoo.tasks.training.stopping import EarlyStopping


@pytest.fixture
def words(tiny: list[str], tmp_path: Path) -> list[str]:
    return [
        *tiny, "task=text_to_text", "data.tasks={s2tt:false,t2tt:true}", "logger=none", "schedule=none",
        "optim.lr=0.01", "trainer.max_steps=8", "trainer.val_check_interval=2", f"root={tmp_path}",
    ]  # fmt: skip


def state(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Killed(BaseException):
    pass


PATIENT = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=100"]


def test_a_training_that_had_stopped_stops_again_where_it_was_killed(words, tmp_path, monkeypatch):
    """Nothing is ever better by 100: the first validation counts, and two behind it."""
    whole = train([*words, *PATIENT, "name=whole"])
    assert whole["steps"] == 6

    def save_and_die(self: Checkpointer, trainer: Any, given: Callable[..., None] = Checkpointer._save_last) -> None:
        given(self, trainer)
        if trainer.global_step == 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_save_last", save_and_die)
        with pytest.raises(Killed):
            train([*words, *PATIENT, "name=killed"])
    assert not (tmp_path / "killed" / "done.json").exists()
    assert train([*words, *PATIENT, "name=killed"])["steps"] == 6
    assert same(state(tmp_path / "whole")["state_dict"], state(tmp_path / "killed")["state_dict"])


@pytest.mark.slow
def test_patience_that_is_not_at_its_end_is_counted_over_a_kill(words, tmp_path, monkeypatch):
    def save_and_die(self: Checkpointer, trainer: Any, given: Callable[..., None] = Checkpointer._save_last) -> None:
        given(self, trainer)
        if trainer.global_step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_save_last", save_and_die)
        with pytest.raises(Killed):
            train([*words, *PATIENT, "name=killed"])
    assert train([*words, *PATIENT, "name=killed"])["steps"] == 6


def test_a_metric_that_no_validation_measures_is_named(words):
    blue = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=valid/blue", "name=x"]
    with pytest.raises(UserError, match=r"^callbacks\.early_stopping\.monitor=valid/blue: validation measures valid/"):
        train([*words, *blue])
    # One of elsewhere may log it: then it is seen when there is none.
    other = "callbacks.other._target_=lightning.pytorch.callbacks.Timer"
    with pytest.raises(UserError, match=r"^early stopping by valid/blue: validation measures valid/"):
        train([*words, *blue, other])


DECODED = [
    "callbacks=decoded_score", "callbacks.decoded_score.metric=chrf", "callbacks.decoded_score.count=5",
    "checkpoint.monitor=valid/chrf", "checkpoint.mode=max", "checkpoint.keep_best=2",
]  # fmt: skip


def chrf_of(path: Path, rows: int) -> float:
    """By a plain computation: the text of each utterance by itself, all of them scored by sacrebleu."""
    run = load_run(path)
    data = run.datamodule()
    found = sorted(data.utterances("valid", tasks=("t2tt",), needs=run.task.serving_needs()), key=lambda row: row.id)
    assert len(found) == rows
    options = search_options(run.task, 1)
    texts = [run.task.predict(run.task.collator()([row]), task="t2tt", options=options)[0].text or "" for row in found]
    return CHRF().corpus_score(texts, [[row.tgt_text for row in found]]).score


def test_the_best_checkpoints_are_those_of_decoded_text(words, tmp_path):
    rows = ["data.corpus.num_valid=5"]
    result = train([*words, *DECODED, *rows, "name=decoded"])
    best = json.loads((tmp_path / "decoded" / "checkpoints" / "best.json").read_text())
    assert len(best) == 2
    for name, value in best.items():
        assert value == pytest.approx(chrf_of(tmp_path / "decoded" / "checkpoints" / name, 5), abs=1e-4)
    assert list(best.values()) == sorted(best.values(), reverse=True)
    assert max(best.values()) > 0
    assert "valid/chrf" in result["metrics"]
    # What is decoded changes nothing of the training.
    train([*words, *rows, "name=plain"])
    assert same(state(tmp_path / "decoded")["state_dict"], state(tmp_path / "plain")["state_dict"])


def test_a_schedule_follows_what_was_decoded(words, tmp_path, monkeypatch):
    """Each validation's own score, not the one before: the rate is halved where it is no better by 0.01 points."""
    heard: list[float] = []

    def step(self: Any, value: float, given: Callable[..., None] = ReduceLROnPlateau.step) -> None:
        heard.append(value)
        given(self, value)

    plateau = [
        "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "schedule.mode=max", "schedule.factor=0.5",
        "schedule.patience=0", "schedule.threshold=0.01", "schedule.threshold_mode=abs",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(ReduceLROnPlateau, "step", step)
        train([*words, *DECODED, *plateau, "checkpoint.keep_best=4", "data.corpus.num_valid=5", "name=plateau"])
    best = json.loads((tmp_path / "plateau" / "checkpoints" / "best.json").read_text())
    assert heard[-4:] == [pytest.approx(best[name]) for name in sorted(best)]
    assert len(set(heard[-4:])) > 1
    rate, highest = 0.01, -math.inf
    for value in heard[-4:]:
        rate, highest = (rate, value) if value > highest + 0.01 else (rate / 2, highest)
    (kept,) = state(tmp_path / "plateau")["lr_schedulers"]
    assert kept["_last_lr"] == pytest.approx([rate] * 2)


@pytest.mark.slow
def test_two_processes_decode_one_sample_together(words, tmp_path, voxzoo):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
    more = [*DECODED, *ddp, "trainer.max_epochs=-1", "data.corpus.num_valid=5", "name=two"]
    done = voxzoo("train", *words, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "two" / "checkpoints" / "best.json").read_text())
    for name, value in best.items():
        assert value == pytest.approx(chrf_of(tmp_path / "two" / "checkpoints" / name, 5), abs=1e-4)


def test_a_sample_is_the_same_whatever_the_order_of_the_rows(words):
    callback = DecodedScore(count=2)
    assert callback.name == "valid/bleu"
    with pytest.raises(UserError, match="count=0: expected at least 1"):
        DecodedScore(count=0)


def test_weights_are_averaged_over_the_best_checkpoints(words, tmp_path, capsys):
    train([*words, "callbacks=average_best", "checkpoint.keep_best=3", "name=mean"])
    folder = tmp_path / "mean" / "checkpoints"
    names = list(json.loads((folder / "best.json").read_text()))
    states = [state(tmp_path / "mean", name)["state_dict"] for name in names]
    found = state(tmp_path / "mean", "average.ckpt")
    assert len(states) == 3
    for key, value in found["state_dict"].items():
        if value.is_floating_point():
            want = torch.stack([each[key].double() for each in states]).mean(0).to(value.dtype)
            assert torch.equal(value, want), key
    assert "optimizer_states" not in found
    assert "average.ckpt" in capsys.readouterr().err
    task = load_run(folder / "average.ckpt").task
    assert same(dict(task.state_dict()), found["state_dict"])


def test_a_mean_of_one_checkpoint_is_refused_before_training(words):
    with pytest.raises(UserError, match=r"checkpoint\.keep_best=1: a mean of 2 checkpoints needs as many"):
        train([*words, "callbacks=average_best", "name=x"])
    with pytest.raises(UserError, match="count=1: a mean needs at least 2"):
        AverageBest(count=1)


FINDER = ["callbacks=learning_rate_finder", "callbacks.learning_rate_finder.steps=30"]


def test_a_training_with_a_found_rate_is_one_with_that_rate(words, tmp_path, capsys):
    words = [*words, "schedule=inverse_sqrt", "schedule.warmup_steps=4"]
    train([*words, *FINDER, "optim.lr=1e-5", "name=found"])
    rate = json.loads((tmp_path / "found" / "learning_rate.json").read_text())
    assert 1e-6 < rate["rate"] < 0.5
    assert f"learning rate {rate['rate']:.3g} found" in capsys.readouterr().err
    train([*words, f"optim.lr={rate['rate']!r}", "name=plain"])
    found, plain = state(tmp_path / "found"), state(tmp_path / "plain")
    for key, value in plain["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-4, atol=1e-6)
    assert found["lr_schedulers"][0]["_last_lr"] == pytest.approx(plain["lr_schedulers"][0]["_last_lr"])
    # A run that goes on has its rate, and tries none.
    (tmp_path / "found" / "learning_rate.json").unlink()
    (tmp_path / "found" / "done.json").unlink()
    train([*words, *FINDER, "optim.lr=1e-5", "name=found", "trainer.max_steps=9"])
    assert not (tmp_path / "found" / "learning_rate.json").exists()
    assert state(tmp_path / "found")["lr_schedulers"][0]["_last_lr"][0] > 1e-4 * rate["rate"]


def test_the_rate_is_where_the_loss_falls_fastest():
    rates = [10 ** (-6 + 0.1 * n) for n in range(60)]
    losses = [4 - 3 / (1 + math.exp(-(n - 30) / 2)) + (math.exp((n - 50) / 2) if n > 45 else 0) for n in range(60)]
    found = rates.index(steepest(rates, losses))
    assert 30 <= found <= 42  # where it falls, and a little behind, for losses are smoothed
    with pytest.raises(UserError, match="no learning rate was found"):
        steepest(rates, [float(n) for n in range(60)])
    with pytest.raises(UserError, match=r"lowest=1\.0, highest=0\.1"):
        LearningRateFinder(lowest=1.0, highest=0.1)


def test_a_patience_of_none_is_refused():
    with pytest.raises(UserError, match="patience=0: expected at least 1"):
        EarlyStopping(patience=0)
