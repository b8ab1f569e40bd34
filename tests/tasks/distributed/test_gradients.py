"""What happens between the gradient and the optimizer: clipping, and steps whose gradient is not finite."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from voxzoo.components.errors import UserError
from voxzoo.components.types import Batch, Loss
from voxzoo.configs import compose
from voxzoo.tasks.distributed.gradients import gradient_norm
from voxzoo.tasks.training.train import _require_learned, build_for_training, prepare_data


@pytest.fixture
def parts(tiny: list[str], tmp_path: Path):
    config = compose([*tiny, f"root={tmp_path}", "max_skipped_steps=2", "data.batch_size=5", "schedule=constant"])
    data = prepare_data(config)
    torch.manual_seed(0)
    task = build_for_training(config, Path(config.run_dir))
    data.needs = task.needs
    return task, data


class Poison(Callback):
    """Makes the loss of some batches not a number, and keeps the weights before each step."""

    def __init__(self, task: Any, batches: set[int], value: float) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        inner, self.seen = task.measure, 0

        def measure(batch: Batch) -> tuple[dict[str, Loss], dict[str, Loss]]:
            losses, statistics = inner(batch)
            if self.seen in batches:
                losses = {name: replace(loss, total=loss.total * value) for name, loss in losses.items()}
            self.seen += 1
            return losses, statistics

        task.measure = measure

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})


def fit(task: Any, data: Any, *callbacks: Callback, **settings: Any) -> Trainer:
    given = {"max_steps": 6, "limit_val_batches": 0, "logger": False, "enable_checkpointing": False, **settings}
    trainer = Trainer(
        accelerator="cpu", use_distributed_sampler=False, enable_progress_bar=False, callbacks=list(callbacks),
        enable_model_summary=False, **given,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return trainer


def test_a_run_that_left_out_all_of_its_steps_is_not_done(parts, tmp_path: Path):
    task, data = parts
    with pytest.warns(UserWarning, match="is left out"):
        trainer = fit(task, data, Poison(task, {0, 1}, float("nan")), max_steps=2)
    with pytest.raises(UserError, match="all 2 steps were left out"):
        _require_learned(task, trainer.global_step, tmp_path)
    task.skipped_steps = 1
    _require_learned(task, trainer.global_step, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_left_out(value: float, parts):
    task, data = parts
    poison = Poison(task, {2, 3}, value)
    with pytest.warns(UserWarning, match=r"step 3 is left out \(1 so far\).*utterances: "):
        trainer = fit(task, data, poison, gradient_clip_val=1.0)
    assert trainer.global_step == 6
    assert task.skipped_steps == 2
    for before, after in ((2, 3), (3, 4)):
        for key, kept in poison.states[before].items():
            assert torch.equal(kept, poison.states[after][key]), key
    moved = [not torch.equal(value, poison.states[5][key]) for key, value in poison.states[4].items()]
    assert any(moved), "training goes on behind them"
    assert all(torch.isfinite(value).all() for value in task.state_dict().values() if value.is_floating_point())
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}, "the optimizer did not count them either"


def test_too_many_in_a_row_stop_the_run_and_name_the_utterances(parts):
    task, data = parts
    with pytest.raises(UserError, match=r"step 4: .*nor was it in the 2 before.*Utterances of the step: ") as error:
        fit(task, data, Poison(task, {1, 2, 3}, float("nan")))
    named = str(error.value).partition("Utterances of the step: ")[2]
    ids = {row.id for row in data.rows("train")}
    assert named.split(",")[0].split(" ")[0] in ids


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_asked(algorithm: str, parts):
    task, data = parts
    norms: list[tuple[float, float]] = []

    class Look(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                largest = max(float(g.abs().max()) for g in gradients)
                norms.append((float(torch.nn.utils.get_total_norm(gradients)), largest))

    fit(task, data, Look(), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm, max_steps=3)
    assert norms
    if algorithm == "norm":
        assert all(norm == pytest.approx(1e-3, rel=1e-2) for norm, _ in norms)
    else:
        assert all(largest == pytest.approx(1e-3) and norm > 2e-3 for norm, largest in norms)


def test_a_fused_optimizer_sees_what_any_other_sees_under_a_scaler(parts):
    """Fused ones would divide by the scale amid their step, behind the norm and the clipping."""
    found = []
    for fused in (False, True):
        task, data = deepcopy(parts[0]), parts[1]
        task.attach_optimizer(partial(torch.optim.SGD, lr=0.1, fused=fused), None)
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # pyright: ignore[reportPrivateImportUsage]
        poison = Poison(task, {1}, float("inf"))
        fit(task, data, poison, max_steps=3, gradient_clip_val=0.1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        assert task.skipped_steps == 1
        found.append((float(task._grad_norm), task.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_norm_is_that_of_all_gradients_together():
    weights = [torch.nn.Parameter(torch.randn(n)) for n in (3, 5, 1)]
    weights.append(torch.nn.Parameter(torch.randn(4)))  # without a gradient
    for weight in weights[:3]:
        weight.grad = torch.randn_like(weight)
    expected = torch.cat([weight.grad for weight in weights[:3] if weight.grad is not None]).norm()
    torch.testing.assert_close(gradient_norm(weights), expected)
    assert float(gradient_norm([])) == 0


def test_the_norm_of_a_large_matrix_is_that_of_its_pieces():
    """Also where float32 sums of millions of squares would not be."""
    torch.manual_seed(0)
    gradient = torch.randn(20_000_000)
    one, pieces = torch.nn.Parameter(torch.empty(20_000_000)), [torch.nn.Parameter(torch.empty(4)) for _ in range(3)]
    one.grad = gradient
    for piece, values in zip(pieces, gradient.split([1, 7_000_000, 12_999_999]), strict=True):
        piece.data, piece.grad = values, values
    norm = gradient_norm([one])
    assert torch.equal(norm, gradient_norm(pieces))
    expected = sum(float(block.double().square().sum()) for block in gradient.split(1_000_000)) ** 0.5
    assert float(norm) == pytest.approx(expected, rel=1e-7)
