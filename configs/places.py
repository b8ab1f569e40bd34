"""What of other libraries a config may name, and where what it names may write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

_OPTIM = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD", "SparseAdam",
)  # fmt: skip
_SCHEDULE = (
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
    "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
)  # fmt: skip
_CALLBACKS = (
    "DeviceStatsMonitor", "EMAWeightAveraging", "EarlyStopping", "GradientAccumulationScheduler", "LearningRateMonitor",
    "ModelSummary", "RichModelSummary", "RichProgressBar", "StochasticWeightAveraging", "TQDMProgressBar", "Timer",
    "WeightAveraging",
)  # fmt: skip
_LOGGER = ("CSVLogger", "TensorBoardLogger")
_TRAINER = (
    "Trainer", "DDPStrategy", "FSDPStrategy", "ModelParallelStrategy", "SingleDeviceStrategy", "AdvancedProfiler",
    "PassThroughProfiler", "PyTorchProfiler", "SimpleProfiler",
)  # fmt: skip

OF_LIBRARIES = {
    "torch.optim.lr_scheduler": frozenset(_SCHEDULE),
    "torch.optim": frozenset(_OPTIM),
    "lightning.pytorch.callbacks": frozenset(_CALLBACKS),
    "lightning.pytorch.loggers": frozenset(_LOGGER),
    "lightning.pytorch.trainer": frozenset(_TRAINER),
    "lightning.pytorch.strategies": frozenset(_TRAINER),
    "lightning.pytorch.profilers": frozenset(_TRAINER),
    "torch.nn.modules": None,
    "torchaudio.transforms": None,
}
"""Module that defines a class (or lies below) -> names of those that a config may name; None: all of them, which
compute and do nothing else. Which of them may stand at a key is a matter of its type (`build`)."""


def is_listed(found: Any) -> bool:
    """Whether a class of torch, torchaudio or lightning may be named in a config that nobody vouched for. `found`: any
    callable of theirs."""
    for module, names in OF_LIBRARIES.items():
        if found.__module__ == module or found.__module__.startswith(f"{module}."):
            return names is None or found.__name__ in names
    return False


# What writes files besides the run itself, and the arguments that say where.
_WRITERS = ("logger", "callbacks", "trainer")
_FOLDERS = ("save_dir", "log_dir", "root_dir", "dirpath", "default_root_dir", "path_to_export_trace")
_NAMES = ("name", "version", "sub_dir", "filename", "experiment_name")
_RUN = ("root", "name", "run_dir", "stage_dir", "cache_dir")


def faults_of_places(config: DictConfig, trusted: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Paths that lead out of the run folder, or to a protocol of fsspec, which Lightning opens its paths with.

    Args:
        config: composed.
        trusted: prefixes of class paths beside the shipped ones, which may write where they say.

    Yields:
        Key and what is wrong with its value.
    """
    for key in dict.fromkeys((*_RUN, *_CHOSEN)):
        value = _at(config, key)
        if isinstance(value, str) and _is_chain(value):
            yield key, f"{value!r}: expected a folder; `::` and `://` mean something else to what opens it"
    run = _value(config, "run_dir")
    for root in _WRITERS:
        yield from _within(_value(config, root), root, str(run), trusted)


_CHOSEN = ("root", "run_dir", "stage_dir", "cache_dir", "data.cache_dir", "data.corpus.root")


def faults_of_folders(config: DictConfig, origins: Any, own_cache: str) -> Iterator[tuple[str, str]]:
    """Folders to write in that a file of somebody's choices names, and that lie neither below the current folder nor in
    what the command line chose.

    Args:
        config: composed.
        origins: where its keys were written.
        own_cache: the cache of this machine.

    Yields:
        Key and what is wrong with its value.
    """
    files = {key: origins.exactly(key) for key in _CHOSEN}
    foreign = [key for key, origin in files.items() if origin is not None and origin.is_foreign]
    if not foreign:
        return
    said = [_value(config, key) for key in ("root", "cache_dir") if key not in foreign]
    allowed = [os.getcwd(), own_cache, *(value for value in said if isinstance(value, str))]
    for key in foreign:
        value = _at(config, key)
        if isinstance(value, str) and not any(_is_below(value, folder) for folder in allowed):
            yield key, f"{value!r}: a file chooses no folder elsewhere; if it may, say {key}={value} yourself"


def _within(node: Any, path: str, run: str, trusted: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _within(_value(node, index), f"{path}[{index}]", run, trusted)
    if not isinstance(node, DictConfig):
        return
    if trusted and str(_value(node, "_target_") or "").startswith(trusted):
        return
    for key in node:
        value, place = _value(node, key), f"{path}.{key}"
        if not isinstance(value, str):
            yield from _within(value, place, run, trusted)
        elif key in (*_FOLDERS, *_NAMES) and _is_chain(value):
            yield place, f"{value!r}: expected a path; `::` and `://` mean something else to what opens it"
        elif key in _FOLDERS and not _is_below(value, run):
            yield place, f"{value!r}: expected a folder in the run folder, such as ${{run_dir}}/logs"
        elif key in _NAMES and (os.path.isabs(value) or ".." in value.replace("\\", "/").split("/")):
            yield place, f"{value!r}: expected a name that leads out of no folder"


def _at(config: Any, path: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for key in path.split("."):
        config = _value(config, key) if isinstance(config, DictConfig) else None
    return config


def _value(node: Any, key: Any) -> Any:
    try:
        return node.get(key) if isinstance(node, DictConfig) else node[key]
    except OmegaConfBaseException:
        return None  # reported where it stands


def _is_chain(path: str) -> bool:
    return "::" in path or "://" in path


def _is_below(path: str, folder: str) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(os.path.join(outer, ""))
