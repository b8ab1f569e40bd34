"""Vocoders against discriminators: padding, losses, steps, processes, going on, refusals."""

from __future__ import annotations

import functools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stopper
import torch
from conftest import logged
from lightning import Trainer
from torch.utils.data import DataLoader
from voxzoo.components import GriffinLimVocoder, HiFiGANDiscriminator, ISTFTVocoder
from voxzoo.components.discriminator.hifi_gan import SpectralNorm
from voxzoo.components.errors import UserError
from voxzoo.components.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mean_score,
)
from voxzoo.components.types import Batch, Padded
from voxzoo.configs import build, check, compose
from voxzoo.tasks import GanVocoder, UnitVocoderTask, load_run
from voxzoo.tasks.distributed.strategies import FSDP2
from voxzoo.tasks.runs.initial import load_parts
from voxzoo.tasks.training.schedules import exponential
from voxzoo.tasks.training.train import build_for_training, prepare_data
from voxzoo.tasks.units import extract_units, fit_units
from ways import assert_close

TINY = {
    "periods": [2, 3], "num_scales": 2, "period_channels": [4, 8],
    "scale_channels": [4, 8, 8], "scale_kernels": [15, 21, 5], "scale_strides": [1, 4, 2], "scale_groups": [1, 2, 1],
}  # fmt: skip


# The discriminators


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        whole = HiFiGANDiscriminator()

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    # By hand, from the paper's table: weights, biases and, with weight norm, one length per output channel.
    period = [(1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5), (1024, 1, 3)]
    scale = [(1, 128, 15), (32, 128, 41), (8, 256, 41), (16, 512, 41), (32, 1024, 41), (64, 1024, 41), (1024, 1024, 5)]
    scale.append((1024, 1, 3))
    assert count(whole.of_periods) == 5 * sum(a * b * k + 2 * b for a, b, k in period)
    assert count(whole.of_scales) == sum(3 * a * b * k + 5 * b for a, b, k in scale)  # the first has no lengths
    assert count(whole) == 70_724_591


@pytest.fixture
def discriminator() -> HiFiGANDiscriminator:
    torch.manual_seed(0)
    return HiFiGANDiscriminator(**TINY)


def speech(*lengths: int, seed: int = 0) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    return Padded.from_list([torch.randn(n, generator=generator) for n in lengths])


def test_columns_are_every_pth_sample_and_a_row_is_reflected(discriminator: HiFiGANDiscriminator):
    """Against two-dimensional convolutions with (k, 1) kernels, as the paper writes them."""
    samples = speech(100).data
    x = torch.nn.functional.pad(samples[:, None], (0, 2), mode="reflect").view(1, 1, -1, 3)
    stack: Any = discriminator.of_periods[1]
    for number, conv in enumerate(stack.convs):
        width = conv.kernel_size[0] // 2
        x = torch.nn.functional.conv2d(x, conv.weight[..., None], conv.bias, (conv.stride[0], 1), (width, 0))
        x = torch.nn.functional.leaky_relu(x, 0.1) if number < len(stack.convs) - 1 else x
    found = discriminator(Padded(samples, torch.tensor([100]))).scores[1]
    torch.testing.assert_close(found.data, x[:, 0])


def test_rows_of_no_or_few_samples_are_finite(discriminator: HiFiGANDiscriminator):
    judged = discriminator(Padded(torch.randn(3, 8), torch.tensor([8, 1, 0])))
    frames = torch.tensor([2, 1, 0])
    loss = discriminator_loss(judged, judged, frames)
    assert torch.isfinite(loss.total)
    assert loss.count == 3
    assert all(int(scores.lengths[2]) == 0 for scores in judged.scores)


def test_spectral_norm_is_that_of_torch_and_moves_by_advance_alone(discriminator: HiFiGANDiscriminator):
    weight = torch.nn.Parameter(torch.randn(12, 5, 3))
    norm = SpectralNorm(weight)
    for _ in range(200):
        norm.advance(weight)
    assert float(torch.linalg.matrix_norm(norm(weight.detach()).flatten(1), 2)) == pytest.approx(1, abs=1e-4)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator.train()(speech(50))
    assert all(value.equal(before[name]) for name, value in discriminator.state_dict().items())
    discriminator.advance()
    changed = {name for name, value in discriminator.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert all(name.startswith("of_scales.0.") and name.endswith((".left", ".right")) for name in changed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"periods": [], "num_scales": 0}, "leave no discriminator"),
        ({"scale_strides": [1]}, r"scale_strides=\[1\] needs one entry per entry of scale_channels"),
        ({"scale_kernels": [15, 20, 5]}, "must be odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        HiFiGANDiscriminator(**{**TINY, **changes})


# The losses


def test_losses_of_equal_crops_are_the_means_of_the_paper(discriminator: HiFiGANDiscriminator):
    real, made = discriminator(speech(320, 320, 320)), discriminator(speech(320, 320, 320, seed=1))
    frames = torch.tensor([2, 2, 2])
    pairs = list(zip(real.scores, made.scores))
    expected = sum(float((1 - r.data).square().mean() + m.data.square().mean()) for r, m in pairs)
    assert float(discriminator_loss(real, made, frames).mean) == pytest.approx(expected, rel=1e-5)
    expected = sum(float((1 - m.data).square().mean()) for _, m in pairs)
    assert float(generator_loss(made, frames).mean) == pytest.approx(expected, rel=1e-5)
    expected = sum(float((r.data - m.data).abs().mean()) for r, m in zip(real.features, made.features))
    assert float(feature_matching_loss(real, made, frames).mean) == pytest.approx(expected, rel=1e-5)
    expected = sum(float(m.data.mean()) for _, m in pairs) / 4
    assert float(mean_score(made, frames).mean) == pytest.approx(expected, rel=1e-4)


def test_losses_of_a_batch_are_the_sums_of_its_rows(discriminator: HiFiGANDiscriminator):
    real, made = speech(640, 320, 161), speech(640, 320, 161, seed=1)
    frames = torch.tensor([4, 2, 1])

    def losses(rows: slice):
        r, m = (discriminator(Padded.from_list(batch.unpad()[rows])) for batch in (real, made))
        some = frames[rows]
        return [discriminator_loss(r, m, some), generator_loss(m, some), feature_matching_loss(r, m, some)]

    for whole, first, second in zip(losses(slice(0, 3)), losses(slice(0, 2)), losses(slice(2, 3))):
        torch.testing.assert_close(whole.total, (first + second).total)
        assert whole.count == (first + second).count == 7


def test_the_rate_falls_by_a_factor_every_so_many_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = exponential(optimizer, decay=0.5, every_steps=10, warmup_steps=4)
    rates = []
    for _ in range(31):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.25)
    assert [rates[n] for n in (10, 20, 30)] == pytest.approx([0.5, 0.25, 0.125])
    assert rates[15] == pytest.approx(math.sqrt(0.125))


# The task

PARTS = ["unit_extractor=tiny", "vocoder=tiny_istft", "discriminator=tiny", "task=gan_vocoder"]


@pytest.fixture(scope="module")
def words(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a tiny run of the task, with units of the tiny corpus."""
    folder = tmp_path_factory.mktemp("units")
    config = compose([*tiny, "unit_extractor=tiny", "task=fit_units", f"root={folder}"])
    data, extractor = prepare_data(config), build(config.unit_extractor)
    fit_units(extractor, data.rows("train"))
    extract_units(extractor, [row for split in data.splits() for row in data.rows(split)], path=folder / "units.jsonl")
    return [*tiny, *PARTS, f"data.units={folder / 'units.jsonl'}", "logger=none"]


@pytest.fixture
def make(words: list[str], tmp_path: Path) -> Callable[..., tuple[GanVocoder, list[Batch]]]:
    """make("vocoder=...") -> the task as `voxzoo train` builds it, the same weights at each call, and six batches."""

    def case(*overrides: str) -> tuple[GanVocoder, list[Batch]]:
        config = compose([*words, f"root={tmp_path}", *overrides])
        data = prepare_data(config)
        torch.manual_seed(0)
        task: Any = build_for_training(config, Path(config.run_dir))
        rows = list(data.rows("train"))
        collate = data.collator(task.needs)
        return task, [collate(rows[n : n + 3]) for n in range(0, 18, 3)]

    return case


def fit(task: GanVocoder, batches: list[Batch], **settings: Any) -> Trainer:
    task.attach_optimizer(functools.partial(torch.optim.SGD, lr=1e-3), exponential)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **settings)
    trainer.fit(task, DataLoader(batches, batch_size=None, shuffle=False))  # pyright: ignore[reportArgumentType]
    return trainer


VOCODERS = ["vocoder=tiny_istft", "vocoder=tiny_hifi_gan"]


@pytest.mark.parametrize("vocoder", VOCODERS)
def test_each_loss_trains_its_own_network(vocoder: str, make):
    task, batches = make(vocoder)
    losses, statistics = task.measure(batches[0])
    assert {"mel", "duration", "adversarial", "feature_matching", "discriminator"} <= losses.keys()
    assert statistics.keys() == {"score_real", "score_made"}
    assert all(float(losses["mel"].count) == float(v.count) for n, v in losses.items() if n != "duration")
    for name, loss in losses.items():
        task.zero_grad()
        loss.total.backward(retain_graph=True)
        reached = {key.split(".")[0] for key, p in task.named_parameters() if p.grad is not None}
        assert reached == {"discriminator" if name == "discriminator" else "vocoder"}, name
    assert all(p.requires_grad for p in task.discriminator.parameters())


def test_a_step_trains_the_discriminator_and_then_the_vocoder_against_it(make):
    """By hand, with plain gradient descent, as the paper has it."""
    task, batches = make()
    fit(task, batches[:1], max_steps=1)
    other, _ = make()
    torch.manual_seed(hash((1, 0, 0, 0)) % (2**63))
    made = other._reconstruct(batches[0])
    frames = made.frames.sum()

    def descend(network: torch.nn.Module, loss: torch.Tensor) -> None:
        parameters = list(network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.data.sub_(1e-3 * gradient)

    descend(other.discriminator, other._judge(made)[0]["discriminator"].total / frames)
    other.discriminator.advance()
    losses = other._generate(made)
    total = 45 * losses["mel"].total + 2 * losses["feature_matching"].total + losses["adversarial"].total
    descend(other.vocoder, (total + losses["duration"].total + losses["stft"].total) / frames)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(task.state_dict()[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("vocoder", VOCODERS)
def test_mixed_precision_trains(vocoder: str, make):
    task, batches = make(vocoder)
    before = {name: value.clone() for name, value in task.named_parameters()}
    fit(task, batches[:2], max_steps=2, precision="bf16-mixed")
    assert task.skipped_steps == 0
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in task.parameters())
    assert all(not p.equal(before[name]) for name, p in task.named_parameters())


def test_a_batch_counts_as_one_step_and_the_schedules_follow(make):
    task, batches = make("task.discriminator_lr=1e-4")
    trainer = fit(task, batches, max_steps=5)
    assert trainer.global_step == 5
    assert trainer.fit_loop.epoch_loop.total_batch_idx == 4
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([1e-3 * 0.999 ** (5 / 810), 1e-4 * 0.999 ** (5 / 810)])
    assert task.skipped_steps == 0


def test_a_step_does_not_depend_on_how_its_batch_was_cut_up(make):
    states = []
    for batches_of in (1, 2):
        task, batches = make("vocoder.crop_units=100000", "vocoder.dropout=0")
        rows = [_joined(batches[0], batches[1])] if batches_of == 1 else batches[:2]
        trainer = fit(task, rows, max_steps=1, accumulate_grad_batches=batches_of)
        assert trainer.global_step == 1
        states.append(task.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def _joined(first: Batch, second: Batch) -> Batch:
    def both(name: str) -> Padded:
        return Padded.from_list([*getattr(first, name).unpad(), *getattr(second, name).unpad()])

    return Batch(ids=first.ids + second.ids, units=both("units"), target_speech=both("target_speech"))


def test_each_network_is_clipped_by_its_own_norm(make):
    task, batches = make()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    fit(task, batches[:1], max_steps=1, gradient_clip_val=0.01)
    assert float(task._grad_norm) > 0.01
    assert float(task._norm_of_discriminator) > 0.01
    for role in ("vocoder", "discriminator"):
        moved = [(value - before[f"{role}.{name}"]).norm() for name, value in getattr(task, role).named_parameters()]
        assert float(torch.stack(moved).norm()) == pytest.approx(1e-3 * 0.01, rel=1e-2)


@pytest.mark.parametrize("half", ["vocoder", "discriminator", "both"])
def test_a_half_that_is_not_finite_is_left_out_and_counted_once(half: str, make, monkeypatch: pytest.MonkeyPatch):
    task, batches = make("max_skipped_steps=2")
    before = {name: value.clone() for name, value in task.named_parameters()}

    def spoil(name: str) -> None:
        original = getattr(task, name)

        def spoiled(made):
            result = original(made)
            losses = result[0] if isinstance(result, tuple) else result
            key = "discriminator" if name == "_judge" else "mel"
            losses[key] = type(losses[key])(losses[key].total * float("nan"), losses[key].count)
            return result

        monkeypatch.setattr(task, name, spoiled)

    if half in ("discriminator", "both"):
        spoil("_judge")
    if half in ("vocoder", "both"):
        spoil("_generate")
    with pytest.warns(UserWarning, match="step 2 is left out") as warned:
        trainer = fit(task, batches[:2], max_steps=2)
    assert trainer.global_step == 2
    assert task.skipped_steps == 2
    assert any(batches[1].ids[0] in str(one.message) for one in warned)
    for name, parameter in task.named_parameters():
        expected = half == "both" or name.startswith(half)
        assert torch.isfinite(parameter).all(), name
        if expected:
            assert parameter.equal(before[name]), name
    assert any(not p.equal(before[n]) for n, p in task.named_parameters()) == (half != "both")
    with pytest.raises(UserError, match=r"step 1: the gradient is not finite, nor was it in the 2 before"):
        fit(task, batches, max_steps=6)


def test_a_vocoder_without_samples_is_refused():
    sizes = {"num_units": 6, "dim": 8, "kernel_size": 3, "fft_size": 320, "window_length": 320, "num_mel_bins": 20}
    vocoder = GriffinLimVocoder(**sizes, num_layers=1)
    with pytest.raises(UserError, match="GriffinLimVocoder makes no samples that a discriminator could train"):
        GanVocoder(vocoder=vocoder, discriminator=HiFiGANDiscriminator(**TINY))
    with pytest.raises(NotImplementedError):
        vocoder.reconstruct(Padded(torch.zeros(1, 4).long(), torch.tensor([4])), speech(1280))


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (["trainer=fsdp2"], "voxzoo.tasks.distributed.strategies.FSDP2"),
        (["trainer.strategy=fsdp"], "fsdp"),
        (["trainer.strategy=deepspeed_stage_3"], "deepspeed_stage_3"),
        (["++trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}"], "FSDPStrategy"),
    ],
)
def test_strategies_that_cut_into_shards_are_refused_by_check(strategy: list[str], name: str):
    (fault,) = [str(one) for one in check(compose([*PARTS, *strategy]))]
    assert fault.startswith("trainer.strategy: ")
    assert f"{name} cannot train GanVocoder: two optimizers take turns" in fault
    assert "\n" not in fault


def test_strategies_that_keep_networks_whole_are_welcome():
    ddp = "++trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, gradient_as_bucket_view: true}"
    for words in ([], ["trainer=ddp"], ["trainer=gpu"], ["trainer=multinode"], [ddp], ["trainer.strategy=ddp_spawn"]):
        assert check(compose([*PARTS, *words])) == []


def test_a_trainer_made_in_python_is_refused_too(make):
    task, batches = make()
    with pytest.raises(UserError, match="FSDP2 cannot train GanVocoder"):
        fit(task, batches, max_steps=1, strategy=FSDP2(), devices=1)


def test_freezing_one_of_the_networks_is_refused():
    (fault,) = check(compose([*PARTS, "freeze.discriminator=true"]))
    assert str(fault).startswith("freeze.discriminator: GanVocoder trains both")


def test_the_task_brings_its_optimizer_and_what_is_said_wins():
    config = compose(["task=gan_vocoder"])
    assert (config.optim.lr, list(config.optim.betas)) == (2e-4, [0.8, 0.99])
    assert config.schedule._target_.endswith(".exponential")
    assert "HiFiGAN" in config.discriminator._target_
    config = compose(["task=gan_vocoder", "optim=adamw", "schedule=constant", "discriminator=tiny"])
    assert config.optim.lr == 1e-3
    assert config.discriminator.num_scales == 2
    stage = ["experiment=quickstart", "vocoder=istft", "stages.vocoder.choose.task=gan_vocoder"]
    config = compose(stage, stage="vocoder")
    assert config.task._target_ == "voxzoo.tasks.GanVocoder"
    assert [str(fault) for fault in check(config)] == []


@pytest.mark.parametrize("vocoder", VOCODERS)
def test_a_checkpoint_holds_both_and_another_task_takes_the_vocoder_alone(vocoder: str, make, tmp_path: Path):
    task, batches = make(vocoder)
    fit(task, batches, max_steps=2).save_checkpoint(tmp_path / "last.ckpt")
    again = load_run(tmp_path / "last.ckpt").task
    assert isinstance(again, GanVocoder)
    assert all(value.equal(task.state_dict()[name]) for name, value in again.state_dict().items())
    assert any(name.startswith("discriminator.") for name in again.state_dict())
    other = UnitVocoderTask(vocoder=make(vocoder)[0].vocoder)
    (line,) = load_parts(other, {"vocoder": str(tmp_path / "last.ckpt")}, tmp_path)
    assert line.startswith(f"vocoder: {len(task.vocoder.state_dict())} tensors")
    assert all(value.equal(task.vocoder.state_dict()[name]) for name, value in other.vocoder.state_dict().items())
    audio = again.predict(batches[0], task="u2s")[0].audio
    assert audio is not None
    assert torch.isfinite(audio).all()


def test_a_discriminator_tells_noise_from_tones_and_the_vocoder_answers():
    torch.manual_seed(0)
    sizes = {"fft_size": 320, "window_length": 320, "num_mel_bins": 20, "kernel_size": 3, "duration_dim": 8}
    vocoder = ISTFTVocoder(4, dim=16, hidden_dim=24, num_layers=2, **sizes)
    task = GanVocoder(vocoder=vocoder, discriminator=HiFiGANDiscriminator(**TINY))
    units = torch.randint(4, (4, 12))
    phase = torch.cumsum((units.repeat_interleave(320, 1) + 1) * 0.06, 1)
    lengths = torch.full((4,), 12)
    batch = Batch(
        ids=("a", "b", "c", "d"), units=Padded(units, lengths), target_speech=Padded(phase.sin() * 0.3, lengths * 320)
    )
    optimizer = torch.optim.AdamW(task.discriminator.parameters(), 1e-2, (0.8, 0.99))
    for _ in range(40):
        optimizer.zero_grad()
        task.measure(batch)[0]["discriminator"].mean.backward()
        optimizer.step()
    with torch.no_grad():
        statistics = task.measure(batch)[1]
    assert float(statistics["score_real"].mean) - float(statistics["score_made"].mean) > 0.5
    optimizer = torch.optim.AdamW(task.vocoder.parameters(), 2e-3, (0.8, 0.99))
    first = float(task.measure(batch)[0]["feature_matching"].mean.detach())
    for _ in range(30):
        optimizer.zero_grad()
        losses, _ = task.measure(batch)
        (losses["adversarial"].mean + 2 * losses["feature_matching"].mean).backward()
        optimizer.step()
    assert float(losses["feature_matching"].mean.detach()) < 0.8 * first


# Runs

RUN = [
    "trainer.val_check_interval=4", "data.batch_size=5", "checkpoint.every_steps=1", "schedule=constant",
    "vocoder.crop_units=100000", "vocoder.dropout=0", "optim.lr=0.002", "optim.eps=1e-3", "trainer.log_every_n_steps=1",
    "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}",
    "++logger.flush_logs_every_n_steps=1",
]  # fmt: skip
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]
HOW = {"one": ["trainer.accumulate_grad_batches=2"], "ddp": ["trainer=ddp", "trainer.devices=2", *CPU]}


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def runs(voxzoo, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the same global batches, on one process and on two."""
    folder = tmp_path_factory.mktemp("runs")
    for name, how in HOW.items():
        call = [*how, *words, *RUN, f"root={folder}", f"name={name}", "trainer.max_steps=6"]
        done = voxzoo("train", *call, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 6
    return folder


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(runs: Path):
    for name in ("train/grad_norm", "train/grad_norm_discriminator", "train/mel", "train/discriminator"):
        ours = logged(runs / "one", name)
        assert len(ours) == 6
        assert logged(runs / "ddp", name) == pytest.approx(ours, rel=1e-5), name
    assert_close(last(runs / "one")["state_dict"], last(runs / "ddp")["state_dict"])


@pytest.mark.slow
def test_steps_of_a_run_are_those_of_the_trainer(runs: Path):
    """`max_steps`, saves and the logger count steps, though two optimizers step."""
    content = last(runs / "one")
    assert content["global_step"] == 6
    assert len(content["optimizer_states"]) == len(content["lr_schedulers"]) == 2
    assert all(int(next(iter(one["state"].values()))["step"]) == 6 for one in content["optimizer_states"])
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["ready"] == 12
    best = json.loads((runs / "one" / "checkpoints" / "best.json").read_text())
    assert set(best) <= {"step00000002.ckpt", "step00000004.ckpt", "step00000006.ckpt"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(words: list[str], voxzoo, tmp_path: Path):
    settings = ["trainer.max_steps=18", "checkpoint.every_steps=2", "trainer.val_check_interval=5", "data.batch_size=5"]
    settings += [
        "schedule=cosine",
        "optim.lr=0.002",
        "trainer.accumulate_grad_batches=2",
        "trainer.log_every_n_steps=5",
    ]
    words = [*words, *settings, *stopper.WORDS, f"root={tmp_path}"]
    assert voxzoo("train", *words, "name=whole", cwd=tmp_path, env=stopper.environment()).returncode == 0
    for step, number, code, saved in ((3, signal.SIGTERM, 75, 4), (9, signal.SIGKILL, -signal.SIGKILL, 8)):
        told = stopper.environment(step, number)
        stopped = voxzoo("train", *words, "name=run", cwd=tmp_path, env=told)
        assert stopped.returncode == code, stopped.stderr
        assert last(tmp_path / "run")["global_step"] == saved
    done = voxzoo("train", *words, "name=run", cwd=tmp_path, env=stopper.environment())
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    whole, ours = last(tmp_path / "whole"), last(tmp_path / "run")
    assert whole["global_step"] == ours["global_step"] == 18
    for name, value in whole["state_dict"].items():
        assert value.equal(ours["state_dict"][name]), name
    for first, second in zip(whole["optimizer_states"], ours["optimizer_states"], strict=True):
        for number, state in first["state"].items():
            assert all(value.equal(second["state"][number][key]) for key, value in state.items())
    assert [one["last_epoch"] for one in whole["lr_schedulers"]] == [18, 18]
    assert whole["lr_schedulers"] == ours["lr_schedulers"]


@pytest.mark.slow
def test_the_quickstart_with_a_gan_vocoder(tiny: list[str], voxzoo, tmp_path: Path):
    words = ["experiment=quickstart", *tiny, "unit_extractor=tiny", "t2u=tiny", "vocoder=tiny_istft", "adaptor=stack"]
    words += ["discriminator=tiny", "stages.vocoder.choose.task=gan_vocoder", f"root={tmp_path}", "name=run"]
    words += ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=4", "logger=none"]
    done = voxzoo("train", *words, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    stages = tmp_path / "run" / "stages"
    first, second = last(stages / "vocoder"), last(stages / "second_pass")
    assert first["voxzoo"]["config"]["task"]["_target_"] == "voxzoo.tasks.GanVocoder"
    assert any(name.startswith("discriminator.") for name in first["state_dict"])
    assert not any(name.startswith("discriminator.") for name in second["state_dict"])
    taken = {name: value for name, value in second["state_dict"].items() if name.startswith("vocoder.")}
    assert taken
    best = load_run(stages / "vocoder").task.state_dict()
    assert all(value.equal(best[name]) for name, value in taken.items())
