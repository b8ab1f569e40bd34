"""The contract of a task: all shipped ones keep it, and what breaks it is caught by name."""

from __future__ import annotations

import pytest
import torch
from voxzoo.components.contract.outcome import ContractError
from voxzoo.components.errors import UserError
from voxzoo.components.types import Batch, Loss, Statistic
from voxzoo.tasks.contract import check_task, examine_task, tiny_task
from voxzoo.tasks.task import Task

TASKS = (
    "speech_to_text",
    "text_to_text",
    "speech_and_text_to_text",
    "speech_to_speech_unity",
    "speech_to_speech_lm",
    "unit_vocoder",
    "gan_vocoder",
    "train_codec",
)


@pytest.fixture(autouse=True)
def _corpora(shared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VOXZOO_CACHE", str(shared / "corpora"))


@pytest.mark.parametrize("name", TASKS)
def test_shipped_tasks_keep_the_contract(name: str):
    outcomes = check_task(*tiny_task([f"task={name}"]))
    assert [outcome.name for outcome in outcomes] == [
        "runs", "kinds", "keys", "sums", "gradients", "predictions", "checkpoint"
    ]  # fmt: skip
    assert [outcome.note for outcome in outcomes if outcome.note] == []


@pytest.fixture
def task_and_batches() -> tuple[Task, list[Batch]]:
    return tiny_task(["task=text_to_text"])


def faults(task: Task, batches: list[Batch]) -> dict[str, str]:
    return {outcome.name: outcome.fault for outcome in examine_task(task, batches) if outcome.fault}


def broken(task: Task, change) -> None:
    """Let `change` have its way with what `measure` returns."""
    inner = task.measure
    task.measure = lambda batch: change(batch, *inner(batch))  # pyright: ignore[reportAttributeAccessIssue]


def keys_of_the_batch(batch: Batch, losses, statistics):
    return ({**losses, "many": losses["text"]} if len(batch) > 1 else losses), statistics


def statistics_in_the_loss(batch: Batch, losses, statistics):
    accuracy = statistics["accuracy"]
    return {**losses, "agreement": Loss(accuracy.total, accuracy.count)}, {}


def statistic_among_losses(batch: Batch, losses, statistics):
    return {**losses, **statistics}, {}


def loss_among_statistics(batch: Batch, losses, statistics):
    return losses, {"agreement": losses["text"]}


def one_name_for_both(batch: Batch, losses, statistics):
    return losses, {"text": statistics["accuracy"]}


def means(batch: Batch, losses, statistics):
    return {"text": Loss(losses["text"].mean, torch.ones(()))}, statistics


def not_finite(batch: Batch, losses, statistics):
    infinite = losses["text"].total * (1.0 if len(batch) > 1 else float("inf"))
    return {"text": Loss(infinite, losses["text"].count)}, statistics


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (
            keys_of_the_batch,
            "keys",
            "the losses of a batch of one row are text, of batch 0 text, many: return the same",
        ),
        (statistics_in_the_loss, "kinds", "the loss 'agreement' has no gradient, so it would only shift valid/loss"),
        (statistic_among_losses, "kinds", "TextToText.measure: 'accuracy' is a Statistic among its losses"),
        (loss_among_statistics, "kinds", "TextToText.measure: 'agreement' is a Loss among its statistics"),
        (one_name_for_both, "kinds", "TextToText.measure: 'text' is a loss and a statistic"),
        (means, "sums", "text: of 4 rows the count is 1, of the same rows in two batches 2: return sums over rows"),
        (not_finite, "keys", "text of a batch of one row is inf: rows that cannot count must add nothing"),
    ],
)
def test_what_breaks_the_contract_is_named(change, check: str, words: str, task_and_batches):
    task, batches = task_and_batches
    broken(task, change)
    found = faults(task, batches)
    assert words in found[check]
    with pytest.raises(ContractError, match=check):
        check_task(task, batches)


def test_parameters_that_no_loss_reaches_and_parts_that_are_not_saved_are_named(task_and_batches):
    task, batches = task_and_batches
    task.idle = torch.nn.Linear(2, 2)
    assert "idle.weight, idle.bias have no gradient from batch 0" in faults(task, batches)["gradients"]
    del task.idle
    broken(task, lambda batch, losses, statistics: ({"text": losses["text"] + losses["text"]}, statistics))
    assert "once saved and loaded" in faults(task, batches)["checkpoint"]


def test_predictions_out_of_order_are_named(task_and_batches):
    task, batches = task_and_batches
    inner = task.predict
    task.predict = lambda batch, **options: inner(batch, **options)[::-1]
    assert "one each, in order" in faults(task, batches)["predictions"]


def test_the_task_is_left_as_it_was(task_and_batches):
    task, batches = task_and_batches
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task.eval()
    check_task(task, batches)
    assert not task.training
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_statistic_of_any_name_stays_out_of_valid_loss(task_and_batches, tmp_path):
    """And a loss of any name is part of it, also one that begins with accuracy."""
    from lightning import Trainer
    from torch.utils.data import DataLoader

    task, batches = task_and_batches

    def change(batch: Batch, losses, statistics):
        return {**losses, "accuracy_loss": losses["text"]}, {"agreement": Statistic(torch.tensor(7.0), torch.ones(()))}

    broken(task, change)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(task, DataLoader(batches, batch_size=None, collate_fn=lambda x: x), verbose=False)
    assert metrics["valid/agreement"] == 7
    assert metrics["valid/loss"] == pytest.approx(2 * metrics["valid/text"])


def test_a_task_without_gradient_steps_has_no_contract():
    with pytest.raises(UserError, match="FitUnits takes no gradient steps"):
        tiny_task(["task=fit_units", "unit_extractor=tiny"])
