"""Published models as runs, and runs as published models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from ...components import parts
from ...components.converters import PublishedModel, to_encodec, to_transformers
from ...components.converters.peft import to_peft
from ...components.converters.published import layout_of, nodes_of
from ...components.errors import UserError
from ...components.whole import whole_folder
from ...configs.check import require_valid
from ...configs.compose import CONFIG_DIR, compose, to_yaml
from ...configs.foreign import require_plain
from ...configs.targets import allow_list
from ..checkpoints.files import misfit, write_atomically
from ..task import FILES
from .assembly import assemble
from .lora import lora_settings
from .run import load_run

_CHECKPOINT = "imported.ckpt"
ENCODEC_FILE = "encodec.th"
"""In the place of a model type: the layout of the `encodec` package."""
_ENCODER_TASK = {"_target_": "voxzoo.tasks.EncodeSpeech"}
_CODEC_TASK = {"_target_": "voxzoo.tasks.TrainCodec"}


def write_run(model: PublishedModel, folder: Path) -> DictConfig:
    """Make a run folder of a published model: what `train` writes, so that every command reads it.

    Args:
        model: from `from_transformers`.
        folder: of the run; must not exist or be empty.

    Returns:
        The run's config.

    Raises:
        UserError: the folder holds something, or the parts do not make a task.
    """
    require_new(folder)
    config = run_config(model, folder)
    if "tokenizer" in config.task and model.tokenizer is None:
        raise UserError(_no_tokenizer(model))
    require_valid(config)
    assets = {f"{FILES}{name}": content for name, content in model.files.items()}
    if model.tokenizer is not None:
        assets["tokenizer"] = torch.frombuffer(bytearray(model.tokenizer.to_bytes()), dtype=torch.uint8)
    task = assemble(config, allow_list(config), weights="empty", assets=assets)
    # What is the task's own, such as averages of a balancer, begins as it does in a new run.
    own = {name: value for name, value in task.state_dict().items() if name.split(".")[0] not in task.parts()}
    state = {**own, **model.state_dict()}
    problem = misfit(task.state_dict(), state)
    if problem:
        raise UserError(f"{folder}: the parts of this {model.model_type} model do not make a run; {problem}")
    content = {
        "state_dict": state,
        "voxzoo": {"config": OmegaConf.to_container(config, resolve=True), "assets": assets},
    }
    with whole_folder(folder) as part:
        write_atomically(part / "config.yaml", lambda file: file.write(to_yaml(config).encode()))
        write_atomically(part / "checkpoints" / _CHECKPOINT, lambda file: torch.save(content, file))
        ranking = json.dumps({_CHECKPOINT: 0.0}).encode()
        write_atomically(part / "checkpoints" / "best.json", lambda file: file.write(ranking))
    return config


def require_new(folder: Path) -> None:
    """Raise UserError where a folder holds something, or is none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; give the run another name, nothing is overwritten")


def _no_tokenizer(model: PublishedModel) -> str:
    """That a model came without a tokenizer, and what stands beside its weights instead."""
    names = sorted(set(model.files) - {"config.json"})
    kind = ""
    if "tokenizer_config.json" in model.files:
        try:
            content = json.loads(model.files["tokenizer_config.json"].numpy().tobytes())
            kind = str(content.get("tokenizer_class") or "")
        except (ValueError, AttributeError):
            kind = ""
    found = ", ".join([*([f"tokenizer_class {kind}"] if kind else []), *names]) or "nothing"
    return (
        f"this {model.model_type} model came without a tokenizer that voxzoo reads; beside config.json: {found}. Give "
        "the folder that has it, --tokenizer FOLDER (sentencepiece.bpe.model, tokenizer.json, or vocab.json with "
        "merges.txt)"
    )


def run_config(model: PublishedModel, folder: Path) -> DictConfig:
    """The config of a run that holds a published model: the root config with the model's nodes in its roles."""
    require_plain(model.nodes, f"{model.model_type} model")
    nodes = dict(model.nodes)
    task = dict(nodes.pop("task", _CODEC_TASK if "codec" in nodes else _ENCODER_TASK))
    target = str(task["_target_"]).rpartition(".")[2]
    choice = next(
        path.stem
        for path in sorted((CONFIG_DIR / "task").glob("*.yaml"))
        if f"voxzoo.tasks.{target}\n" in path.read_text()
    )
    config = compose([f"task={choice}", "data=manifest"])
    OmegaConf.set_struct(config, False)
    config.name, config.root = folder.name, str(folder.parent)
    for role in parts():
        config[role] = nodes.get(role, {"_target_": None})
    config.task = OmegaConf.merge(config.task, task)
    config.model_type = model.model_type
    if model.lora:  # an adapter, whose model stands still
        config.lora = {role: {**settings, "freeze_base": True} for role, settings in model.lora.items()}
        config.freeze = {role: True for role in model.parts() if role not in model.lora}
    return config


def _write_encodec(task: Any, destination: Path) -> Path:
    """A folder with one file as the `encodec` package saves it."""
    codec = getattr(task, "codec", None)
    if type(codec).__name__ != "EnCodec":
        raise UserError(f"--as {ENCODEC_FILE}: this run has no EnCodec; that layout holds nothing else")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination}: exists and is not empty; give another folder, nothing is overwritten")
    destination.mkdir(parents=True, exist_ok=True)
    to_encodec(codec, destination / "encodec.th")
    return destination


def export_run(
    path: Any,
    destination: Path,
    model_type: str | None = None,
    note: Callable[[str], None] | None = None,
    compat: Literal["transformers"] | None = None,
    verify: bool = False,
    base: str | None = None,
) -> tuple[Path, str]:
    """Write a run in a published layout; returns the folder and the model type.

    Args:
        path: the run folder, or a checkpoint.
        destination: the folder to write.
        model_type: the layout; None: the one the run was imported from, or the only one with a place for its parts.
        note: is given each line on what the layout cannot say; None: they are Python warnings.
        compat: see `to_transformers`.
        verify: as for `load_run`.
        base: write its LoRA alone, as an adapter of PEFT to this model (folder or hub name).

    Raises:
        UserError: not a run, no layout named where not just one would do, or parts and settings without a place in it.
    """
    if base is not None:
        return _export_adapter(path, destination, model_type, base, verify)
    task = load_run(path, verify=verify).task
    if model_type == ENCODEC_FILE:
        return _write_encodec(task, destination), ENCODEC_FILE
    chosen = model_type or task.config.get("model_type")
    said = {} if note is None else {"note": note}
    folder = to_transformers(task, destination, model_type=chosen, compat=compat, **said)
    return folder, str(json.loads((folder / "config.json").read_text())["model_type"])


def _export_adapter(path: Any, destination: Path, model_type: str | None, base: str, verify: bool) -> tuple[Path, str]:
    run = load_run(path, merge=False, verify=verify)
    layout = str(model_type or run.config.get("model_type") or layout_of(nodes_of(run.task)))
    return to_peft(run.task, destination, base, lora_settings(run.config), layout), layout
