"""Checks a composed config against the signatures of what it names, before anything is built.

The constructor signature is the schema. Every fault is found in one pass and reported with its full path.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..components.errors import UserError
from .build import build
from .choices import belongs_to, choose
from .compose import compose, own_cache
from .inputs import missing_inputs
from .origins import Origins
from .places import faults_of_folders, faults_of_places
from .pretrained import KEY
from .signatures import FACTORIES, parameters_of, value_class
from .targets import allow_list, locate, vouched

LORA = "voxzoo.components.layers.lora.LoRA"
"""The schema of `lora.ROLE`."""

# Keys of the root config that are built: the rest are settings of the run.
BUILT = ("task", "data", "optim", "schedule", "trainer", "logger", "callbacks")

# Arguments of a data module that code gives.
_GIVEN = ("tokenizer", "frontend")

# Settings of the run that no signature describes.
_SETTINGS: dict[str, Any] = {
    "name": str,
    "root": str,
    "run_dir": str,
    "stage_dir": str,
    "cache_dir": str,
    "compat": str | None,
    "model_type": str | None,
    "allow": list[str] | str | None,
    "callbacks": dict | None,
    "seed": int,
    "max_skipped_steps": int,
    "threads": int | None,
    "stage_jobs": int,
    "compile": bool | str,
    "activation_checkpointing": bool | dict[str, bool],
    "freeze": dict[str, bool | None],
    "from": str | None,
    "init": str | dict[str, str | None],
    "checkpoint.every_steps": int,
    "checkpoint.keep_best": int,
    "checkpoint.monitor": str,
    "checkpoint.mode": Literal["min", "max"],
    "checkpoint.copy_frozen": bool,
}


@dataclass(frozen=True)
class Fault:
    """One mistake: where it stands and what to do."""

    path: str
    message: str
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.origin})" if self.origin else "")


def foreign_folders(config: DictConfig, origins: Origins) -> list[Fault]:
    """Folders to write in that a folder of choices beside the shipped ones names, where it may not."""
    if len(origins.folders) == 1:
        return []
    return [Fault(*each) for each in faults_of_folders(config, origins, own_cache())]


def require_valid(config: DictConfig, origins: Origins | None = None, *, inputs: bool = False) -> None:
    """Raise one UserError that lists every fault, with the file and line of each where `origins` are given.

    Args:
        inputs: whether files and runs that the config names have to be there.
    """
    found = check(config)
    if origins is not None:
        found += foreign_folders(config, origins)
    if inputs:
        found += [Fault(*each) for each in missing_inputs(config) if each[0] not in {fault.path for fault in found}]
    faults = [_placed(fault, origins) for fault in found]
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the config:"
        raise UserError("\n  ".join([count, *map(str, faults)]))


def _placed(fault: Fault, origins: Origins | None) -> Fault:
    """A fault with where its key was written, and how to leave out what an experiment sets."""
    found = origins.of(fault.path) if origins is not None else None
    if found is None:
        return fault
    at = origins.exactly(fault.path) if origins is not None else None
    leave = f"; ~{at.key} leaves it out" if at is not None and at.is_extra and "." in fault.path else ""
    return replace(fault, origin=f"{found}{leave}")


@functools.cache
def _roles() -> dict[str, type]:
    from ..components.roles import ROLES  # with torch, for which composing and `--help` do not wait

    return ROLES


def check(config: DictConfig) -> list[Fault]:
    """Return all faults of a composed config: unknown keys, wrong types or choices, values out of bounds,
    missing values, wrong slots."""
    from .bounds import faults_of_values

    walker = _Walker(config)
    known = sorted(set(map(str, compose())))
    for key in config:
        if str(key) not in known:
            lost = "; does the file of the experiment begin with `# @package _global_`?" if key == "experiment" else ""
            walker.add(str(key), f"unknown key{lost or _near(str(key), known)}")
    for key, hint in _SETTINGS.items():
        problem = _mismatch(OmegaConf.select(config, key), hint)
        if problem:
            walker.add(key, problem)
    for key in config.get("checkpoint") or ():
        if f"checkpoint.{key}" not in _SETTINGS:
            names = [name.partition(".")[2] for name in _SETTINGS if "." in name]
            walker.add(f"checkpoint.{key}", f"unknown key{_near(str(key), names)}")
    if (problem := _misplaced(config.get("name"))) and not walker.has_fault("name"):
        walker.add("name", problem)
    for key in BUILT:
        if key in config and not walker.has_fault(key):
            walker.visit(key, walker.raw(config, key), _roles().get(key))
    walker.lora(config.get("lora"))
    for role in _roles():  # a part no task uses is still checked, so that a typo in it is not silent
        if role in config:
            walker.visit(role, walker.raw(config, role), _roles()[role])
    for path, message in faults_of_places(config, vouched(walker.allowed)):
        if not walker.has_fault(path):
            walker.add(path, message)
    for path, message in list(faults_of_values(config, walker.has_fault)):
        if not any(fault.path == path for fault in walker.faults):
            walker.add(path, message)
    _of_task(walker)
    return list(dict.fromkeys(walker.faults))


def _misplaced(name: Any) -> str | None:
    """What keeps a name from being that of a folder below root, which alone is written and emptied."""
    if name == "":
        return "is empty: expected the name of the run folder, which is root/name"
    parts = PurePath(name).parts if isinstance(name, str) else ()
    if isinstance(name, str) and (PurePath(name).is_absolute() or ".." in parts or not parts or "\0" in name):
        return f"{name!r}: expected a folder below root, which is root/name; root= chooses another place"
    return None


def _of_task(walker: _Walker) -> None:
    """What a task class itself has against a config (`faults`), such as a strategy it cannot train under."""
    name = OmegaConf.select(walker.config, "task._target_")
    try:
        found = locate(str(name), walker.allowed)
    except (ImportError, PermissionError):
        return  # reported where it stands
    if any(fault.path in ("freeze", "lora") for fault in walker.faults):
        return  # no maps: nothing more can be said about the parts
    for path, message in getattr(found, "faults", lambda config: [])(walker.config):
        if not walker.has_fault(path):
            walker.add(path, message)
    _of_parts(walker, str(name).rpartition(".")[2], getattr(found, "roles", ()))


def _of_parts(walker: _Walker, task: str, roles: Sequence[str]) -> None:
    """Settings of the run that are about parts of the task."""
    import torch

    from ..components.layers.blocks import faults_of_blocks

    config = walker.config
    there = [role for role in roles if OmegaConf.select(config, f"task.{role}._target_") is not None]

    def part_of(role: str) -> Any:
        if walker.has_fault(role):
            return None
        try:
            with torch.device("meta"):
                return build(config[role], allowed=walker.allowed)
        except (UserError, OmegaConfBaseException):
            return None  # a combination of values, which is reported where the task is built

    if isinstance(config.get("activation_checkpointing"), bool | DictConfig):
        for path, message in faults_of_blocks(config, there, part_of):  # pyright: ignore[reportArgumentType]
            walker.add(path, message)
    frozen = config.get("freeze") or {}
    for role, on in frozen.items():
        if on and there and role not in there:
            walker.add(f"freeze.{role}", f"{task} has no such part{_near(str(role), there)}")


class _Walker:
    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.allowed = allow_list(config)
        self.faults: list[Fault] = []
        self.seen: set[str] = set()

    def add(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))

    def has_fault(self, path: str) -> bool:
        """Whether something is wrong at a path or below."""
        return any(fault.path == path or fault.path.startswith(f"{path}.") for fault in self.faults)

    def raw(self, parent: DictConfig | ListConfig, key: Any) -> Any:
        """The value at a key; an interpolation of a whole node is a `_Link`, so that faults carry its source's path."""
        if OmegaConf.is_missing(parent, key):
            return _MISSING
        node = parent._get_node(key)
        text = node._value() if node is not None else None  # pyright: ignore[reportAttributeAccessIssue]
        if (
            isinstance(text, str)
            and text.startswith("${")
            and text.endswith("}")
            and ":" not in text
            and text.count("${") == 1
        ):
            source = text[2:-1]
            if not source.startswith("."):
                return _Link(source)
        return parent[key]

    def value(self, parent: DictConfig | ListConfig, key: Any, path: str) -> tuple[str, Any]:
        """Follow interpolations: the path where the value is written, and the value."""
        asked = path
        try:
            found = self.raw(parent, key)
            while isinstance(found, _Link):
                path = found.path
                head, _, tail = path.rpartition(".")
                owner = OmegaConf.select(self.config, head) if head else self.config
                if owner is None or tail not in owner.keys():  # noqa: SIM118 - `in` leaves out what is still ???
                    self.add(asked, f"refers to {path}, which does not exist")
                    return asked, _FAULTY
                found = self.raw(owner, tail)
            return path, found
        except OmegaConfBaseException as error:
            self.add(path, " ".join(str(error).split()))
            return path, _FAULTY

    def visit(self, path: str, node: Any, hint: Any) -> None:
        if isinstance(node, _Link):
            head, _, tail = path.rpartition(".")
            owner = OmegaConf.select(self.config, head) if head else self.config
            path, node = self.value(owner, tail, path)
        if node is _FAULTY:
            return
        if isinstance(node, DictConfig) and "_target_" in node:
            self.target(path, node, hint)
        elif isinstance(node, DictConfig) and (kind := value_class(hint)) is not None:
            self.settings(path, node, f"{kind.__module__}.{kind.__qualname__}")
        elif hint is not None:
            problem = _mismatch(node, hint)
            if problem:
                self.add(path, problem)
        elif isinstance(node, DictConfig):
            for key in node:
                inner_path, inner = self.value(node, key, f"{path}.{key}")
                self.visit(inner_path, inner, None)

    def lora(self, roles: Any) -> None:
        if not isinstance(roles, DictConfig | None):
            self.add("lora", f"{roles!r} is not a map of roles to settings")
            return
        for role, node in (roles or {}).items():
            path = f"lora.{role}"
            known = [name for name in _roles() if name != "data"]
            if role not in known:
                self.add(path, f"there is no such role{_near(str(role), known)}")
            elif isinstance(node, DictConfig):
                self.settings(path, node, LORA)
            elif node is not None:
                self.add(path, f"{node!r} is not a map of settings such as {{targets: {{q: '*attention.q'}}}}")

    def settings(self, path: str, node: DictConfig, kind: str) -> None:
        """A map that says no class, where its place does."""
        settings = OmegaConf.merge({"_target_": kind}, node)
        assert isinstance(settings, DictConfig)
        settings._set_parent(node._get_parent())
        self.target(path, settings, None)

    def target(self, path: str, node: DictConfig, hint: Any) -> None:
        name = node.get("_target_")
        if name is None:
            if hint is not None and not _optional(hint) and path.partition(".")[0] not in _roles():
                self.add(path, "is needed here, but is none")
            return
        if not isinstance(name, str):
            self.add(f"{path}._target_", f"{name!r} is not a class path")
            return
        try:
            found = locate(name, self.allowed)
        except PermissionError as error:
            self.add(f"{path}._target_", f"{error}, or by allow=[{name.split('.')[0]}]")
            return
        except ImportError as error:
            self.add(f"{path}._target_", str(error))
            return
        wanted = _classes(hint)
        if wanted and isinstance(found, type) and not issubclass(found, tuple(wanted)):
            self.add(
                path,
                f"{found.__name__} is not a {' or '.join(w.__name__ for w in wanted)}: the part is in the wrong slot"
                + belongs_to(found),
            )
            return
        if path in self.seen:
            return
        self.seen.add(path)
        left_out = sorted(getattr(found, "__abstractmethods__", ())) if wanted else []
        if left_out:
            self.add(path, f"{found.__name__} lacks {', '.join(left_out)}, which every {wanted[0].__name__} has")
        parameters, hints = parameters_of(found)
        if path == "data":
            for key in _GIVEN:
                if not any(name == key or one.kind is one.VAR_KEYWORD for name, one in parameters.items()):
                    self.add(
                        path,
                        f"{found.__name__} takes no {key!r}, which it is given: add `{key}=None` to its"
                        " constructor, or take `**options` and hand them to `UtteranceData`",
                    )
        later = path in FACTORIES  # called with the parameters or the optimizer first, maybe with the run's length
        partial = bool(node.get("_partial_")) and not later
        if partial and (path in BUILT or isinstance(hint, type)):
            self.add(f"{path}._partial_", f"expected a {found.__name__}, not what makes one: leave it out")
        given = ("self", *([*list(parameters)[:1], "total_steps"] if later else []))
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key in node:
            key = str(key)
            if key.startswith("_") or (key == KEY and path in _roles() and path != "data"):
                continue
            inner_path = f"{path}.{key}"
            if key not in parameters:
                if not accepts_any:
                    names = [n for n in parameters if n != "self"]
                    self.add(inner_path, f"{found.__name__} has no such parameter{_near(key, names)}")
                continue
            inner_path, inner = self.value(node, key, inner_path)
            if inner is _MISSING:
                self.add(inner_path, "a value is needed (???)")
            elif inner is not _FAULTY:
                self.visit(inner_path, inner, hints.get(key, Any))
                absent = isinstance(inner, DictConfig) and "_target_" in inner and inner.get("_target_") is None
                if absent and not _optional(hints.get(key, Any)):
                    self.add(inner_path, f"{found.__name__} needs a {key}, but it is none")
        if not partial:
            for key, parameter in parameters.items():
                required = parameter.default is parameter.empty and parameter.kind not in (
                    parameter.VAR_KEYWORD,
                    parameter.VAR_POSITIONAL,
                )
                if required and key not in node.keys() and key not in given:  # noqa: SIM118
                    self.add(f"{path}.{key}", f"{found.__name__} needs a value for this")


@dataclass(frozen=True)
class _Link:
    path: str


_MISSING = object()
_FAULTY = object()


def _near(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(choices)}" if choices else ""


def _optional(hint: Any) -> bool:
    return hint is Any or hint is None or (_is_union(hint) and type(None) in get_args(hint))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _classes(hint: Any) -> list[type]:
    """The role classes among a hint's alternatives."""
    options = get_args(hint) if _is_union(hint) else (hint,)
    roles = tuple(_roles().values())
    return [option for option in options if isinstance(option, type) and issubclass(option, roles)]


def _mismatch(value: Any, hint: Any) -> str | None:
    """None where the value fits the hint, else what was expected."""
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar):
        return None
    if isinstance(value, DictConfig) and "_target_" in value:
        return None  # checked as a target of its own
    origin = get_origin(hint)
    if _is_union(hint):
        problems = [_mismatch(value, option) for option in get_args(hint)]
        if None in problems:
            return None
        plain = [p for p, option in zip(problems, get_args(hint)) if option is not type(None) and p]
        return " or ".join(dict.fromkeys(plain))
    if origin is Literal:
        choices = get_args(hint)
        if value in choices:
            return None
        near = _near(str(value), [str(c) for c in choices]) if isinstance(value, str) else ""
        return f"{value!r} is not one of {', '.join(map(repr, choices))}" + (near if "did you mean" in near else "")
    if hint is type(None):
        return None if value is None else f"{value!r} is not null"
    if hint is bool:
        return None if isinstance(value, bool) else f"{value!r} is not true or false"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else f"{value!r} is not a whole number"
    if hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        return None if ok else f"{value!r} is not a number"
    if hint is str:
        return None if isinstance(value, str) else f"{value!r} is not text"
    if origin in (list, tuple, Sequence, set, frozenset) or hint in (list, tuple):
        if not isinstance(value, ListConfig | list | tuple):
            return f"{value!r} is not a list"
        inner = [a for a in get_args(hint) if a is not Ellipsis]
        if origin is tuple and len(inner) > 1 and Ellipsis not in get_args(hint):
            if len(inner) != len(value):
                return f"{list(value)!r} has {len(value)} entries, not {len(inner)}"
            problems = [_mismatch(v, h) for v, h in zip(value, inner)]
        else:
            problems = [_mismatch(v, inner[0]) for v in value] if inner else []
        return next((p for p in problems if p), None)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, DictConfig | dict):
            return f"{value!r} is not a map of names to values"
        inner = get_args(hint)
        problems = [_mismatch(v, inner[1]) for v in value.values()] if len(inner) == 2 else []
        return next((p for p in problems if p), None)
    if isinstance(hint, type) and isinstance(value, DictConfig | ListConfig | str | int | float | bool | type(None)):
        if value is None:
            return f"null is not a {hint.__name__}"
        if issubclass(hint, tuple(_roles().values())):
            return f"{value!r} is not a {hint.__name__}{choose(hint, value)}"
        if is_dataclass(hint):
            return f"{value!r} is not a map of settings of {hint.__name__}"
        if isinstance(value, DictConfig) and hint is not object and not typing.is_typeddict(hint):
            return f"a map of settings is no {hint.__name__}: say its class, _target_"
    return None
