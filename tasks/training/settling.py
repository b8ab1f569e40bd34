"""The folder of a run while it is trained: one config, one process, and the turns of several."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.roles import ROLES
from ...configs.compose import to_yaml
from ...configs.optimisation import takes_length
from ...configs.targets import allow_list, locate, present_path
from ...configs.yaml_files import load_map
from ..checkpoints.files import write_atomically
from ..runs.folder import is_of_ablation
from ..training.schedules import OF_ANY_LENGTH

# What may differ between two calls of the same run: how it is executed, saved and shown, not what it computes.
_FREE = (
    "stage_jobs", "threads", "compile", "activation_checkpointing", "allow", "max_skipped_steps", "logger", "cache_dir",
    "data.num_workers", "data.cache_dir", "data.corpus.root", "data.corpus.num_workers",
    "data.on_error",
    "checkpoint.copy_frozen", "checkpoint.every_steps", "checkpoint.keep_best",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.accumulate_grad_batches", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.detect_anomaly", "trainer.profiler",
)  # fmt: skip

# Where a run is: its folder is root/name.
_PLACE = ("name", "root", "run_dir", "stage_dir")

DAMAGED = "; delete the folder to train anew, or restore the file"
"""For the end of what is said of a run's config."""

_LENGTH = ("trainer.max_steps", "trainer.max_epochs")

SKIPPED = "skipped.jsonl"
"""In the folder of a run: the rows that it leaves out."""

_LEFT_BY_A_START = {"config.yaml", "tokenizer.model", ".lock", ".turn", SKIPPED}


def settle_config(folder: Path, text: str) -> None:
    """Write the resolved config once; refuse another one in the same folder, showing the difference. The same run may
    be made longer where its schedule does not depend on its length: then it goes on where it ended.

    Raises:
        UserError: the folder holds the run of another config.
    """
    path = folder / "config.yaml"
    if path.exists():
        old, new = load_map(path, DAMAGED), OmegaConf.create(text)
        assert isinstance(new, DictConfig)
        if not _goes_on(folder, old.copy(), new.copy()):
            if old.get("run_dir") != new.get("run_dir"):  # the run was moved
                write_atomically(path, lambda file: file.write(text.encode()))
            return
        (folder / "done.json").unlink(missing_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def refuse_another(folder: Path, config: DictConfig) -> None:
    """Refuse a config that is not that of the run in a folder, before anything is written: as `settle_config` does once
    the languages of the data are known.

    Raises:
        UserError: the folder holds the run of another config.
    """
    path = folder / "config.yaml"
    if path.exists() and not _is_failed_start(folder):
        old, new = load_map(path, DAMAGED), config.copy()
        take_languages(new, old)
        _goes_on(folder, old, OmegaConf.create(to_yaml(new)))


def _goes_on(folder: Path, old: Any, new: Any) -> bool:
    """Whether the run of the config `old` is made longer by `new`; refuses all else that is another one."""
    length = _LENGTH if _is_longer(old, new) else ()
    before, after = _settled(old, length), _settled(new, length)
    if before == after:
        if length and is_of_ablation(folder):
            raise UserError(
                f"{folder}: a longer run is another point of the ablation; sweep {' or '.join(_LENGTH)} there, or give "
                "this run another `name=`"
            )
        return bool(length)
    changes = [line for line in difflib.unified_diff(before, after, lineterm="", n=1) if line[:3] not in ("---", "+++")]
    shown = "\n    ".join(changes[:30])
    raise UserError(
        f"{folder} holds a run of another config (- there, + now):\n    {shown}\n"
        "  Give this run another `name=`, or delete the folder to start over"
    )


def _is_longer(old: Any, new: Any) -> bool:
    """Whether a run is asked for more steps or epochs, each of them as it would have been."""
    if not _of_any_length(new):
        return False
    pairs = [(OmegaConf.select(old, key), OmegaConf.select(new, key)) for key in _LENGTH]
    pairs = [tuple(math.inf if value in (None, -1) else value for value in pair) for pair in pairs]
    return any(before != after for before, after in pairs) and all(before <= after for before, after in pairs)


def _of_any_length(config: Any) -> bool:
    """Whether the schedule's rate at a step does not depend on how long the run is: of ours by name, else where it does
    not ask for that."""
    path = str(OmegaConf.select(config, "schedule._target_"))
    if path.rpartition(".")[2] in OF_ANY_LENGTH:
        return OmegaConf.select(config, "schedule.warmup_share") is None
    try:
        within = OmegaConf.select(config, "schedule.schedulers")  # that may ask for it
        return not within and not path.startswith("voxzoo.") and not takes_length(locate(path, allow_list(config)))
    except (ImportError, PermissionError):
        return False


def what_counts(config: DictConfig) -> list[str]:
    """What of a composed config decides what is learned, as lines of YAML: not where a run lies, how it is executed and
    shown, nor the parts that its task does not have."""
    return _settled(OmegaConf.create(to_yaml(config)))


def _settled(config: Any, free: Sequence[str] = ()) -> list[str]:
    """What may not change in a run, as lines of YAML."""
    _leave_out_unused(config)
    stages = [stage.set for stage in (config.get("stages") or {}).values() if stage and stage.get("set")]
    for settings, keys in ((config, (*_FREE, *free)), *((settings, _FREE) for settings in stages)):
        for key in keys:
            owner = OmegaConf.select(settings, key.rpartition(".")[0]) if "." in key else settings
            if owner is not None:
                owner.pop(key.rpartition(".")[2], None)
    content = OmegaConf.create(
        _anywhere(OmegaConf.to_container(config), str(Path(str(config.get("stage_dir"))).parent))
    )
    assert isinstance(content, DictConfig)
    for key in _PLACE:
        content.pop(key, None)
    return present_path(OmegaConf.to_yaml(content, sort_keys=True)).splitlines()


def _leave_out_unused(config: Any) -> None:
    """Take out the roles that a task does not have, what the data have for them, and a mixture of nothing, which runs
    of before did not have. One of stages may have any role."""
    if "mix" in (config.get("data") or {}) and OmegaConf.select(config, "data.mix.by") is None:
        config.data.pop("mix")
    task = config.get("task")
    if config.get("stages") or not isinstance(task, DictConfig):
        return
    for role in ROLES:
        if role != "data" and role not in task:
            config.pop(role, None)
            if isinstance(config.get("data"), DictConfig):
                config.data.pop(role, None)


def _anywhere(value: Any, folder: str) -> Any:
    """A value of a config in which paths inside the run say so: a run may be moved or renamed."""
    if isinstance(value, dict):
        return {key: _anywhere(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_anywhere(one, folder) for one in value]
    if isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
        return f"(run){value.removeprefix(folder)}"
    return value


def take_languages(config: DictConfig, old: Any) -> None:
    """Fill in the languages that the run of the config `old` found in its data, where a config leaves them to that."""
    if "tokenizer" in config.task and not config.tokenizer.languages:
        config.tokenizer.languages = OmegaConf.select(old, "tokenizer.languages") or []


def forget_failed_start(folder: Path, config: DictConfig) -> None:
    """Give a folder free in which another config failed before it trained anything: what it left is a config and a
    vocabulary. Call it before the vocabulary is read."""
    path = folder / "config.yaml"
    if not path.exists() or not _is_failed_start(folder):
        return
    old, new = load_map(path, DAMAGED), config.copy()
    take_languages(new, old)
    if _settled(old.copy()) != _settled(OmegaConf.create(to_yaml(new))):
        model = OmegaConf.select(old, "tokenizer.model")
        if model and Path(str(model)).parent == folder:
            Path(str(model)).unlink(missing_ok=True)
        (folder / SKIPPED).unlink(missing_ok=True)
        path.unlink()


def _is_failed_start(folder: Path) -> bool:
    """Whether a folder holds nothing of a training."""
    return not {item.name for item in folder.iterdir()} - _LEFT_BY_A_START
