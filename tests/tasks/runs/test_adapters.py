"""Adapters of PEFT: taken as LoRA of the model that they belong to, and written from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import publish_nllb, publish_whisper
from safetensors.torch import load_file, save_file
from torch import Tensor
from voxzoo.components.converters.peft import from_peft
from voxzoo.components.errors import UserError
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main

pytest.importorskip("transformers")

TARGETS = {"whisper": ("q_proj", "v_proj", "fc1"), "nllb": ("q_proj", "k_proj", "out_proj", "fc2")}


@pytest.fixture(scope="module", params=TARGETS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / kind
    return publish_whisper(folder) if kind == "whisper" else publish_nllb(folder)


def adapter(folder: Path, base: Path, kind: str, layer: str = "", rank: int = 3, **config: Any) -> dict[str, Tensor]:
    """An adapter as PEFT writes it, with random matrices."""
    folder.mkdir()
    weights, generator = load_file(base / "model.safetensors"), torch.Generator().manual_seed(0)
    tensors = {}
    for name in (key.removesuffix(".weight") for key in weights):
        if not name.endswith(TARGETS[kind]) or layer not in name:
            continue
        out, width = weights[f"{name}.weight"].shape
        for letter, shape in (("A", (rank, width)), ("B", (out, rank))):
            drawn = 0.2 * torch.randn(*shape, generator=generator)
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = drawn
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 12, "bias": "none",
               "lora_dropout": 0.05, "target_modules": [*TARGETS[kind]], "modules_to_save": None, "use_dora": False,
               "task_type": "SEQ_2_SEQ_LM", "rank_pattern": {}, **config}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return tensors


def merged(base: Path, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The published weights with scale x B A in them, as PEFT defines it."""
    weights = load_file(base / "model.safetensors")
    for key, a in tensors.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A.", ".")
            weights[name] = weights[name] + scale * tensors[key.replace("_A.", "_B.")] @ a
    return weights


@pytest.mark.parametrize(("layer", "stabilized"), [("", False), ("decoder.layers.0", True)])
def test_in_and_merged_and_out_again(
    kind: str, base: Path, layer: str, stabilized: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tensors = adapter(tmp_path / "adapter", base, kind, layer, use_rslora=stabilized)
    assert main(["import", str(tmp_path / "adapter"), str(tmp_path / "run")]) == 0, capsys.readouterr().err
    config = load_run(tmp_path / "run").config
    roles = {"text_seq2seq"} if layer or kind == "nllb" else {"speech_encoder", "text_seq2seq"}
    assert set(config.lora) == roles
    assert (config.lora.text_seq2seq.rank, config.lora.text_seq2seq.dropout) == (3, 0.05)
    # Merged, it is the model that the formula gives, by its published names.
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "whole")]) == 0
    got = load_file(tmp_path / "whole/model.safetensors")
    want = merged(base, tensors, 12 / (3**0.5 if stabilized else 3))
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, atol=1e-6, rtol=1e-6, msg=key)
    # Alone, it is the adapter.
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--adapter", str(base)]) == 0
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], value) for key, value in tensors.items())
    content = json.loads((tmp_path / "out/adapter_config.json").read_text())
    expected = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors}
    assert set(content["target_modules"]) == expected
    assert (content["r"], content["lora_alpha"], content["use_rslora"]) == (3, 12, stabilized)
    assert content["base_model_name_or_path"] == str(base)


REFUSED = [
    ({"peft_type": "IA3"}, "peft_type='IA3': expected 'LORA'"),
    ({"use_dora": True}, "use_dora=True: expected False"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
    ({"base_model_name_or_path": "/nowhere/model"}, "says that it belongs to /nowhere/model: give its folder, --base"),
    ({"base_model_name_or_path": None}, "names no model that it belongs to: give it, --base FOLDER"),
    ({"r": 4}, "expected A and B of rank 4"),
]


def test_what_is_no_lora_of_linear_layers_is_refused(kind: str, base: Path, tmp_path: Path):
    for number, (config, said) in enumerate(REFUSED):
        adapter(tmp_path / f"{number}", base, kind, **config)
        with pytest.raises(UserError, match=said) as found:
            from_peft(tmp_path / f"{number}")
        assert "\n" not in str(found.value)
    tensors = adapter(tmp_path / "odd", base, kind)
    name = next(iter(tensors))
    for key, said in (
        ("base_model.model.nothing.q_proj.lora_A.weight", "layers that a .* model does not have here.*nothing.q_proj"),
        ("base_model.model.shared.lora_embedding_A", "keys that are no LoRA of a linear layer"),
    ):
        save_file({**tensors, key: tensors[name].clone()}, tmp_path / "odd/adapter_model.safetensors")
        with pytest.raises(UserError, match=said):
            from_peft(tmp_path / "odd")


def test_a_run_without_lora_is_no_adapter(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["import", str(base), str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--adapter", str(base)]) == 1
    assert "--adapter: there is no LoRA in this run" in capsys.readouterr().err
    assert main(["import", str(base), str(tmp_path / "b"), "--base", "x"]) == 1
    assert "--base x: goes with an adapter (adapter_config.json)" in capsys.readouterr().err
