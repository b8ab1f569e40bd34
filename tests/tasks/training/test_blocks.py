"""Precision, activation checkpointing, compiled blocks and weights that arrive shard by shard."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import logged
from torch._dynamo.utils import counters
from voxzoo.components.errors import UserError
from voxzoo.components.layers.blocks import blocks, set_up_blocks
from voxzoo.components.layers.convolution import MaskedBatchNorm
from voxzoo.components.types import Batch, Loss, Padded
from voxzoo.components.unit_extractor import KMeansUnits
from voxzoo.configs import compose
from voxzoo.tasks.checkpoints.mapped import materialise
from voxzoo.tasks.distributed.precision import BFloat16
from voxzoo.tasks.task import Task
from voxzoo.tasks.training.train import build_for_training, prepare_data

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


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def dtypes(tensors) -> Counter:
    return Counter(value.dtype for value in tensors if value.is_floating_point())


def gone_on(voxzoo, first: list[str], then: list[str], folder: Path) -> Path:
    """Run four steps as `first` (folder `straight`), and the last two of them again as `then` (the one returned)."""
    words = [*SETTINGS, "trainer.val_check_interval=2", "trainer.max_steps=4", "checkpoint.keep_best=2"]
    words += [f"root={folder}", "name=half"]
    done = voxzoo("train", *first, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    stopped = folder / "half"
    stopped.rename(folder / "straight")
    (stopped / "checkpoints").mkdir(parents=True)  # as it was when step 2 was saved
    for name in ("config.yaml", "tokenizer.model"):
        shutil.copy(folder / "straight" / name, stopped / name)
    shutil.copy(folder / "straight/checkpoints/step00000002.ckpt", stopped / "checkpoints/last.ckpt")
    done = voxzoo("train", *then, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    return stopped


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
    precise = ["trainer.precision=bf16-true"]
    stopped = gone_on(voxzoo, [*tiny, *precise], [*tiny, *precise], folder)
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
    done = voxzoo("translate", stopped, audio, "--task", "s2tt", "--to", "eng", "--out", folder / "out", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_float16_weights_are_refused_in_one_line(voxzoo, tiny: list[str], tmp_path: Path):
    done = voxzoo("train", *tiny, f"root={tmp_path}", "trainer.precision=16-true", cwd=tmp_path)
    assert done.returncode != 0
    assert "trainer.precision: 16-true" in done.stderr.splitlines()[-1]
    assert "bf16-true" in done.stderr.splitlines()[-1]


# Blocks

STACKS = {
    "conformer": ["speech_encoder.dropout=0.2", "speech_encoder.layer_drop=0.5", "text_seq2seq.dropout=0.2"],
    "batch_norm": ["speech_encoder.conv_norm=batch", "speech_encoder.position=relative", "adaptor=conformer"],
    "wav2vec2": ["speech_encoder=tiny_raw", "frontend=raw", "adaptor=stack"],
    "whisper": ["speech_encoder=whisper_tiny", "speech_encoder.dim=16", "speech_encoder.num_heads=2",
                "speech_encoder.num_layers=2", "speech_encoder.ffn_dim=32", "frontend=whisper"],
    "unity2": ["t2u=tiny_unity2"],
}  # fmt: skip


@pytest.fixture
def trained(tiny: list[str], tmp_path: Path):
    """A function: overrides -> a task in training, and a batch with units."""

    def make(words: list[str]) -> tuple[Task, Batch]:
        common = ["task=speech_to_speech_unity", "t2u=tiny", "vocoder=tiny", "unit_extractor=tiny", "data.batch_size=3"]
        config = compose([*tiny, *common, f"root={tmp_path}", *words])
        data = prepare_data(config)
        torch.manual_seed(0)
        task = build_for_training(config, Path(config.run_dir))
        data.needs = task.needs - {"units"}
        data.setup("fit")
        (batch, *_) = data.train_dataloader()
        units = torch.randint(int(config.vocoder.num_units), (3, 90))
        return task.train(), replace(batch, units=Padded(units, torch.tensor([90, 60, 80])))

    return make


def step(task: Task, batch: Batch, seed: int = 3) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and buffers after a backward pass, and how many bytes were kept for it."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    task.zero_grad()
    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.weighted(task.losses(batch))
    weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
    loss.backward()
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    found |= {name: value.clone() for name, value in task.named_buffers()}
    return {**found, "loss": loss.detach()}, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_layers_computed_again_give_the_same_gradients(stack: str, trained):
    """To the bit: dropout, LayerDrop and running statistics included."""
    task, batch = trained(STACKS[stack])
    start = copy.deepcopy(task.state_dict())
    found, memory = step(task, batch)
    again, batch = trained([*STACKS[stack], "activation_checkpointing=true"])
    assert again.state_dict().keys() == start.keys()
    again.load_state_dict(start)
    same, less = step(again, batch)
    assert found.keys() == same.keys()
    for name, value in found.items():
        assert torch.equal(value, same[name]), name
    assert less < 0.9 * memory
    with torch.no_grad():  # nothing of it without gradients
        torch.manual_seed(3)
        expected = task.load_state_dict(start) and task.eval().losses(batch)
        again.load_state_dict(start)
        torch.manual_seed(3)
        for name, loss in again.eval().losses(batch).items():
            assert torch.equal(loss.total, expected[name].total)


def test_layers_are_computed_again_where_asked(trained):
    calls = Counter()
    task, batch = trained(["activation_checkpointing={adaptor: false, speech_encoder: true}"])
    for role in ("speech_encoder", "text_seq2seq", "t2u"):
        for block in blocks(task.parts()[role]):
            (inner := block.get_submodule(next(name for name, _ in block.named_children()))).register_forward_hook(
                lambda *_, role=role: calls.update([role])
            )
            assert inner is not block
    step(task, batch)
    layers = {role: len(list(blocks(task.parts()[role]))) for role in calls}
    assert calls["speech_encoder"] == 2 * layers["speech_encoder"]
    assert 0 < calls["text_seq2seq"] <= layers["text_seq2seq"]  # its encoder has nothing to read
    with pytest.raises(UserError, match=r"activation_checkpointing.speech_encodr: .* speech_encoder"):
        set_up_blocks(task.parts(), {"activation_checkpointing": {"speech_encodr": True}})
    with pytest.raises(UserError, match=r"activation_checkpointing.vocoder: .* no stack"):
        set_up_blocks(task.parts(), {"activation_checkpointing": {"vocoder": True}})


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["conformer"])
def test_compiled_layers_give_the_same_gradients_at_any_length(stack: str, trained):
    """Without dropout, whose numbers torch.compile may draw elsewhere; layers that are alike share one graph."""
    quiet = [
        "text_seq2seq.dropout=0",
        "text_seq2seq.attention_dropout=0",
        "adaptor.dropout=0",
        "speech_encoder.dropout=0",
    ]
    quiet += ["t2u.dropout=0", "text_seq2seq.num_decoder_layers=3"]
    words = [*STACKS[stack], *quiet]
    task, batch = trained(words)
    fast, _ = trained([*words, "compile=aot_eager"])
    assert fast.state_dict().keys() == task.state_dict().keys()
    fast.load_state_dict(task.state_dict())
    torch._dynamo.reset()
    counters.clear()
    compiled = 0
    for number, cut in enumerate((0, 3, 11, 5, 8)):
        assert batch.speech is not None
        steps = batch.speech.data.shape[1] - cut
        speech = Padded(batch.speech.data[:, :steps], batch.speech.lengths.clamp(max=steps))
        units = Padded(batch.units.data[:, : 90 - cut], batch.units.lengths.clamp(max=90 - cut))
        shorter = replace(batch, speech=speech, units=units)
        found, same = step(task, shorter)[0], step(fast, shorter)[0]
        for name, value in found.items():
            torch.testing.assert_close(same[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        if number == 1:
            compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    assert counters["stats"]["unique_graphs"] == compiled, "no length is compiled for itself"


@pytest.mark.slow
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_run_goes_on_compiled_or_not(compiled_first: bool, voxzoo, tiny: list[str], tmp_path: Path):
    plain, other = tiny, [*tiny, "compile=eager", "activation_checkpointing=true"]  # eager: traced, nothing else
    stopped = gone_on(voxzoo, *((other, plain) if compiled_first else (plain, other)), tmp_path)
    whole, resumed = last(tmp_path / "straight")["state_dict"], last(stopped)["state_dict"]
    assert whole.keys() == resumed.keys()
    assert not any("_orig_mod" in name or "_checkpoint" in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


def test_a_backend_that_is_none_is_refused(trained):
    with pytest.raises(UserError, match=r"compile: 'fast' is not .*inductor"):
        trained(["compile=fast"])


# Published weights, shard by shard


@pytest.mark.slow
def test_processes_take_their_shards_of_published_weights_alone(tiny: list[str], tmp_path: Path):
    """No process has all of the model in memory of its own, and together they have what one process has."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2BertConfig(
        feature_projection_input_dim=80, hidden_size=256, num_hidden_layers=12, num_attention_heads=4,
        intermediate_size=1024, conv_depthwise_kernel_size=5,
    )  # fmt: skip
    transformers.Wav2Vec2BertModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"num_mel_bins": 20, "stride": 4}')
    script = Path(__file__).parents[3] / "benchmarks" / "sharded_loading.py"
    parts = ["adaptor=tiny", "text_seq2seq=tiny", "tokenizer=tiny", *tiny[-2:], f"root={tmp_path}"]
    found = []
    for processes in (1, 2):
        command = [sys.executable, script, tmp_path / "model", "--processes", str(processes), "--", *parts]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    ((one,), two) = found
    assert one["weights"] > 60e6
    assert {process["digest"] for process in two} == {one["digest"]}
    for process in two:  # measured: 0.51 of it, for a model of 583 MB
        assert process["anonymous"] < 0.8 * one["weights"]


def test_a_run_that_goes_on_in_shards_builds_no_weights(tiny: list[str], tmp_path: Path):
    """Its parts are on the meta device until each process has cut its share of them, which the checkpoint fills."""
    config = compose([*tiny, f"root={tmp_path}", "trainer=fsdp2", "init.speech_encoder=gone"])
    prepare_data(config)
    last = Path(config.run_dir) / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    task = build_for_training(config, Path(config.run_dir))
    assert all(parameter.is_meta for parameter in task.parameters())
    drawn = build_for_training(config, Path(config.run_dir), empty=False)  # for a trainer of someone's own
    assert not any(parameter.is_meta for parameter in drawn.parameters())
    materialise(task, torch.device("cpu"))
    assert not any(tensor.is_meta for tensor in task.state_dict().values())
