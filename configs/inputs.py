"""Files that a config names and that a run reads first: said with the other faults where they are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ..components.nearby import nearest_path
from .values import value_of

_MANIFESTS = ("data.train", "data.valid")


def missing_inputs(config: DictConfig) -> Iterator[tuple[str, str]]:
    """(key, what is missing) of manifests, units and runs to begin with that are not there.

    A run that has trained has all its weights, and one that is done reads nothing: they are not asked again. What an
    earlier stage makes comes later.
    """
    folder = Path(str(value_of(config, "run_dir")))
    if (folder / "done.json").exists():
        return
    if str(value_of(config, "data._target_")).startswith("voxzoo."):
        test = value_of(config, "data.test")
        keys = [*_MANIFESTS, *(f"data.test.{name}" for name in (test if isinstance(test, DictConfig) else ()))]
        for key in keys:
            for path in _missing(config, key):
                yield key, f"{path}: no such manifest{_near(path)}"
        for path in _missing(config, "data.units"):
            yield "data.units", f"{path}: no such file; `voxzoo units extract` writes it{_near(path)}"
    init = value_of(config, "init")
    if (folder / "checkpoints" / "last.ckpt").exists():
        return
    for key in ("init",) if isinstance(init, str) else [f"init.{role}" for role in init or ()]:
        source = value_of(config, key)
        if not isinstance(source, str) or _is_of_a_stage(config, source):
            continue
        if not (Path(source).expanduser().exists() or (folder.parent / source).is_dir()):  # a name beside this run's
            yield key, f"{source}: no such run folder or checkpoint{_near(source)}"


def _near(path: str) -> str:
    near = nearest_path(path)
    return f"; did you mean {near}?" if near else ""


def _missing(config: DictConfig, key: str) -> Iterator[str]:
    """Those of the paths of a key that are not there."""
    value = value_of(config, key)
    for path in value if isinstance(value, ListConfig) else [value]:
        of_a_file = isinstance(path, str) and path and "://" not in path and not _is_of_a_stage(config, path)
        if of_a_file and not Path(path).exists():
            yield path


def _is_of_a_stage(config: DictConfig, source: str) -> bool:
    """Whether a path lies in the folder of this run's stages, or is the name of one: it may be made by then."""
    stages = value_of(config, "stage_dir")
    in_stages = isinstance(stages, str) and Path(source).is_absolute() and Path(source).is_relative_to(stages)
    return in_stages or ("/stages/" in str(value_of(config, "name")) and "/" not in source)
