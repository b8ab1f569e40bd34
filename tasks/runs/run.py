"""A run on disk: `config.yaml`, `checkpoints/`, `logs/`, and `stages/` where it was trained in stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.layers.linear import pack_for_inference
from ...configs.build import build
from ...configs.targets import trusted
from ..checkpoints.files import misfit, pick_checkpoint, read_checkpoint
from ..distributed.devices import choose_kernels, pick_device
from ..task import Task
from .assembly import build_task
from .lora import merge_lora

_PACK_FROM = 20_000_000  # parameters: a small model is not worth the timing


@dataclass(frozen=True)
class Run:
    """A loaded run.

    Attributes:
        task: the trained task, in evaluation mode; LoRA is merged into its weights.
        config: its resolved config.
        folder: the run folder (the folder of the checkpoint's run, where a checkpoint was given).
        checkpoint: the file the weights came from.
        allowed: what its class paths may start with.
    """

    task: Task
    config: DictConfig
    folder: Path
    checkpoint: Path
    allowed: tuple[str, ...]

    def datamodule(self, manifest: str | None = None, split: str = "test") -> Any:
        """The DataModule of the run's config, with the run's tokenizer and what the task can read.

        Args:
            manifest: in place of the config's data: a manifest that holds `split`.
        """
        node: Any = self.config.data
        if manifest is not None:
            target = "voxzoo.datamodules.SpeechTranslationData"
            frontend = self.config.get("frontend")
            node = OmegaConf.create(
                {"_target_": target, "test": {split: manifest}, "frontend": frontend, "batch_size": 16}
            )
        data = build(node, allowed=self.allowed, tokenizer=self.task.tokenizer)
        data.needs = self.task.needs
        return data


def load_run(path: Any, *, allow: Iterable[str] = (), device: str = "cpu", pack: bool = False) -> Run:
    """Load a run folder (its last stage, its best checkpoint) or a checkpoint file.

    Args:
        path: the folder or file.
        device: where the task goes: `cpu`, `cuda`, `cuda:1` ..., or `auto`, a GPU where there is one.
        pack: on a CPU, give the linear layers of a model from 20 M parameters on packed weights where a timing says
            that they are faster here (`pack_for_inference`); results are the same to rounding.
        allow: packages besides voxzoo, torch and lightning that its config may name. The `allow` of the config itself
            does not count: it is part of a file that may come from anywhere. VOXZOO_ALLOW=name,name adds to them.

    Raises:
        UserError: the path does not exist, is not a run, or its checkpoint does not fit its config.
    """
    place = pick_device(device)
    choose_kernels()
    folder, checkpoint = find_checkpoint(Path(path))
    content = read_checkpoint(checkpoint)
    if not content["voxzoo"]["config"]:
        raise UserError(
            f"{checkpoint}: carries no config, so that nothing says what to build: its task was built by hand; "
            "`voxzoo.tasks.prepare` makes one that says it"
        )
    config = OmegaConf.create(content["voxzoo"]["config"])
    assert isinstance(config, DictConfig)
    allowed = trusted(allow)
    # Parts of published models hold nothing but their weights: neither initialised first nor twice in memory.
    empty = config.get("model_type") is not None
    task = build_task(config, content["voxzoo"]["assets"], allowed, empty=empty)
    problem = misfit(task.state_dict(), content["state_dict"])
    if problem:
        raise UserError(f"{checkpoint}: does not fit its own config; {problem}")
    task.load_state_dict(content["state_dict"], assign=empty)
    merge_lora(task)
    task.eval().to(place)
    if pack and place.type == "cpu" and sum(p.numel() for p in task.parameters()) >= _PACK_FROM:
        pack_for_inference(task)
    return Run(task, config, folder, checkpoint, allowed)


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a RUN argument means."""
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return folder, path
    if not path.exists():
        raise UserError(f"{path}: no such run folder or checkpoint")
    if not (path / "config.yaml").exists():
        raise UserError(f"{path}: not a run (no config.yaml in it); a run is a folder that `voxzoo train` wrote")
    config = OmegaConf.load(path / "config.yaml")
    stages = active_stages(config)  # pyright: ignore[reportArgumentType]
    if stages:
        return find_checkpoint(path / "stages" / stages[-1])
    return path, pick_checkpoint(path / "checkpoints")


def active_stages(config: DictConfig) -> list[str]:
    """Names of the stages to run, in order; a stage whose `requires` names an absent part is left out."""
    names = []
    for name, stage in (config.get("stages") or {}).items():
        if stage is None:
            continue
        parts = [config.get(role) for role in stage.get("requires") or ()]
        if all(part is not None and part.get("_target_") is not None for part in parts):
            names.append(str(name))
    return names
