"""What `voxzoo check --memory` plans: exact where it can be, near the truth elsewhere, and advice that was computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from voxzoo.components.errors import UserError
from voxzoo.components.layers import relative_attention
from voxzoo.components.layers.transformer import FeedForward
from voxzoo.components.types import Batch, Loss
from voxzoo.configs import check
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.distributed.gradients import parameter_groups
from voxzoo.tasks.planning.figures import GB
from voxzoo.tasks.planning.ledger import Ledger
from voxzoo.tasks.planning.plan import plan_run
from voxzoo.tasks.planning.rehearsal import Rehearsal
from voxzoo.tasks.planning.setting import Setting
from voxzoo.tasks.planning.simulation import Footprint, make_fake, simulate, simulate_optimizer

GPU = ["trainer=gpu", "trainer.precision=32-true"]


@pytest.fixture
def rehearse(tiny: list[str]) -> Callable[..., Rehearsal]:
    return lambda *overrides: Rehearsal(compose([*tiny, *overrides]))


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("target", ["AdamW", "SGD", "Adagrad"])
def test_static_bytes_are_those_of_a_real_step(rehearse, target: str):
    settings = [f"optim._target_=torch.optim.{target}", "freeze.adaptor=true"]
    if target != "AdamW":
        settings.append("~optim.betas")
    rehearsal = rehearse(*settings)
    with torch.device("cpu"):
        task = build(rehearsal.config.task, tokenizer=rehearsal.tokenizer)
    task.freeze_parts(["adaptor"])
    optimizer = build(rehearsal.config.optim)(parameter_groups(task))
    learn = [p for p in task.parameters() if p.requires_grad]
    for parameter in learn:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moment = rehearsal.plan().moments["backward pass"].parts
    assert moment["parameters"] == _bytes(task.parameters())
    assert moment["gradients"] == _bytes(p.grad for p in learn)
    states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    assert moment["optimizer states"] == _bytes(states)
    assert rehearsal.plan().frozen["adaptor"] == sum(p.numel() for p in task.adaptor.parameters())


@pytest.mark.parametrize("devices", [2, 8])
def test_fsdp2_shares(rehearse, devices: int):
    whole = rehearse(*GPU).plan().moments["backward pass"].parts
    rehearsal = rehearse("trainer=fsdp2", f"trainer.devices={devices}", "trainer.precision=32-true")
    shared = rehearsal.plan().moments["backward pass"].parts
    for kind in ("parameters", "gradients", "optimizer states"):
        exact = sum(  # rows of a parameter are dealt out; the last device may get fewer
            -(-p.shape[0] // devices) * p.nbytes // p.shape[0] if p.dim() else p.nbytes
            for p in rehearsal.task.parameters()
            if kind == "parameters" or p.requires_grad
        )
        assert shared[kind] == pytest.approx(
            exact * (whole[kind] / whole["gradients"] if "states" in kind else 1), 0.01
        )
        assert whole[kind] / devices <= shared[kind] * 1.001 < whole[kind]
    # The rest unit is whole, of the layers no more than a few.
    largest = max(_bytes(layer.parameters()) for layer in rehearsal.task.speech_encoder.layers)
    assert largest < shared["gathered weights"] < 2 * whole["parameters"]


def test_ddp_has_its_buckets_and_its_devices(rehearse):
    ddp = ["trainer=ddp", "trainer.devices=4"]
    plan = rehearse(*ddp).plan()
    assert (plan.strategy, plan.devices, plan.device) == ("ddp", 4, "cuda")
    assert plan.flops == 4 * rehearse("trainer=gpu").plan().flops
    assert "gradient buckets" not in plan.moments["backward pass"].parts
    for change in ("trainer.strategy.gradient_as_bucket_view=false", "trainer.strategy=ddp"):
        parts = rehearse(*ddp, change).plan().moments["backward pass"].parts
        assert parts["gradient buckets"] == parts["gradients"]


def test_memory_grows_with_the_batch_and_shrinks_with_precision(rehearse):
    settings = ["trainer=gpu", "task.ctc_weight=0"]  # CTC is in float32 always
    full, half = (rehearse(*settings, f"trainer.precision={name}") for name in ("32-true", "bf16-true"))
    needs = [full.need([full.longest] * count) for count in (1, 2, 4, 8, 16)]
    assert needs == sorted(set(needs))
    assert half.need([half.longest] * 8) < needs[3]
    parts = [r.plan().moments["backward pass"].parts for r in (full, half)]
    for kind in ("parameters", "gradients"):
        assert parts[1][kind] * 2 == parts[0][kind]
    mixed = rehearse("trainer=gpu").plan()
    assert 0 < mixed.casts < mixed.moments["backward pass"].parts["activations"]


def test_what_is_below_the_first_trainable_part_keeps_nothing(rehearse):
    free, frozen = rehearse(), rehearse("freeze.speech_encoder=true", "task.ctc_weight=0")
    rows = [free.longest] * 4
    assert frozen.footprint(rows)[0].forward < 0.7 * free.footprint(rows)[0].forward
    assert frozen.footprint(rows)[0].flops < free.footprint(rows)[0].flops
    again = rehearse("activation_checkpointing=true")
    assert again.footprint(rows)[0].activations < free.footprint(rows)[0].activations
    assert again.footprint(rows)[0].flops > free.footprint(rows)[0].flops


class _Net(nn.Module):
    """Something whose footprint can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = FeedForward(64, 256)
        self.inner = nn.Linear(64, 64)

    def measure(self, batch: Batch):
        x = torch.relu(self.inner(batch.speech.data))  # pyright: ignore
        return {"x": Loss(x.sum(), x.new_ones(()))}, {}

    def weighted(self, losses):
        return losses["x"].total


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_footprint_worked_out_by_hand(kind, rehearse):
    with torch.device("meta"):
        net = _Net()
    net.ffn.requires_grad_(False)
    fake = make_fake(net)
    rehearsal = rehearse()
    rehearsal.fake = fake
    batch = rehearsal.batch([rehearsal.longest] * 2)
    rows = batch.speech.data.shape[0] * batch.speech.data.shape[1]
    net.inner.weight = nn.Parameter(rehearsal.fake.from_tensor(torch.empty(64, batch.speech.data.shape[2])))
    found = simulate(net, fake, batch, kind)
    learn = _bytes(p for p in net.parameters() if p.requires_grad)
    kept = rows * 64 * 4
    assert found.forward == pytest.approx(kept, abs=4096)  # relu's output; the product before it is gone
    assert found.peak == pytest.approx(2 * kept + learn, abs=8192)  # the product and relu's output, old gradients
    width = batch.speech.data.shape[2]
    assert found.flops == 2 * (2 * rows * 64 * width)  # forward, and the gradient of the weight alone


def test_a_ledger_counts_what_is_alive():
    fake = make_fake(nn.Module())
    ledger = Ledger(fake, "cpu")
    with fake:
        x = torch.empty(1000, 64)
    with ledger:
        y = x * 2
        z = y.view(-1) + 1
        del y
        assert ledger.live == z.nbytes
        view = z[:10]
        del z
        assert ledger.live == 256000
        del view
    assert ledger.live == 0
    assert ledger.most == 2 * 256000


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_blocks_that_are_alike_are_counted_not_run(rehearse, monkeypatch: pytest.MonkeyPatch, dropout: float):
    """Attention on a CPU goes block by block; two thousand of them take minutes on fake tensors."""
    monkeypatch.setattr(relative_attention, "_SCORES", 1000)
    real, ran = relative_attention._Block.weights, []
    monkeypatch.setattr(relative_attention._Block, "weights", lambda *args: ran.append(args[0]) or real(*args))

    def footprint() -> Footprint:
        words = ["speech_encoder.position=relative_key", f"speech_encoder.attention_dropout={dropout}"]
        rehearsal = rehearse(*words)
        short = rehearsal._sizes(0.7 * rehearsal.longest.seconds, 1.0)
        return rehearsal.footprint([*[rehearsal.longest] * 2, short])[0]

    counted, few = footprint(), len(ran)
    ran.clear()
    monkeypatch.setattr(relative_attention, "each", lambda blocks, kind: blocks)
    assert counted == footprint()
    assert few < 0.5 * len(ran)


def test_adamw_on_a_gpu_takes_a_copy_for_its_step():
    with torch.device("meta"):
        net = nn.Linear(512, 512)
    many = simulate_optimizer(lambda groups: torch.optim.AdamW(groups), net, "cuda")
    few = simulate_optimizer(lambda groups: torch.optim.AdamW(groups, foreach=False), net, "cuda")
    size = _bytes(net.parameters())
    assert many.step == pytest.approx(size, rel=0.05)
    assert few.step < 2.1 * _bytes([net.weight])
    assert 2 * size <= few.states < 2.01 * size


def test_the_estimate_is_near_the_truth(rehearse):
    """Bytes that autograd really keeps, counted over its saved tensors."""
    rehearsal = rehearse("speech_encoder.dropout=0.0")
    rows = [rehearsal.longest] * 8
    with torch.device("cpu"):
        task = build(rehearsal.config.task, tokenizer=rehearsal.tokenizer)
    task.train()
    batch = rehearsal.batch(rows)
    speech = batch.speech
    assert speech is not None
    real = Batch(
        ids=batch.ids,
        task=batch.task,
        speech=speech.with_data(torch.randn(tuple(speech.data.shape))),
        transcript=batch.transcript,
        target=batch.target,
        seconds=batch.seconds,
    )
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = task.losses(real)
    total = sum(kept.values())
    assert losses
    # The loss keeps its gradients outside of the saved tensors; the batch counts there and not here.
    assert 0.85 < rehearsal.footprint(rows)[0].forward / total < 1.15


def test_batches_and_epoch_are_those_of_the_manifest(tiny: list[str], tmp_path: Path):
    folder = [*tiny, f"cache_dir={tmp_path}"]
    before = Rehearsal(compose(folder)).data
    assert before.utterances is None
    assert "not made yet" in before.note
    assert not list(tmp_path.iterdir())  # looking makes nothing
    config = compose(tiny)
    build(config.data, tokenizer=None).prepare_data()
    plan = Rehearsal(config).plan()
    assert plan.data.utterances == 40
    assert plan.data.steps == 5  # 8 in a batch
    assert plan.data.guessed_tokens
    assert plan.batch["utterances"] <= 8
    two = Rehearsal(compose([*tiny, "trainer.devices=2", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=2"]))
    assert two.data.steps == 1  # 6 batches over 2 processes, two a step


def test_a_budget_below_every_utterance_is_said_and_no_batch_is_more_than_the_corpus(tiny: list[str], capsys):
    words = [*tiny, "data.batch_size=null", "data.batch_seconds=0.1"]
    build(compose(words).data, tokenizer=None).prepare_data()
    plan = plan_run(compose(words), 64)
    assert plan is not None
    assert plan.data.oversized == 40
    assert plan.budget is not None
    assert plan.budget["utterances"] == 40
    assert plan.budget["value"] == int(40 * plan.longest + 1e-6)
    assert main(["check", *words, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "40 utterances exceed the budget of a batch alone: each is a batch of its own" in shown
    assumed = Rehearsal(compose([*tiny, "data=manifest", "data.batch_seconds=1"]))
    assert "each of which exceeds the budget of a batch alone" in assumed.data.note


def test_no_manifest_no_file_and_no_speech(tiny: list[str]):
    none = Rehearsal(compose([*tiny, "data=manifest", "data.max_seconds=20", "data.batch_seconds=100"]))
    assert "no manifest is given" in none.data.note
    assert [len(rows) for rows in none.batches] == [5]
    gone = Rehearsal(compose([*tiny, "data=manifest", "data.train=/none.jsonl", "data.valid=/none.jsonl"]))
    assert "cannot be read" in gone.data.note
    text = Rehearsal(compose([*tiny, "task=text_to_text", "data=manifest", "data.tasks={s2tt: false, t2tt: true}"]))
    assert text.plan().peak > 0


def test_no_clip_is_longer_than_the_front_end_takes(tiny: list[str], tmp_path: Path):
    short = [*tiny, "frontend=whisper", "frontend.pad_seconds=2"]
    assumed = Rehearsal(compose([*short, "data=manifest", "data.max_seconds=35"]))
    assert assumed.longest.seconds == 2
    assert assumed.plan().peak > 0
    config = compose([*short, "data.speed_perturb=[0.9]"])
    build(config.data, tokenizer=None).prepare_data()
    read = Rehearsal(config)
    assert 0 < (read.data.utterances or 0) < 40  # those that are longer are not trained on
    assert read.longest.seconds <= 2


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["trainer=ddp", "trainer.devices='0,3'"], 2),
        (["trainer=ddp", "trainer.devices=[1,2,5]"], 3),
        (["trainer=ddp", "trainer.devices='4'", "trainer.num_nodes=2"], 8),
        (["trainer.devices=auto"], 1),
    ],
)
def test_devices_are_counted_as_lightning_does(words: list[str], devices: int):
    assert Setting(compose(words)).devices == devices


def test_devices_that_are_none_are_refused():
    for value in ("0", "-1", "abc"):
        with pytest.raises(UserError, match=f"trainer.devices: '?{value}'?: expected a number of processes"):
            Setting(compose([f"trainer.devices={value}"]))


def test_short_names_of_precisions_are_lightnings():
    setting = Setting(compose(["trainer=gpu", "trainer.precision=bf16"]))
    assert (setting.precision, setting.autocast, setting.dtype) == ("bf16-mixed", torch.bfloat16, None)


def test_nothing_is_proposed_that_the_task_refuses(tiny: list[str]):
    words = ["task=gan_vocoder", "unit_extractor=tiny", "vocoder=tiny_istft", "discriminator=tiny", "data=manifest"]
    for precision in ("bf16-true", "16-true"):
        faults = check(compose([*tiny, *words, "trainer=gpu", f"trainer.precision={precision}"]))
        assert "rounds the networks; take bf16-mixed" in " ".join(map(str, faults))
    config = compose([*tiny, *words, *GPU, "data.batch_seconds=200"])
    whole = plan_run(config)
    assert whole is not None
    plan = plan_run(config, (0.6 * GB + 0.7 * (whole.peak - 0.6 * GB)) / GB)
    assert plan is not None
    assert plan.fits is False
    assert plan.advice
    for one in plan.advice:
        assert not {"bf16-true", "fsdp2", "freeze"} & set(one["change"].replace("=", " ").replace(".", " ").split())
        assert check(compose([*tiny, *words, *GPU, "data.batch_seconds=200", *one["change"].split()])) == []


@pytest.mark.slow
def test_a_verdict_with_advice_that_holds(tiny: list[str]):
    config = compose([*tiny, *GPU, "data=manifest", "data.batch_seconds=200", "data.batch_size=64"])
    enough = plan_run(config, 1.5)
    assert enough is not None
    assert enough.fits
    assert not enough.advice
    assert enough.budget is not None
    assert enough.budget["value"] >= 200
    context = 0.6 * GB
    memory = (context + 0.55 * (enough.peak - context)) / GB
    tight = plan_run(config, memory)
    assert tight is not None
    assert tight.fits is False
    assert tight.budget is not None
    assert tight.budget["value"] < 200
    assert tight.advice
    for one in tight.advice:  # each holds when it is followed, planned anew
        words = one["change"].split()
        base = [*tiny, "data=manifest", "data.batch_seconds=200", "data.batch_size=64"]
        trainer = GPU if "trainer=fsdp2" not in words else GPU[1:]
        again = Rehearsal(compose([*base, *trainer, *words])).plan()
        assert again.peak <= 1.03 * memory * GB, one
    budget = tight.budget["utterances"]
    rehearsal = Rehearsal(config)
    assert rehearsal.need([rehearsal.longest] * budget) <= memory * GB
    assert rehearsal.need([rehearsal.longest] * (budget + 2)) > memory * GB


def test_too_little_for_one_utterance(tiny: list[str], capsys):
    assert main(["check", *tiny, *GPU, "data=manifest", "--memory", "0.601"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit 0.60 GB" in shown
    assert "not even one utterance of 35 s in a batch fits" in shown


def test_json_has_every_number(tiny: list[str], capfd):
    assert main(["check", *tiny, "trainer=fsdp2", "trainer.devices=8", "--memory", "80", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)["stages"]["run"]["plan"]
    assert plan["fits"] is True
    assert plan["peak"] == max(sum(parts.values()) for parts in plan["moments"].values())
    assert plan["memory"] == 80 * GB
    assert plan["flops"] > 0
    assert plan["budget"]["key"] == "data.batch_size"
    assert main(["check", *tiny, "--json"]) == 0
    assert "plan" not in json.loads(capfd.readouterr().out)["stages"]["run"]


def test_without_memory_there_is_no_verdict(tiny: list[str], capsys):
    assert main(["check", *tiny, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "this machine has" in shown
    assert "fits" not in shown.replace("whether it fits", "")
    assert main(["check", *tiny, "task=fit_units", "unit_extractor=log_mel", "--plan"]) == 0
    assert "nothing to plan" in capsys.readouterr().out


def test_memory_must_be_some(tiny: list[str]):
    with pytest.raises(UserError, match="--memory 0: expected more than 0 GB"):
        plan_run(compose(tiny), 0)


@pytest.mark.slow
def test_the_estimate_is_near_a_measured_peak():
    """The quickstart's first stage on a CPU, in a process of its own."""
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "plan", "--stages", "first_pass"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| first pass | cpu, 32-true |" in done.stdout
