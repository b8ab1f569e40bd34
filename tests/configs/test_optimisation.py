"""Optimizers, schedules and callbacks of torch, of Lightning and of one's own: by name, and tried by check."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler
from voxzoo.components.errors import UserError
from voxzoo.configs import check, compose
from voxzoo.configs.optimisation import factory, make_schedule
from voxzoo.tasks.planning.shapes import trace

TORCH = "schedule=none schedule._target_=torch.optim.lr_scheduler."


def messages(words: str) -> list[str]:
    return [str(fault) for fault in check(compose(words.split()))]


@pytest.mark.parametrize(
    "words",
    [
        "CosineAnnealingLR schedule.T_max=100",
        "OneCycleLR schedule.max_lr=0.01",
        "OneCycleLR schedule.max_lr=0.01 schedule.epochs=3 schedule.steps_per_epoch=40 trainer.max_steps=-1",
        "StepLR schedule.step_size=10",
        "ReduceLROnPlateau schedule.patience=3",
        "SequentialLR schedule.milestones=[5] "
        "schedule.schedulers=[{_target_:torch.optim.lr_scheduler.LinearLR,total_iters:5},"
        "{_target_:torch.optim.lr_scheduler.CosineAnnealingLR,T_max:50}]",
    ],
)
def test_schedules_of_torch_work_by_name(words: str):
    assert messages(TORCH + words) == []
    node = compose((TORCH + words).split()).schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    made = make_schedule(factory(node), optimizer, 50)
    assert isinstance(made, getattr(lr_scheduler, words.split()[0]))
    if isinstance(made, lr_scheduler.OneCycleLR):
        assert made.total_steps == (120 if "epochs" in words else 50)


@pytest.mark.parametrize(
    "words",
    [
        "optim=adafactor",
        "optim._target_=torch.optim.RAdam",
        "optim.fused=true",
        "optim._target_=torch.optim.SGD ~optim.betas optim.momentum=0.9",
    ],
)
def test_optimizers_of_torch_work_by_name(words: str):
    assert messages(words) == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (f"{TORCH}CosineAnnealingLR", "schedule.T_max: CosineAnnealingLR needs a value for this"),
        (f"{TORCH}CosineAnnealingLR schedule.T_maxx=3 schedule.T_max=3",
         "schedule.T_maxx: CosineAnnealingLR has no such parameter; did you mean 'T_max'?"),
        (f"{TORCH}CosineAnnealingLR schedule.T_max=many", "schedule"),
        (f"{TORCH}OneCycleLR schedule.max_lr=[0.1,0.1,0.1]", "schedule.max_lr: must have the same length"),
        (f"{TORCH}OneCycleLR schedule.max_lr=0.1 trainer.max_steps=-1",
         "schedule: You must define either total_steps OR (epochs AND steps_per_epoch)"),
        ("schedule=cosine trainer.max_steps=-1", "schedule: cosine needs the length of the run"),
        ("schedule=none schedule._target_=torch.optim.AdamW", "schedule"),
        ("optim.betas=[0.9,2]", "optim: Invalid beta parameter at index 1: 2"),
        ("optim._target_=torch.optim.LBFGS ~optim.betas ~optim.weight_decay",
         "optim: LBFGS doesn't support per-parameter options"),
        ("optim._target_=torch.optim.Muon ~optim.betas", "optim: Muon only supports 2D parameters"),
        ("optim._target_=torch.nn.Linear ~optim.betas ~optim.weight_decay ~optim.lr", "optim"),
        ("callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
         "callbacks.mine.monitor: EarlyStopping needs a value for this"),
        ("callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping callbacks.mine.monitor=valid/loss "
         "callbacks.mine.mode=least", "callbacks.mine"),
        ("callbacks.mine._target_=torch.nn.Identity",
         "callbacks.mine: the config is torch.nn.Identity, which is not a Callback"),
        ("callbacks.mine=3", "callbacks.mine: expected a map with _target_"),
        ("callbacks=decoded_score checkpoint.monitor=valid/bleu",
         "checkpoint.mode: 'min': of checkpoint.monitor=valid/bleu more is better: expected 'max'"),
        ("checkpoint.mode=max", "checkpoint.mode: 'max': of checkpoint.monitor=valid/loss less is better"),
        ("callbacks=[early_stopping,decoded_score] callbacks.early_stopping.monitor=valid/chrf",
         "callbacks.early_stopping.mode: 'min': of callbacks.early_stopping.monitor=valid/chrf more is better"),
        (f"{TORCH}ReduceLROnPlateau checkpoint.monitor=valid/accuracy checkpoint.mode=max",
         "schedule.mode: 'min': of checkpoint.monitor=valid/accuracy more is better: expected 'max'"),
        # What nobody knows is as the checkpoints have it.
        (f"{TORCH}ReduceLROnPlateau checkpoint.monitor=valid/own checkpoint.mode=max",
         "schedule.mode: 'min': of checkpoint.monitor=valid/own more is better: expected 'max'"),
    ],
)  # fmt: skip
def test_what_they_have_against_their_values_is_found_by_check(words: str, fault: str):
    found = messages(words)
    assert len({line.split(":")[0] for line in found}) == 1, found
    assert found[0].startswith(fault), found
    assert "\n" not in found[0]


def test_values_for_each_group_fit_the_groups_of_the_model():
    """Two groups in a model; with LoRA alone one, of matrices."""
    words = f"{TORCH}OneCycleLR schedule.max_lr=[0.1,0.2] frontend=tiny speech_encoder=tiny adaptor=tiny"
    words += " text_seq2seq=tiny tokenizer=tiny"
    config = compose(words.split())
    trace(config, serving=False)
    words += " task.ctc_weight=0 freeze.adaptor=true freeze.text_seq2seq=true"
    alone = compose([*words.split(), "lora.speech_encoder={targets:{all:'*'},rank:2}"])
    with pytest.raises(UserError, match=r"^schedule: ValueError: "):
        trace(alone, serving=False)


def test_a_metric_that_validation_does_not_measure_is_refused(tiny):
    known = "valid/loss, valid/text, valid/ctc, valid/accuracy"
    bleu, plateau = "checkpoint.monitor=valid/bleu", f"{TORCH}ReduceLROnPlateau"
    stop, decoded = "callbacks.early_stopping.monitor=valid/bleu", "callbacks=[decoded_score,early_stopping]"
    for words, key in (
        (bleu, "checkpoint.monitor"),
        (f"{bleu} checkpoint.keep_best=0 {plateau}", "checkpoint.monitor"),
        (f"{bleu} callbacks=average_best", "checkpoint.monitor"),
        (f"callbacks=early_stopping {stop}", "callbacks.early_stopping.monitor"),
    ):
        with pytest.raises(UserError, match=f"^{key}=valid/bleu: validation measures {known}$"):
            trace(compose([*tiny, *words.split()]))
    with pytest.raises(UserError, match=f"^checkpoint.monitor=valid/bleu: validation measures {known}, valid/chrf$"):
        trace(compose([*tiny, bleu, "callbacks=decoded_score", "callbacks.decoded_score.metric=chrf"]))
    for words in (
        "checkpoint.monitor=valid/accuracy",
        f"{bleu} checkpoint.keep_best=0",
        f"{bleu} {decoded} {plateau} {stop}",
        # A callback of one's own may log it.
        f"{bleu} +callbacks.own._target_=lightning.pytorch.callbacks.LearningRateMonitor",
    ):
        trace(compose([*tiny, *words.split()]))
