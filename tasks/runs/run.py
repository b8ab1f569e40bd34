"""A run on disk: `config.yaml`, `checkpoints/`, `logs/`, and `stages/` where it was trained in stages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError, faults_of
from ...components.layers.linear import pack_for_inference
from ...components.roles import DataModule
from ...configs.build import build
from ...configs.compose import own_cache
from ...configs.stages import last_stage
from ...configs.targets import FOREIGN, trusted
from ...configs.yaml_files import load_map
from ..cascade import Cascade
from ..checkpoints.files import misfit, pick_checkpoint, read_checkpoint
from ..checkpoints.mapped import fill
from ..consensus import Consensus
from ..distributed.devices import choose_kernels, pick_device
from ..distributed.precision import WHOLE, cast_parameters, slow_line
from ..of_runs import JOINT, OfRuns
from ..processes.console import say
from ..task import Task
from .assembly import assemble
from .joined import attach_runs, joined_names
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

    def datamodule(self, manifest: str | list[str] | None = None, split: str = "test") -> Any:
        """The DataModule of the run's config, with the run's tokenizer and what the task can read.

        Args:
            manifest: in place of the config's data: a manifest, or several, that hold `split`.
        """
        node: Any = self.config.data.copy()
        if node.get("cache_dir") is not None:
            node.cache_dir = str(self._cache(Path(node.cache_dir)))
        if manifest is not None:
            target = "voxzoo.datamodules.SpeechTranslationData"
            frontend = self.config.get("frontend")
            node = OmegaConf.create(
                {"_target_": target, "test": {split: manifest}, "frontend": frontend, "batch_size": 16}
            )
            if self.task.modes and "s2tt" not in self.task.modes:  # the data's default
                node.tasks = {min(self.task.modes): True}
        data = build(node, allowed=self.allowed, wanted=DataModule, tokenizer=self.task.tokenizer)
        data.needs = self.task.needs
        corpus = getattr(data, "corpus", None)
        if corpus is not None and not corpus.is_prepared:
            corpus.root = self._cache(Path(corpus.root), corpus.root.name)
        return data

    def _cache(self, wanted: Path, name: str = "") -> Path:
        """Where what the config's cache would take is written: a file that may come from anywhere chooses no folder
        outside of its run and of this machine's cache."""
        own = Path(own_cache())
        wanted = Path(os.path.realpath(wanted))
        if any(wanted.is_relative_to(os.path.realpath(folder)) for folder in (own, self.folder)):
            return wanted
        say(f"the cache is {own / name}, not {wanted} of the run's config (VOXZOO_CACHE=FOLDER chooses another)")
        return own / name


def load_run(
    path: Any,
    *,
    allow: Iterable[str] = (),
    device: str = "cpu",
    pack: bool = False,
    precision: str | None = None,
    verify: bool = False,
    merge: bool = True,
) -> Run:
    """Load a run folder (its last stage, its best checkpoint) or a checkpoint file.

    The weights stay in the mapped file (`read_checkpoint`): processes that load one run share them.

    Args:
        path: the folder or file; several that are joined by `+` are a cascade (`tasks.cascade`).
        device: where the task goes: `cpu`, `cuda`, `cuda:1` ..., or `auto`, a GPU where there is one.
        pack: to serve with it: on a CPU, give the linear layers of a model from 20 M parameters on packed weights where
            a timing says that they are faster here (`pack_for_inference`; results are the same to rounding), and say
            where its precision is slow here.
        allow: packages besides voxzoo, torch and lightning that its config may name. The `allow` of the config itself
            does not count: it is part of a file that may come from anywhere. VOXZOO_ALLOW=name,name adds to them.
        precision: `32-true`, `bf16-true` or `16-true`: what the parameters are cast to. None: runs that were trained
            here are in float32, imported ones as they were imported.
        verify: compare the sums of the whole checkpoint, not of its first quarter of a gigabyte alone.
        merge: put LoRA into the weights, as whoever serves the run wants it.

    Raises:
        UserError: the path does not exist, is not a run, or its checkpoint does not fit its config.
    """
    if precision is not None and precision not in WHOLE:
        raise UserError(f"precision {precision!r}: expected one of {', '.join(WHOLE)}")
    place = pick_device(device)
    choose_kernels()
    options: dict[str, Any] = {
        "allow": allow, "device": device, "pack": pack, "precision": precision, "verify": verify, "merge": merge
    }  # fmt: skip
    if names := joined_names(Path(path)):
        return _joined([load_run(name, **options) for name in names], names)
    folder, checkpoint = find_checkpoint(Path(path))
    content = read_checkpoint(checkpoint, states=False, verify=verify)
    if not content["voxzoo"].get("config"):
        raise UserError(
            f"{checkpoint}: carries no config, so that nothing says what to build: its task was built by hand; "
            "`voxzoo.tasks.prepare` makes one that says it"
        )
    allowed = trusted(allow, FOREIGN)
    # An error in a class of the user's own is told by its line, not as one of the checkpoint.
    with faults_of(checkpoint) if allowed == FOREIGN else nullcontext():
        config = OmegaConf.create(content["voxzoo"]["config"])
        assert isinstance(config, DictConfig)
        task = _filled(config, content, allowed, checkpoint, weights="empty")
    if merge:
        merge_lora(task)
    if precision is not None:
        cast_parameters(task, WHOLE[precision])
    task.eval().to(place)
    if pack and place.type == "cpu":
        for dtype in {p.dtype for p in task.parameters()}:
            if line := slow_line(dtype, place.type, "--precision "):
                say(line)
        if sum(p.numel() for p in task.parameters()) >= _PACK_FROM:
            pack_for_inference(task)
    attach_runs(task, folder, lambda place: load_run(place, **options).task)
    return Run(task, config, folder, checkpoint, allowed)


def _joined(runs: list[Run], names: list[str]) -> Run:
    """Runs behind each other as one."""
    return made_of(Cascade(runs=names), runs, JOINT.join(run.folder.name for run in runs))


def load_consensus(names: Sequence[str], settings: Mapping[str, Any], **options: Any) -> Run:
    """The consensus of runs (`tasks.Consensus`), without a run folder of its own.

    Args:
        settings: of the task.
        options: of `load_run`.

    Raises:
        UserError: as `load_run`; settings that do not fit.
    """
    try:
        task = Consensus(runs=names, **settings)
    except ValueError as error:
        raise UserError(f"--mbr {','.join(names)}: {error}") from None
    runs = [load_run(name, **options) for name in names]
    return made_of(task, runs, "-".join(["mbr", *(run.folder.name for run in runs)]))


def made_of(task: OfRuns, runs: Sequence[Run], name: str) -> Run:
    """A task that is made of runs as a run, on the data of the first, beside which its folder is."""
    first = runs[0]
    task.attach([run.task for run in runs], [run.folder for run in runs])
    task.eval().to(first.task.device)
    config = first.config.copy()
    OmegaConf.set_struct(config, False)
    if not {str(mode) for mode, asked in config.data.get("tasks", {}).items() if asked} & task.modes:
        config.data.tasks = {next(mode for mode in ("s2tt", "s2st", "asr", "t2tt") if mode in task.modes): True}
    config.task = {"_target_": f"voxzoo.tasks.{type(task).__name__}", "runs": task.runs}
    return Run(task, config, first.folder.with_name(name), first.checkpoint, first.allowed)


def _filled(
    config: DictConfig,
    content: dict[str, Any],
    allowed: tuple[str, ...],
    checkpoint: Path,
    weights: Literal["empty", "drawn"],
) -> Task:
    """The task of a checkpoint, which has the tensors of the mapped file themselves."""
    task = assemble(config, allowed, weights=weights, assets=content["voxzoo"].get("assets"))
    problem = misfit(task.state_dict(), content["state_dict"])
    if problem:
        raise UserError(f"{checkpoint}: does not fit its own config; {problem}")
    # A published model keeps the dtype that it was imported in.
    if fill(task, content["state_dict"], cast=config.get("model_type") is None) or weights == "drawn":
        return task
    # A part computed something from its parameters while they were empty, which no checkpoint has.
    return _filled(config, content, allowed, checkpoint, weights="drawn")


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a RUN argument means."""
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return folder, path
    if not path.exists():
        raise UserError(f"{path}: no such run folder or checkpoint")
    if not (path / "config.yaml").exists():
        raise UserError(f"{path}: not a run (no config.yaml in it); a run is a folder that `voxzoo train` wrote")
    config = load_map(path / "config.yaml", "; a checkpoint of the run can be given in its place")
    stage = last_stage(path, config)
    if stage != path:
        return find_checkpoint(stage)
    return path, pick_checkpoint(path / "checkpoints")
