"""LoRA: nothing of it is bypassed, it trains the same on one process and on many, and it goes out merged."""

from __future__ import annotations

import copy
import json
import pickle
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import stopper
import torch
from conftest import PARTS, logged
from omegaconf import OmegaConf
from torch import Tensor, nn
from voxzoo.components import SentencePieceTokenizer, TransformerSeq2Seq
from voxzoo.components.converters import from_transformers, to_transformers
from voxzoo.components.converters.published import PublishedModel
from voxzoo.components.errors import UserError
from voxzoo.components.layers import linear
from voxzoo.components.layers.lora import LoRA, LoRALinear, adapt, adapted_layers, is_lora, merge, merged_state
from voxzoo.components.search import SearchOptions
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.components.types import Batch, Padded
from voxzoo.configs import build, compose
from voxzoo.configs.check import check
from voxzoo.tasks.planning.shapes import FakeTokenizer, fake_batch, trace
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.runs.initial import load_parts
from voxzoo.tasks.runs.lora import apply_lora
from voxzoo.tasks.runs.run import load_run
from voxzoo.tasks.task import Task
from ways import HOW, SETTINGS, assert_close, weights

EVERYTHING = LoRA(targets={"all": "*"}, rank=2, alpha=4)
UNITY = ["task=speech_to_speech_unity", "unit_extractor=tiny", "text_seq2seq.num_encoder_layers=0"]
AUTOREGRESSIVE = [
    "t2u=autoregressive", "t2u.dim=16", "t2u.ffn_dim=32", "t2u.num_encoder_layers=1", "t2u.num_decoder_layers=1",
    "t2u.max_length=16", "t2u.beam_size=2",
]  # fmt: skip
CASES = {
    "speech to text": [],
    "relative positions, untied output, batch norm": [
        "speech_encoder.position=relative", "speech_encoder.conv_norm=batch", "speech_encoder.dim=24",
        "adaptor=none", "text_seq2seq.tie_output=false",
    ],
    "keys without bias": ["text_seq2seq.key_bias=false", "speech_encoder.position=none", "adaptor=ctc_shrink"],
    "samples": ["frontend=raw", "speech_encoder=tiny_raw", "adaptor=stack"],
    "text to text": ["task=text_to_text", "text_seq2seq.key_bias=false", "text_seq2seq.tie_output=false"],
    "unity": [*UNITY, "t2u=tiny", "vocoder=tiny"],
    "unity, autoregressive": [*UNITY, *AUTOREGRESSIVE, "vocoder=tiny_istft"],
    "unity 2": [*UNITY, "t2u=tiny_unity2", "vocoder=tiny_hifi_gan"],
    "vocoder": ["task=unit_vocoder", "unit_extractor=tiny", "vocoder=tiny"],
    "iSTFT vocoder": ["task=unit_vocoder", "unit_extractor=tiny", "vocoder=tiny_istft"],
}  # fmt: skip


class Spelled(FakeTokenizer):
    """Ids as text."""

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))

    def piece_characters(self) -> Tensor:
        return torch.arange(self.vocab_size)[:, None] % 7 + 1


def make(words: list[str]) -> tuple[Task, Batch]:
    """A task with tiny parts, in evaluation mode, and a batch of random content."""
    config = compose([*PARTS, "data=tiny", *words])
    torch.manual_seed(0)
    given = {"tokenizer": Spelled(int(config.tokenizer.vocab_size), ["eng"])} if "tokenizer" in config.task else {}
    task = build(config.task, **given)
    for parameter in task.parameters():  # no matrix that is zero at first, behind which nothing could be seen
        parameter.data += 0.02 * torch.randn_like(parameter)
    batch = fake_batch(task, build(config.frontend))
    changed: dict[str, Any] = {"src_lang": ("eng",) * 2, "tgt_lang": ("eng",) * 2}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Padded):
            shape = value.data.shape
            # Units come in runs, as CTC needs them: fewer than frames once they are reduced.
            ids = torch.randint(4, 8, shape[:2])[:, torch.arange(shape[1]) // (25 if field.name == "units" else 1)]
            data = torch.randn(shape) if value.data.is_floating_point() else ids
            changed[field.name] = Padded(data, value.lengths).zeroed()
    return task.eval(), replace(batch, **changed)


def measured(task: Task, batch: Batch) -> Tensor:
    """All losses of a batch, with gradients; the task stays in the mode it is in."""
    torch.manual_seed(1)
    return torch.stack([loss.total.float() for loss in task.losses(batch).values()])


def served(task: Task, batch: Batch) -> Tensor:
    """All numbers that come out when a batch is served."""
    torch.manual_seed(1)
    found = task.predict(batch, options=SearchOptions(beam_size=2, max_length=6))
    texts = [torch.tensor([float(word) for word in row.text.split()]) for row in found if row.text]
    scores = [torch.tensor([row.score]) for row in found if row.score is not None]
    units = [torch.tensor(row.units).float() for row in found if row.units is not None]
    audio = [row.audio.float() for row in found if row.audio is not None]
    return torch.cat([*texts, *scores, *units, *audio])


def adapt_all(task: Task) -> dict[str, LoRALinear]:
    """Every linear layer of every part that learns and has one."""
    for role, part in task.parts().items():
        learn = any(isinstance(m, nn.Linear) and m.weight.requires_grad for m in part.modules())
        if learn and role != "unit_extractor":
            adapt(part, EVERYTHING, where=f"lora.{role}")
    return adapted_layers(task)


def shake(layers: dict[str, LoRALinear], scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(7)
    for layer in layers.values():
        layer.lora_b.data.copy_(scale * torch.randn(layer.lora_b.shape, generator=generator))


# Layers


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_layer_is_bypassed(name: str):
    """Nothing changes while B is zero; each block of each layer then changes a loss, and gets a gradient; what is
    served with LoRA, merged and packed, is the same."""
    task, batch = make(CASES[name])
    base = measured(task, batch)
    spoken = served(task, batch)
    linears = {n for n, m in task.named_modules() if isinstance(m, nn.Linear) and m.weight.requires_grad}
    layers = adapt_all(task)
    assert layers.keys() == {n for n in linears if not n.startswith(("ctc_head", "unit_extractor"))}
    assert torch.equal(measured(task, batch), base)
    assert torch.equal(served(task, batch), spoken)

    # In the vocoder of a second pass nothing is learned, and some layers learn without being served.
    learned = {n: layer for n, layer in layers.items() if name.endswith("vocoder") or not n.startswith("vocoder.")}
    for key, layer in learned.items():
        for rows in layer.lora_b.data.chunk(len(layer.adapted)):
            rows.normal_()  # not constant: a norm behind the layer would take that away
            assert not torch.equal(measured(task, batch), base), f"{key} is bypassed"
            rows.zero_()
    shake(layers)
    # A bypassed layer would be in the merged weights alone.
    adapted, words = measured(task, batch), served(task, batch)
    measured(task, batch).sum().backward()
    for key, layer in learned.items():
        for parameter in (layer.lora_a, layer.lora_b):
            assert parameter.grad is not None, key
            for block in parameter.grad.chunk(len(layer.adapted)):
                assert block.abs().max() > 0, f"{key} gets no gradient"
        assert layer.weight.grad is None, key
    plain = copy.deepcopy(task)
    assert merge(plain) == len(layers)
    assert not adapted_layers(plain)
    torch.testing.assert_close(measured(plain, batch), adapted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(served(plain, batch), words, rtol=1e-5, atol=1e-4)
    state = merged_state(task)
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in state.items())


def decoder(**changes: Any) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "dim": 24, "num_heads": 3, "ffn_dim": 40, "num_encoder_layers": 1,
             "num_decoder_layers": 2, "dropout": 0.0, "attention_dropout": 0.0, **changes}  # fmt: skip
    return TransformerSeq2Seq(**sizes).eval()


MEMORY = Padded(torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(3)), torch.tensor([7, 4]))
TOKENS = Padded(torch.arange(10).view(2, 5) + 5, torch.tensor([5, 5]))


@pytest.mark.parametrize("changes", [{}, {"key_bias": False, "tie_output": False}])
@torch.no_grad()
def test_cached_decoding_has_it_too(changes: dict[str, Any]):
    model = decoder(**changes)
    adapt(model, EVERYTHING)
    shake(adapted_layers(model))
    expected = model(MEMORY, TOKENS).data
    state = model.start(MEMORY, 1)
    steps = [model.project(model.step(column, state)) for column in TOKENS.data.unbind(1)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=2e-5, rtol=0)
    flat = model.decode(MEMORY, TOKENS).data @ model.output_weight.T
    torch.testing.assert_close(flat, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"key_bias": False, "tie_output": False}])
@torch.no_grad()
def test_packing_leaves_it_in(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Layers with LoRA are not packed, those beside them are, and merged ones are again."""
    monkeypatch.setattr(linear, "_pays", lambda weight: True)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    model = decoder(**changes)
    adapt(model, LoRA(targets={"some": "*self_attention.[qv]", "ffn": "*ffn.inner"}))
    before = model(MEMORY, TOKENS).data
    assert linear.pack_for_inference(model) > 0
    layers = adapted_layers(model)
    assert not any(isinstance(layer, linear.PackedLinear) for layer in layers.values())
    shake(layers)
    after = model(MEMORY, TOKENS).data
    assert not torch.allclose(after, before, atol=1e-3)
    linear.unpack(model)
    torch.testing.assert_close(model(MEMORY, TOKENS).data, after, atol=2e-5, rtol=0)
    merge(model)
    assert linear.pack_for_inference(model) >= len(layers)
    torch.testing.assert_close(model(MEMORY, TOKENS).data, after, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stabilized", [False, True])
def test_query_and_value_of_a_fused_projection(stabilized: bool):
    """y = x W^T + b + alpha / r (x A^T) B^T in the rows of the query and of the value, each with its own A and B."""
    model = decoder()
    before = model.decoder.layers[0].self_attention.qkv
    weight, bias = before.weight.detach().clone(), before.bias.detach().clone()
    settings = LoRA(targets={"qv": "decoder.*self_attention.[qv]"}, rank=3, alpha=6, rank_stabilized=stabilized)
    assert adapt(model, settings) == [f"decoder.layers.{n}.self_attention.qkv" for n in range(2)]
    layer = model.decoder.layers[0].self_attention.qkv
    assert (layer.lora_a.shape, layer.lora_b.shape) == ((6, 24), (48, 3))
    shake({"qkv": layer})
    x = torch.randn(5, 24)
    query, key, value = layer(x).chunk(3, dim=-1)
    a, b = layer.lora_a.chunk(2), layer.lora_b.chunk(2)
    plain = (x @ weight.T + bias).chunk(3, dim=-1)
    scale = 6 / 3**0.5 if stabilized else 2.0
    torch.testing.assert_close(query, plain[0] + scale * x @ a[0].T @ b[0].T)
    torch.testing.assert_close(key, plain[1])
    torch.testing.assert_close(value, plain[2] + scale * x @ a[1].T @ b[1].T)
    merged = layer.merged() - weight
    torch.testing.assert_close(merged[:24], scale * b[0] @ a[0])
    assert not merged[24:48].any()
    torch.testing.assert_close(merged[48:], scale * b[1] @ a[1])


def test_the_fused_name_is_all_its_rows():
    for pattern, count in (("decoder.layers.0.self_attention.qkv", 3), ("decoder.layers.0.memory_attention.kv", 2)):
        model = decoder(key_bias=False)
        (name,) = adapt(model, LoRA(targets={"a": pattern}))
        assert model.get_submodule(name).adapted == tuple(range(count)), name
        assert name == f"{pattern}.product"
    model = decoder()
    adapt(model, LoRA(targets={"a": "decoder.layers.0.memory_attention.q"}))
    assert list(adapted_layers(model)) == ["decoder.layers.0.memory_attention.q"]


def test_dropout_is_on_the_low_rank_way_alone():
    model = decoder()
    adapt(model, LoRA(targets={"a": "decoder.layers.0.ffn.inner"}, dropout=0.5))
    layer = model.decoder.layers[0].ffn.inner.train()
    x = torch.randn(4, 24)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    shake({"inner": layer})
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_draw_depends_on_seed_and_name_alone():
    def drawn(seed: int, **targets: str) -> dict[str, Tensor]:
        model = decoder()
        torch.manual_seed(len(targets))
        adapt(model, LoRA(targets=targets), seed=seed)
        return {key: value for key, value in model.state_dict().items() if is_lora(key)}

    some, more, other = drawn(1, q="*.q"), drawn(1, q="*.q", ffn="*ffn.*"), drawn(2, q="*.q")
    assert some.keys() < more.keys()
    for key, value in some.items():
        assert torch.equal(value, more[key]), key
        if key.endswith("lora_b"):
            assert not value.any()
        else:
            assert 0 < value.abs().max() <= 24**-0.5
            assert not torch.equal(value, other[key])
    first, second = (value for key, value in more.items() if key.endswith("ffn.inner.lora_a") and "decoder" in key)
    assert not torch.equal(first, second)


def test_copies_and_pickles_keep_it():
    model = decoder()
    adapt(model, EVERYTHING)
    shake(adapted_layers(model))
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(MEMORY, TOKENS).data, model(MEMORY, TOKENS).data)


@torch.no_grad()
def test_half_precision_is_merged_in_full():
    model = decoder().bfloat16()
    adapt(model, EVERYTHING)
    shake(adapted_layers(model), 1e-2)
    layer = model.decoder.layers[0].ffn.inner
    exact = layer.weight.float() + 2 * layer.lora_b.float() @ layer.lora_a.float()
    merge(model)
    assert torch.equal(layer.weight, exact.bfloat16())


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*ffn_norm", r"lora\.targets\.a=\*ffn_norm: decoder\.layers\.0\.ffn_norm is a LayerNorm"),
        ("decoder.embed.embedding", "is a Embedding, LoRA is for linear layers; here: "),
        ("decoder.layers.0.selfattention.q", r"did you mean 'decoder\.layers\.\*\.self_attention\.q'\?"),
        ("nothing", r"no layer of TransformerSeq2Seq has such a name Linear layers: |Linear layers: decoder"),
    ],
)
def test_patterns_that_name_no_linear_layer(pattern: str, words: str):
    with pytest.raises(UserError, match=words):
        adapt(decoder(), LoRA(targets={"a": pattern, "b": "*.q"}))


def test_what_cannot_be_adapted_is_refused():
    model = decoder()
    with pytest.raises(UserError, match="no pattern"):
        adapt(model, LoRA(targets={"a": None}))
    adapt(model, EVERYTHING)
    with pytest.raises(UserError, match="is a LoRALinear already"):
        adapt(model, EVERYTHING)
    with pytest.raises(UserError, match="the task does not train decoder"):
        adapt(decoder().requires_grad_(False), EVERYTHING)
    shared = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    shared[1].weight = shared[0].weight
    with pytest.raises(UserError, match="shares its weight"):
        adapt(shared, LoRA(targets={"a": "1"}))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoRA(targets={}, **wrong)  # pyright: ignore[reportArgumentType]


# Tasks and configs

QV = "lora.text_seq2seq.targets.qv='*attention.[qv]'"


def task_of(*words: str) -> Task:
    config = compose([*PARTS, "data=tiny", *words])
    torch.manual_seed(0)
    task = build(config.task, tokenizer=Spelled(int(config.tokenizer.vocab_size), ["eng"]))
    apply_lora(task, config)
    return task


def test_the_base_stands_still_and_the_rest_learns():
    task = task_of(QV, "lora.speech_encoder.targets.all='*'", "speech_encoder.conv_norm=batch")
    assert task.training
    task.train()
    norms = [m for m in task.speech_encoder.modules() if hasattr(m, "running_mean")]
    assert norms
    assert not any(norm.training for norm in norms), "running statistics stand still too"
    assert task.speech_encoder.layers[0].dropout.training, "dropout is that of training"
    for key, parameter in task.named_parameters():
        adapted = key.startswith(("speech_encoder.", "text_seq2seq."))
        assert parameter.requires_grad == (is_lora(key) or not adapted), key
    assert not any(key.startswith("text_seq2seq.encoder.") for key in adapted_layers(task)), "no loss reaches it"
    free = task_of(QV, "lora.text_seq2seq.freeze_base=false", "text_seq2seq.num_encoder_layers=0")
    assert all(p.requires_grad for p in free.parameters())


def test_check_counts_what_learns():
    plain = {row.part: row for row in trace(compose([*PARTS, "data=tiny"]))}
    rows = {row.part: row for row in trace(compose([*PARTS, "data=tiny", QV, "lora.text_seq2seq.rank=4"]))}
    assert rows["adaptor"] == plain["adaptor"]
    # Two decoder layers: query and value of 32 x 32, alone and towards the memory.
    assert rows["text_seq2seq"].trainable == 2 * 4 * 4 * (32 + 32)
    assert rows["text_seq2seq"].parameters == plain["text_seq2seq"].parameters + rows["text_seq2seq"].trainable
    assert rows["text_seq2seq"].output == plain["text_seq2seq"].output


def test_faults_of_a_config_are_named():
    words = ["lora.speech_encodr.rank=2", "lora.adaptor=3", "lora.text_seq2seq.rnak=4", "lora.text_seq2seq.rank=many"]
    faults = {fault.path: fault.message for fault in check(compose([*PARTS, "data=tiny", *words]))}
    assert faults["lora.speech_encodr"] == "there is no such role; did you mean 'speech_encoder'?"
    assert "not a map of settings" in faults["lora.adaptor"]
    assert "did you mean 'rank'?" in faults["lora.text_seq2seq.rnak"]
    assert "not a whole number" in faults["lora.text_seq2seq.rank"]
    assert "lora.text_seq2seq.targets" in faults
    assert not check(compose([*PARTS, "data=tiny", QV, "lora.text_seq2seq.rank=${seed}", "lora.adaptor=null"]))
    (fault,) = check(compose([*PARTS, "data=tiny", QV, "freeze.text_seq2seq=true", "freeze.adaptor=true"]))
    assert str(fault).startswith("freeze.text_seq2seq: lora.text_seq2seq freezes what is below it")
    with pytest.raises(UserError, match=r"lora\.vocoder: SpeechToText has no such part; it has: speech_encoder"):
        task_of("lora.vocoder.targets.a='*'")


# Runs

LORA = [
    "lora.speech_encoder.targets.all='*'", "lora.speech_encoder.rank=2", QV, "lora.text_seq2seq.rank=4",
    "lora.text_seq2seq.targets.ffn='decoder.layers.0.ffn.*'",
]  # fmt: skip


def lora_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if is_lora(key)}


@pytest.fixture(scope="module")
def runs(voxzoo, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the same global batches: on one process, and on two under DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("lora")
    for name, words in HOW.items():
        call = [*words, *tiny, *SETTINGS, *LORA, f"root={folder}", f"name={name}", "trainer.max_steps=6"]
        done = voxzoo("train", *call, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "lora speech_encoder: " in done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_train_the_lora_of_one(name: str, runs: Path):
    expected = logged(runs / "one", "train/grad_norm")
    assert len(expected) == 6
    # Rounding, trained on: 1.8e-5 on a Xeon.
    assert logged(runs / name, "train/grad_norm") == pytest.approx(expected, rel=5e-5)
    assert_close(weights(runs / "one"), weights(runs / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", HOW)
def test_every_lora_tensor_learns_and_nothing_of_the_base_does(name: str, runs: Path):
    checkpoint = torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)
    after, config = checkpoint["state_dict"], checkpoint["voxzoo"]["config"]
    torch.manual_seed(config["seed"])
    before = assemble(OmegaConf.create(config), ("voxzoo.",), assets=checkpoint["voxzoo"]["assets"]).state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        base = key.startswith(("speech_encoder.", "text_seq2seq.")) and not is_lora(key)
        assert torch.equal(value, after[key]) == base, key
    assert len(lora_of(after)) > 40


@pytest.mark.slow
def test_a_run_with_lora_goes_on_under_another_strategy(voxzoo, tiny: list[str], runs: Path):
    shared = [*tiny, *SETTINGS, *LORA, *stopper.WORDS, f"root={runs}", "trainer.max_steps=12"]
    told = stopper.environment(3, signal.SIGTERM)
    said = voxzoo("train", *HOW["fsdp2"], *shared, "name=stopped", cwd=runs, env=told)
    assert said.returncode == 75, said.stderr
    for name, how in (("stopped", "ddp"), ("whole", "one")):
        done = voxzoo("train", *HOW[how], *shared, f"name={name}", "--json", cwd=runs, env=stopper.environment())
        assert done.returncode == 0, done.stderr
    assert_close(weights(runs / "whole"), weights(runs / "stopped"))


@pytest.mark.slow
def test_a_loaded_run_is_merged(runs: Path):
    run = load_run(runs / "one" / "checkpoints" / "last.ckpt")
    assert not adapted_layers(run.task)
    assert run.task.config["lora"] == {}
    state = weights(runs / "one")
    settings = LoRA(**run.config.lora.speech_encoder)
    a, b = (state[f"speech_encoder.layers.0.ffn1.inner.{name}"] for name in ("lora_a", "lora_b"))
    expected = state["speech_encoder.layers.0.ffn1.inner.weight"] + settings.scale * b @ a
    torch.testing.assert_close(run.task.speech_encoder.layers[0].ffn1.inner.weight.data, expected)


@pytest.mark.slow
def test_parts_are_taken_with_lora_and_without(runs: Path, tiny: list[str]):
    """Of a run with LoRA: LoRA itself where the config has the same, merged weights otherwise."""
    source = runs / "one" / "checkpoints" / "last.ckpt"
    state = weights(runs / "one")
    prefix = "speech_encoder."
    theirs = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    merged = merged_state(load_run(source).task.speech_encoder)

    def take(path: Path, *words: str) -> tuple[nn.Module, str]:
        task = task_of(*words)
        (line,) = load_parts(task, {"speech_encoder": str(path)}, runs / "none")
        return task.parts()["speech_encoder"], line

    part, line = take(source, *LORA[:2])
    assert line.endswith("; with its LoRA")
    assert all(torch.equal(value, theirs[key]) for key, value in part.state_dict().items())
    part, line = take(source)
    assert line.endswith("; LoRA of there merged")
    assert all(torch.equal(value, merged[key]) for key, value in part.state_dict().items())
    for other in (
        "lora.speech_encoder.alpha=3",
        "lora.speech_encoder.rank=5",
        "lora.speech_encoder.targets.all='*ffn*'",
    ):
        part, line = take(source, *LORA[:2], other)
        assert line.endswith("; LoRA of there merged, its LoRA begins at zero")
        assert all(not value.any() for key, value in part.state_dict().items() if key.endswith("lora_b"))
        assert all(torch.equal(value, merged[key]) for key, value in part.state_dict().items() if not is_lora(key))
    plain = runs / "plain.ckpt"
    content = torch.load(source, weights_only=True)
    content["state_dict"] = {key: value for key, value in state.items() if not is_lora(key)}
    content["voxzoo"]["config"] = {k: v for k, v in content["voxzoo"]["config"].items() if k != "lora"}  # older
    torch.save(content, plain)
    part, line = take(plain, *LORA[:2])
    assert line.endswith("; its LoRA begins at zero")
    assert all(torch.equal(value, theirs[key]) for key, value in part.state_dict().items() if not is_lora(key))
    assert all(not value.any() for key, value in part.state_dict().items() if key.endswith("lora_b"))


# Published models


@pytest.mark.slow
def test_a_published_model_is_fine_tuned_and_exported(voxzoo, tmp_path: Path):
    """NLLB with LoRA on query and value: the exported folder is W + scale x B A, and transformers computes what the
    adapted model does."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    texts = [f"the train to Lima leaves on may {day} at {hour} o'clock" for day in range(1, 8) for hour in range(1, 6)]
    tokenizer = SentencePieceTokenizer(
        str(train_sentencepiece(texts, tmp_path / "t.model", 90, 3)), ["eng_Latn", "spa_Latn", "<mask>"], 92, "nllb",
        "transformers",
    )  # fmt: skip
    node = {"vocab_size": 92, "dim": 24, "num_heads": 3, "ffn_dim": 44, "num_encoder_layers": 2,
            "num_decoder_layers": 1, "pad_id": 1}  # fmt: skip
    model = PublishedModel(
        "m2m_100", {"text_seq2seq": {"_target_": "voxzoo.components.TransformerSeq2Seq", **node}}, {}
    )
    model.add_module("text_seq2seq", TransformerSeq2Seq(**node).eval())
    model.tokenizer = tokenizer
    to_transformers(model, tmp_path / "nllb")
    done = voxzoo(
        "train", "task=text_to_text", "text_seq2seq=pretrained", f"text_seq2seq.pretrained={tmp_path / 'nllb'}",
        "tokenizer=pretrained", "data=tiny", f"cache_dir={tmp_path}", QV, "lora.text_seq2seq.rank=4", "name=run",
        "trainer.max_steps=4", "trainer.val_check_interval=4", "logger=none", "optim.lr=0.01", "schedule=constant",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing is new" in done.stderr
    done = voxzoo("export", "runs/run", "out", "--as", "m2m_100", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "m2m_100"
    peer, report = transformers.M2M100ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report

    part = from_transformers(tmp_path / "nllb").text_seq2seq
    old = {key: value.clone() for key, value in part.state_dict().items()}
    assert isinstance(part, TransformerSeq2Seq)
    adapt(part, LoRA(targets={"qv": "*attention.[qv]"}, rank=4))
    source = Padded(
        torch.tensor([tokenizer.source(texts[0], "eng")]), torch.tensor([len(tokenizer.source(texts[0], "eng"))])
    )
    target = Padded(source.data.flip(1), source.lengths)
    with torch.no_grad():
        untrained = part(part.encode(source), target).data
        trained = lora_of(weights(tmp_path / "runs" / "run"))
        part.load_state_dict({key.removeprefix("text_seq2seq."): v for key, v in trained.items()}, strict=False)
        ours = part(part.encode(source), target).data
        theirs = peer.eval()(input_ids=source.data, decoder_input_ids=target.data).logits
    assert not torch.allclose(ours, untrained, atol=1e-3), "it has learned"
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)

    new = from_transformers(tmp_path / "out").text_seq2seq.state_dict()
    a, b = (trained[f"text_seq2seq.decoder.layers.0.memory_attention.q.lora_{kind}"] for kind in "ab")
    key = "decoder.layers.0.memory_attention.q.weight"
    torch.testing.assert_close(new[key], old[key] + 4 * b @ a, atol=1e-6, rtol=1e-6)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {f"{name}.weight" for name in adapted_layers(part)}
