"""Half precision where it is served and trained: chosen, and said to be slow where it is."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from voxzoo.components.errors import UserError
from voxzoo.components.layers.precision import is_slow_on_cpu
from voxzoo.components.types import Padded
from voxzoo.configs import compose
from voxzoo.configs.targets import allow_list
from voxzoo.tasks import train
from voxzoo.tasks.commands import evaluate, translate
from voxzoo.tasks.distributed import precision
from voxzoo.tasks.runs.assembly import assemble
from voxzoo.tasks.runs.run import load_run
from voxzoo.tasks.serving import evaluation, translator

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is not made for half precision."""
    monkeypatch.setattr(precision, "is_slow_on_cpu", lambda dtype: dtype in HALVES)


@pytest.mark.parametrize("kind", ["AVX2", "DEFAULT"])
def test_a_cpu_without_avx_512_is_slow(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kind)
    assert [is_slow_on_cpu(dtype) for dtype in (*HALVES, torch.float32)] == [True, True, False]


@pytest.mark.parametrize("supported", [True, False])
def test_elsewhere_onednn_is_asked(supported: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert is_slow_on_cpu(torch.bfloat16) is not supported


def test_the_line_says_what_to_set_instead(slow: None):
    line = precision.slow_line("bf16-mixed", "cpu", "trainer.precision=")
    assert line is not None
    assert "bfloat16 is slow on this CPU" in line
    assert line.endswith("set trainer.precision=32-true")
    assert precision.slow_line("bf16", "cpu", "") == precision.slow_line("bf16-mixed", "cpu", "")
    assert precision.slow_line(torch.float16, "cpu", "--precision ") is not None
    for name, kind in (("32-true", "cpu"), (None, "cpu"), ("64-true", "cpu"), ("bf16-true", "cuda")):
        assert precision.slow_line(name, kind, "") is None


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as `voxzoo import --dtype bfloat16` writes one."""
    words = ["task=encode_speech", "speech_encoder=tiny", "adaptor=none", "data=tiny", "frontend=tiny"]
    config = compose(words)
    OmegaConf.set_struct(config, False)
    config.model_type = "wav2vec2-bert"
    torch.manual_seed(1)
    task = assemble(config, allow_list(config))
    state = {key: value.bfloat16() if value.is_floating_point() else value for key, value in task.state_dict().items()}
    path = tmp_path_factory.mktemp("imported") / "half.ckpt"
    torch.save({"state_dict": state, "voxzoo": {"config": task.config, "assets": {}}}, path)
    return path


def test_weights_are_served_in_the_precision_that_is_asked_for(
    imported: Path, slow: None, capsys: pytest.CaptureFixture[str]
):
    states = {}
    speech = torch.randn(1, 40, 80, generator=torch.Generator().manual_seed(0))
    for name, dtype in {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}.items():
        task = load_run(imported, precision=name, pack=True).task
        assert {p.dtype for p in task.parameters()} == {dtype}
        assert {b.dtype for b in task.buffers() if b.is_floating_point()} <= {torch.float32}
        said = capsys.readouterr().err
        assert (f"{str(dtype).removeprefix('torch.')} is slow" in said) == (name != "32-true")
        encoder = task.parts()["speech_encoder"]
        data = speech[..., : encoder.input_dim].to(dtype)
        with torch.no_grad():
            states[name] = encoder(Padded(data, torch.tensor([40]))).data.float()
    for name in ("bf16-true", "16-true"):
        assert torch.allclose(states[name], states["32-true"], atol=0.1)
    assert {p.dtype for p in load_run(imported).task.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="precision '32': expected one of 32-true, bf16-true, 16-true"):
        load_run(imported, precision="32")


def test_it_is_said_once_and_only_where_it_is_served(imported: Path, slow: None, capsys: pytest.CaptureFixture[str]):
    load_run(imported)
    assert not capsys.readouterr().err
    load_run(imported, pack=True)
    assert capsys.readouterr().err.count("set --precision 32-true") == 1


class Asked(Exception):
    """What a run was asked to be loaded with."""


@pytest.mark.parametrize("command", ["translate", "evaluate"])
def test_commands_hand_it_on(command: str, monkeypatch: pytest.MonkeyPatch):
    module, engine, words = {
        "translate": (translate, translator, ["RUN", "a.wav", "--task", "asr", "--to", "eng"]),
        "evaluate": (evaluate, evaluation, ["RUN"]),
    }[command]

    def load(path: str, **options: object) -> None:
        raise Asked(options["precision"])

    monkeypatch.setattr(engine, "load_run", load)
    parser = argparse.ArgumentParser()
    module.configure(parser)
    for given, expected in (([], None), (["--precision", "32-true"], "32-true")):
        args = parser.parse_args([*words, *given])
        args.json = True
        with pytest.raises(Asked) as asked:
            module.run(args)
        assert asked.value.args == (expected,)


def test_training_says_it_at_the_start(slow: None, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*tiny, "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=bf16-true", "logger=none"]
    train([*words, "trainer.limit_val_batches=0", "checkpoint.keep_best=0", f"root={tmp_path}"])
    assert capsys.readouterr().err.count("set trainer.precision=32-true") == 1
