"""Values of the right type that no run can be trained with.

Bounds of parts, data, optimizers and checkpoints are written where these are made, and are asked there. The trainer is
Lightning's: it names few of its bounds, and those when the run begins, so they are a table here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..components.errors import UserError
from .build import build
from .followers import faults_of_modes
from .optimisation import told_as_users, try_optimizer, try_schedule
from .signatures import parameters_of
from .targets import allow_list, class_of
from .values import value_of

_SOME_STEPS = 1000  # of a run that is counted in epochs

Found = Iterator[tuple[str, str]]
"""(key, what is wrong with its value) each."""


@dataclass(frozen=True)
class Bound:
    """What a number must be.

    Attributes:
        least: the smallest value.
        meaning: of the number, or of what stands for it.
        above: whether it must be more than `least`.
        endless: whether -1 stands for no limit.
        most: the largest value, None for any.
    """

    least: int
    meaning: str
    above: bool = False
    endless: bool = False
    most: int | None = None

    def problem(self, value: float) -> str | None:
        small = not (value > self.least or (value == self.least and not self.above))
        large = math.isinf(value) if self.most is None else value > self.most
        if (not small and not large) or (self.endless and value == -1):
            return None
        wanted = f"more than {self.least}" if self.above else f"at least {self.least}"
        if large:
            wanted = "a finite number" if self.most is None else f"at most {self.most}"
        return f"{value!r}: expected {wanted}{', or -1 for no limit' if self.endless else ''} ({self.meaning})"


_PROCESSES = 4096  # more than any machine runs side by side


BOUNDS = {
    "seed": Bound(0, "what random numbers begin with", most=2**64 - 1),
    "max_skipped_steps": Bound(0, "steps in a row without a finite gradient before the run stops"),
    "stage_jobs": Bound(1, "stages side by side", most=_PROCESSES),
    "threads": Bound(1, "threads of one process; null leaves it to torch", most=_PROCESSES),
    "checkpoint.keep_best": Bound(0, "best checkpoints; 0 keeps none"),
    "data.max_tokens": Bound(1, "tokens of a target text; null takes up to 4,096"),
    "data.min_seconds": Bound(0, "seconds; 0 takes any"),
    "data.num_workers": Bound(0, "processes that read data; 0 reads in the training process", most=_PROCESSES),
    "optim.lr": Bound(0, "a rate of 0 trains nothing; freeze.ROLE=true freezes a part", above=True),
    "task.discriminator_lr": Bound(0, "freeze.ROLE=true freezes a part", above=True),
    "trainer.accumulate_grad_batches": Bound(1, "batches of each step"),
    "trainer.check_val_every_n_epoch": Bound(1, "epochs; null counts steps"),
    "trainer.gradient_clip_val": Bound(0, "the norm to clip gradients at; 0 or null clips nothing"),
    "trainer.limit_val_batches": Bound(0, "batches, or a share of them; 0 leaves validation out"),
    "trainer.log_every_n_steps": Bound(1, "steps"),
    "trainer.max_epochs": Bound(1, "epochs", endless=True),
    "trainer.max_steps": Bound(1, "steps", endless=True),
    "trainer.num_nodes": Bound(1, "machines"),
    "trainer.num_sanity_val_steps": Bound(0, "batches of a validation before training", endless=True),
}


def faults_of_values(config: DictConfig, faulty: Callable[[str], bool]) -> Found:
    """All values that are out of bounds.

    Args:
        config: composed.
        faulty: whether something is wrong already at a key or below: what stands there is not asked again.
    """
    for key, bound in BOUNDS.items():
        value = value_of(config, key)
        if _is_number(value) and (problem := bound.problem(value)):
            yield key, problem
    for key in _NUMBERS:
        for path in _infinite(value_of(config, key), key):
            if path not in BOUNDS:
                yield path, f"{value_of(config, path)!r}: expected a finite number"
    made = {"data": _make_data, "checkpoint": _make_checkpoints}
    for key, problem in {
        "trainer.limit_train_batches": _counted(value_of(config, "trainer.limit_train_batches"), "of the batches"),
        "trainer.val_check_interval": _interval(config),
        "trainer.gradient_clip_algorithm": _algorithm(value_of(config, "trainer.gradient_clip_algorithm")),
        "trainer.accelerator": _accelerator(value_of(config, "trainer.accelerator")),
        "trainer.devices": device_problem(
            value_of(config, "trainer.devices", 1), value_of(config, "trainer.accelerator", "auto")
        ),
        "trainer.overfit_batches": _overfit(value_of(config, "trainer.overfit_batches")),
        "trainer.use_distributed_sampler": _sampler(value_of(config, "trainer.use_distributed_sampler")),
    }.items():
        if problem and not faulty(key):
            yield key, problem
    for root, make in made.items():
        if not faulty(root):
            yield from make(config)
    yield from _make_steps(config, faulty)
    yield from _make_callbacks(config, faulty)
    yield from ((key, problem) for key, problem in faults_of_modes(config) if not faulty(key))


_NUMBERS = ("optim", "schedule", "trainer")


def _infinite(node: Any, path: str) -> Iterator[str]:
    """Paths of the numbers of a node that are not finite."""
    if isinstance(node, float) and not math.isfinite(node):
        yield path
    elif isinstance(node, DictConfig):
        for key in node:
            child = node._get_node(key)
            if child is not None and not child._is_missing() and not child._is_interpolation():
                yield from _infinite(node[key], f"{path}.{key}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The trainer


def _counted(value: Any, of: str) -> str | None:
    """A whole number counts, a fraction is a share."""
    if not _is_number(value) or (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        return None
    return f"{value!r}: expected a whole number from 1 on, or a share {of} above 0 and up to 1.0"


def _interval(config: DictConfig) -> str | None:
    value = value_of(config, "trainer.val_check_interval")
    shares = value_of(config, "trainer.check_val_every_n_epoch", 1) is not None
    if not shares and isinstance(value, float):
        return f"{value!r}: expected a whole number of steps, for trainer.check_val_every_n_epoch=null counts steps"
    if not shares and isinstance(value, int) and not isinstance(value, bool):
        return Bound(1, "steps between validations; trainer.limit_val_batches=0 leaves them out").problem(value)
    return _counted(value, "of an epoch")


def _algorithm(value: Any) -> str | None:
    return None if value in (None, "norm", "value") else f"{value!r}: expected norm or value"


def _accelerator(value: Any) -> str | None:
    known = ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())]
    if not isinstance(value, str) or value in known:
        return None
    return f"{value!r}: there is no such accelerator; there are: {', '.join(known)}"


def device_problem(devices: Any, accelerator: Any) -> str | None:
    """What is wrong with `trainer.devices` on an accelerator; None where nothing is."""
    if accelerator == "cpu":
        if _devices(devices) in (None, -1) or isinstance(_devices(devices), list):
            return f"{_shown(devices)}: expected a number of processes from 1 on, or auto, on a CPU"
        return None
    if _devices(devices) is not None:
        return None
    return f"{_shown(devices)}: expected a number from 1 on, -1 or auto for all, or a list of the numbers of devices"


def _shown(value: Any) -> str:
    return repr(list(value) if OmegaConf.is_list(value) else value)


def _devices(value: Any) -> Any:
    """A count, a list of numbers, -1 or "auto" as Lightning reads them; None where it cannot."""
    if isinstance(value, str) and "," in value:
        value = [part.strip() for part in value.split(",") if part]
        value = [int(part) if part.isdigit() else part for part in value]
    if isinstance(value, str):
        return value if value == "auto" else _devices(int(value)) if re.fullmatch(r"\s*-?\d+\s*", value) else None
    if OmegaConf.is_list(value) or isinstance(value, list | tuple):
        numbers = [one for one in value if isinstance(one, int) and not isinstance(one, bool) and one >= 0]
        return numbers if numbers and len(numbers) == len(value) == len(set(numbers)) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and (value >= 1 or value == -1) else None


def count_devices(devices: Any, here: int) -> int:
    """How many devices `trainer.devices` stands for where `here` are there (at least one is assumed)."""
    found = _devices(devices)
    if found in ("auto", -1):
        return max(here, 1)
    return len(found) if isinstance(found, list) else int(found)


def _overfit(value: Any) -> str | None:
    if not value:
        return None
    return f"{value!r}: the data module deals other batches in each epoch; for the same ones give data.train a few rows"


def _sampler(value: Any) -> str | None:
    if value is not True:
        return None
    return "true: expected false, for the data module deals the batches to the processes"


# What states its bounds itself


def _make_data(config: DictConfig) -> Found:
    """Budgets as the batches take them, and what the data module has against its settings; no file is read."""
    node, allowed = config.get("data"), allow_list(config)
    if not isinstance(node, DictConfig):
        return
    for key in ("batch_seconds", "batch_tokens", "batch_size"):
        if _is_number(node.get(key)):
            trial = {"_target_": "voxzoo.datamodules.batching.BatchSampler", "seconds": [0.0], "tokens": [1]}
            yield from _tried(lambda trial=trial, key=key: build({**trial, key: node[key]}), config, "data")
    found, corpus = class_of(node, config), value_of(config, "data.corpus._target_")
    if found is None or not found.__module__.startswith("voxzoo."):
        return
    if corpus is not None and not str(corpus).startswith("voxzoo."):
        return
    given: dict[str, Any] = {"tokenizer": None, "frontend": None}
    said = [corpus, node.get("train"), node.get("valid"), *(node.get("test") or {}).values()]
    if "train" in parameters_of(found)[0] and not any(said):
        given["train"] = "-"  # a config may be looked at before there are data
    yield from _tried(lambda: build(node, allowed=allowed, **given), config, "data")


def _make_checkpoints(config: DictConfig) -> Found:
    settings: Any = OmegaConf.to_container(config.get("checkpoint") or OmegaConf.create(), resolve=True)
    node = {"_target_": "voxzoo.tasks.checkpoints.files.Checkpointer", "folder": "checkpoints", **settings}
    yield from _tried(lambda: build(node), config, "checkpoint")


def _make_steps(config: DictConfig, faulty: Callable[[str], bool]) -> Found:
    """What optimizer and schedule have against their values, and the schedule against the length of the run."""
    optim, schedule, allowed = config.get("optim"), config.get("schedule"), allow_list(config)
    optimizer: Any = torch.optim.SGD([torch.nn.Parameter(torch.ones(2)) for _ in range(2)], lr=0.1)
    rate = value_of(config, "optim.lr")
    if not faulty("optim") and _names(optim) and not (_is_number(rate) and BOUNDS["optim.lr"].problem(rate)):
        made = []
        yield from _tried(lambda: made.append(try_optimizer(optim, allowed)), config, "optim")
        optimizer = made[0] if made else None
    steps, epochs = (value_of(config, f"trainer.max_{unit}") for unit in ("steps", "epochs"))
    total = steps if isinstance(steps, int) and steps > 0 else None if epochs == -1 else _SOME_STEPS
    if optimizer is not None and not faulty("schedule") and _names(schedule):
        yield from _tried(lambda: try_schedule(schedule, optimizer, total, allowed), config, "schedule")


def _make_callbacks(config: DictConfig, faulty: Callable[[str], bool]) -> Found:
    """What callbacks have against their values."""
    callbacks = config.get("callbacks")
    for name, node in callbacks.items() if isinstance(callbacks, DictConfig) else ():
        key = f"callbacks.{name}"
        if faulty(key):
            continue
        if not _names(node):
            yield key, "expected a map with _target_, the class of a Lightning callback"
            continue
        yield from _tried(lambda node=node: _try_callback(node, allow_list(config)), config, key)


def _try_callback(node: DictConfig, allowed: tuple[str, ...]) -> None:
    with told_as_users(node):
        made = build(node, allowed=allowed, wanted=Callback)
    if not isinstance(made, Callback):
        raise UserError(f"{type(made).__name__} is not a lightning.pytorch.callbacks.Callback")


def _names(node: Any) -> bool:
    return isinstance(node, DictConfig) and isinstance(node.get("_target_"), str)


def _tried(make: Callable[[], Any], config: DictConfig, root: str) -> Found:
    """What a constructor has against its values, at the key that its message begins with."""
    try:
        make()
    except (UserError, ValueError) as error:
        message = " ".join(str(error).split())
        begin = re.match(r"([a-z_]+(?:\.[a-z_]+)*)(?:=| )(.+)", message)
        for key in (begin[1], f"{root}.{begin[1]}") if begin else ():
            if key == root or (key.startswith(f"{root}.") and _has(config, key)):
                yield key, begin[2]  # pyright: ignore[reportOptionalSubscript]
                return
        yield root, message
    except (OmegaConfBaseException, RuntimeError):
        return  # no word on a value: reported where it stands, or of another device


def _has(config: DictConfig, key: str) -> bool:
    head, _, tail = key.rpartition(".")
    owner = OmegaConf.select(config, head)
    return isinstance(owner, Mapping | DictConfig) and tail in owner
