"""Stacks of equal layers: few of them run on fake tensors, and what is planned is what all take, to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from voxzoo.components.layers.alike import in_turn
from voxzoo.components.layers.transformer import EncoderLayer, LayerSettings
from voxzoo.components.types import Loss
from voxzoo.configs.compose import compose
from voxzoo.tasks.planning import repeats
from voxzoo.tasks.planning.ledger import Fake
from voxzoo.tasks.planning.rehearsal import Rehearsal
from voxzoo.tasks.planning.repeats import alike
from voxzoo.tasks.planning.simulation import Footprint, make_fake, simulate

DEEP = ["speech_encoder.num_layers=7", "text_seq2seq.num_encoder_layers=6", "text_seq2seq.num_decoder_layers=8"]
UNITY = ["task=speech_to_speech_unity", "unit_extractor=tiny", "vocoder=tiny"]
LM = ["task=speech_to_speech_lm", "codec=tiny", "unit_extractor=tiny", "speech_lm=tiny", "stream_lm=tiny",
      "speech_lm.num_layers=6", "stream_lm.num_layers=6"]  # fmt: skip
GPU = "trainer=gpu"
SETTINGS = {
    "speech to text on a CPU": [],
    "on a GPU, mixed": [GPU, "trainer.precision=bf16-mixed"],
    "half": [GPU, "trainer.precision=bf16-true"],
    "text to text": ["task=text_to_text", GPU],
    "all passes": [*UNITY, "t2u=tiny_unity2", "t2u.num_encoder_layers=6", "t2u.num_decoder_layers=5", GPU],
    "speech LM": [*LM, GPU],
    "streams with a delay": [*LM, "stream_lm=tiny_delay"],
    "low rank": ["lora=attention", GPU],
    "frozen encoder": ["freeze.speech_encoder=true", GPU],
    "frozen decoder": ["freeze.text_seq2seq=true", "task.ctc_weight=0"],
    "recomputed": ["activation_checkpointing=true"],
    "recomputed, mixed": ["activation_checkpointing=true", GPU, "trainer.precision=bf16-mixed"],
    "layers dropped": ["text_seq2seq.layerdrop=0.2", "speech_encoder.layer_drop=0.2", GPU],
    "dropout": ["speech_encoder.attention_dropout=0.1", "text_seq2seq.activation_dropout=0.1"],
    "untied": ["text_seq2seq.tie_output=false", "text_seq2seq.tie_embeddings=false"],
    "accumulated": ["trainer.accumulate_grad_batches=2", GPU],
    "in chunks": ["speech_encoder.chunk_size=8", "speech_encoder.position=none"],
    "samples": ["frontend=raw", "speech_encoder=tiny_raw"],
    "samples up to a layer": ["frontend=raw", "speech_encoder=tiny_raw", "speech_encoder.layer=5"],
}  # fmt: skip


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each stack that a few layers stand for, how many it has."""
    found: list[int] = []
    real = repeats._Stack.__init__
    monkeypatch.setattr(
        repeats._Stack, "__init__", lambda self, ledger, layers: found.append(len(layers)) or real(self, ledger, layers)
    )
    return found


def _footprint(rehearsal: Rehearsal, whole: bool) -> Footprint:
    setting = rehearsal.setting
    rows = [*[rehearsal.longest] * 2, rehearsal._sizes(0.6 * rehearsal.longest.seconds, 1.0)]
    return simulate(
        rehearsal.task,
        rehearsal.fake,
        rehearsal.batch(rows, setting.dtype),
        setting.kind,
        autocast=setting.autocast,
        accumulate=setting.accumulate > 1,
        whole=whole,
    )


@pytest.mark.filterwarnings("ignore")  # of autocast without a GPU
@pytest.mark.parametrize("words", SETTINGS.values(), ids=SETTINGS)
def test_what_is_planned_is_what_all_layers_take(tiny: list[str], words: list[str], ran, monkeypatch):
    config = compose([*tiny, *words[:1], *DEEP, *words[1:]])
    monkeypatch.setattr(repeats.Unlike, "__init__", lambda *_: pytest.fail("layers differ"))
    few = _footprint(Rehearsal(config), whole=False)
    assert ran
    assert few == _footprint(Rehearsal(config), whole=True)  # anew: tables of positions are made once


@pytest.mark.filterwarnings("ignore")  # of autocast without a GPU
@pytest.mark.parametrize("words", [["task=speech_and_text_to_text"], ["task.r_drop=5"]], ids=["both", "two passes"])
def test_a_stack_that_is_passed_twice_runs_whole(tiny: list[str], words: list[str], ran):
    """Its second pass adds to gradients that the first has made: layers are not alike."""
    config = compose([*tiny, *words, *DEEP, GPU])
    few, all_of_them = (_footprint(Rehearsal(config), whole=whole) for whole in (False, True))
    assert ran
    assert few.flops == all_of_them.flops
    # The first try has made tables of positions that the second finds.
    assert few.activations == pytest.approx(all_of_them.activations, rel=0.02)


def test_adapters_in_some_layers_let_all_run(tiny: list[str], ran):
    """Those of the text decoder are adapted in one layer; the encoders' are as they were."""
    config = compose(
        [*tiny, *DEEP, "lora=attention", "lora.text_seq2seq.targets.qv='decoder.layers.3.*attention.[qv]'"]
    )
    assert _footprint(Rehearsal(config), whole=False) == _footprint(Rehearsal(config), whole=True)
    assert 8 not in ran


class _Net(nn.Module):
    """A stack in a task of one loss."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.calls = 0

    def run(self, x: torch.Tensor) -> torch.Tensor:
        _Grow.made = 0
        for layer in in_turn(self.layers):
            self.calls += 1
            x = layer(x, None)
        return x

    def measure(self, batch):
        return {"x": Loss(self.run(batch).sum(), batch.new_ones(()))}, {}

    def weighted(self, losses):
        return losses["x"].total


def _layers(number: int = 6) -> list[nn.Module]:
    with torch.device("meta"):
        return [EncoderLayer(LayerSettings(16, 2, 32)) for _ in range(number)]


def _of(net: nn.Module, whole: bool = False) -> Footprint:
    fake: Fake = net.fake if hasattr(net, "fake") else make_fake(net)  # pyright: ignore
    net.fake = fake  # pyright: ignore
    with fake:
        x = torch.empty(2, 9, 16, device="cpu")
    return simulate(net, fake, x, "cpu", whole=whole)  # pyright: ignore[reportArgumentType]


def _another_width(layers: list[nn.Module]) -> None:
    with torch.device("meta"):
        layers[3] = EncoderLayer(LayerSettings(16, 2, 48))


def _a_frozen_one(layers: list[nn.Module]) -> None:
    layers[4].requires_grad_(False)


def _another_rate(layers: list[nn.Module]) -> None:
    layers[2].dropout.p = 0.0  # pyright: ignore


def _a_hook(layers: list[nn.Module]) -> None:
    layers[1].register_forward_hook(lambda *_: None)


def _a_class_of_its_own(layers: list[nn.Module]) -> None:
    layers[3].__class__ = type("Another", (EncoderLayer,), {})


def _its_own_forward(layers: list[nn.Module]) -> None:
    layers[3].forward = lambda x, mask: x  # pyright: ignore


def _the_same_twice(layers: list[nn.Module]) -> None:
    layers[3] = layers[2]


def _a_shared_weight(layers: list[nn.Module]) -> None:
    for layer in layers:
        layer.ffn.inner.weight = layers[0].ffn.inner.weight  # pyright: ignore


UNLIKE = [_another_width, _a_frozen_one, _another_rate, _a_hook, _a_class_of_its_own, _its_own_forward,
          _the_same_twice, _a_shared_weight]  # fmt: skip


@pytest.mark.parametrize("change", UNLIKE)
def test_layers_that_are_not_alike_run_all(change: Callable[[list[nn.Module]], None]):
    layers = _layers()
    assert alike(layers)
    change(layers)
    net = _Net(layers)
    _of(net)
    assert net.calls == 6


class _Growing(nn.Module):
    """Looks like its neighbours, but keeps or makes more than the one before."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, device="meta"))
        self.backwards = backwards

    def forward(self, x, _):
        return _Grow.apply(x * self.weight, self.backwards)


class _Grow(torch.autograd.Function):
    made = 0

    @staticmethod
    def forward(ctx, x, backwards):
        _Grow.made += 1
        ctx.size = _Grow.made
        if not backwards:
            ctx.save_for_backward(x.new_empty(100 * ctx.size))
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        grads[0].new_empty(1000 * ctx.size)
        return grads[0], None


@pytest.mark.parametrize("backwards", [False, True])
def test_layers_that_do_more_than_those_before_run_all(backwards: bool):
    net = _Net([_Growing(backwards) for _ in range(7)])
    few = _of(net)
    assert net.calls > 7  # tried, and run again
    assert few == _of(net, whole=True)
