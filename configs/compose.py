"""Composes a run's config from the YAML groups and command-line overrides. Hydra composes; it never launches."""

from __future__ import annotations

import copy
import difflib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..components.errors import UserError, few
from .choices import belongs
from .compat import fill_compat
from .cycles import require_no_cycles
from .environment import require_named
from .origins import ROOT as CONFIG_DIR
from .origins import Origins
from .pretrained import KEY, fill_pretrained, pretrained_sources
from .signatures import parameters_of
from .source import fill_source
from .stages import active_stages
from .targets import allow_list, locate
from .yaml_files import load_yaml, require_bounded

_PATHS = ("root", "cache_dir", "data.train", "data.valid", "data.units", "tokenizer.model", "tokenizer.characters")
_PATH_MAPS = ("data.test",)
_SHORT = {"lr": "optim.lr"}  # one word for what is said often

OmegaConf.register_new_resolver("mul", lambda *values: _product(values), replace=True)
OmegaConf.register_new_resolver("home", lambda path: os.path.expanduser(path), replace=True)


def own_cache() -> str:
    """The cache of this machine: corpora that were made here, and features. `VOXZOO_CACHE` names another."""
    return os.path.expanduser(os.environ.get("VOXZOO_CACHE", "~/.cache/voxzoo"))


OmegaConf.register_new_resolver("own_cache", own_cache, replace=True)


def _product(values: Iterable[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def compose(
    overrides: Sequence[str] = (),
    *,
    stage: str | None = None,
    config_dirs: Sequence[str] = (),
    fit: bool = True,
    note: Callable[[str], None] | None = None,
) -> DictConfig:
    """Compose `configs/config.yaml` with overrides such as `experiment=quickstart adaptor=none trainer.max_steps=10`.

    Unknown keys are kept here, so that `check` can report them together with every other fault. What an experiment sets
    beside its choices follows these: where another part is chosen, a setting that it does not have is left out.

    Args:
        overrides: Hydra override grammar, as on the command line.
        stage: name of one of `stages`: its group choices and settings are laid over the rest.
        config_dirs: further folders of YAML groups, searched before the shipped ones.
        fit: whether an experiment's settings that a chosen part does not have are left out, for which its class is
            imported. False: to look at names and places alone; a `from` that is not said is no fault there either.
        note: is given a line on each setting that was left out.

    Raises:
        UserError: an override that does not parse, or a choice that does not exist (with the nearest ones).
    """
    overrides = [_in_full(override) for override in overrides]
    words, folders = _asked(overrides, stage, config_dirs)
    config = _hydra(words, folders)
    _trust_what_is_said(config, words)
    if stage is not None:
        settings = config.stages[stage].get("set") or {}
        OmegaConf.set_struct(config, False)
        run_name = config.name
        config.stage_dir = _full(config.stage_dir)
        config = OmegaConf.merge(config, settings)
        assert isinstance(config, DictConfig)
        for word in words:  # what was said on the command line also wins over what a stage sets
            _again(config, word)
        require_no_cycles(config)
        config.name = f"{run_name}/stages/{stage}"
        config.stages = {}
        _trust_what_is_said(config, words)
    fill_source(config, lambda: _hydra((), (CONFIG_DIR,)), required=fit)
    fill_pretrained(config)
    _fit_lora(config)
    if fit:
        _leave_out_misfits(config, Origins(words, folders, stage), note)
    fill_compat(config, overrides)
    _absolute(config)
    return config


def origins(overrides: Sequence[str], *, stage: str | None = None, config_dirs: Sequence[str] = ()) -> Origins:
    """Where the keys of `compose(overrides, ...)` were written."""
    return Origins(*_asked(overrides, stage, config_dirs), stage)


def _asked(
    overrides: Sequence[str], stage: str | None, config_dirs: Sequence[str]
) -> tuple[list[str], tuple[Path, ...]]:
    """The overrides as Hydra gets them, those of a stage's choices first, and the folders that are searched."""
    searched = [Path(folder).resolve() for folder in config_dirs]
    for folder in searched:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: no such folder")
    folders = (*searched, CONFIG_DIR)
    words = _all_lenient([_in_full(override) for override in overrides], folders)
    for word in words:
        if word[0] == "~" and re.fullmatch(r"~\w+(=.*)?", word) and _group(word) in _root_keys():
            key = _group(word)
            none = f"; {key}=none chooses none" if (CONFIG_DIR / key / "none.yaml").is_file() else ""
            raise UserError(f"{word}: every run has {key}, it cannot be left out{none}")
    if searched:
        words.append("hydra.searchpath=[" + ",".join(f"file://{folder}" for folder in searched) + "]")
    config = _hydra([word for word in words if not _deleted(word)], folders)
    _require_stages(config)
    _require_known_stages(config, overrides, words, folders)
    of_stages = [stage.get("set") for stage in (config.stages or {}).values() if stage is not None]
    for word in words:
        if _deleted(word) and not any(_owner(one, _deleted(word)) is not None for one in (config, *of_stages)):
            raise UserError(f"{word}: there is no such key to leave out")
    _require_task_to_reach(config, words)
    if stage is None:
        return words, folders
    if stage not in config.stages:
        raise UserError(f"stage {stage!r} is not in this config; stages: {', '.join(config.stages) or 'none'}")
    if config.stages[stage] is None:
        raise UserError(f"stage {stage!r} is left out of this run (stages.{stage}: null)")
    choices = {str(group): choice for group, choice in (config.stages[stage].get("choose") or {}).items()}
    if "task" in choices:  # what a stage is for; `task=` is for those that do not say
        words = [word for word in words if _group(word) != "task"]
    # The stage's group choices come first, and what the user asked for on the command line still wins.
    named = {_group(word) for word in words}
    return [*(f"{group}={choice}" for group, choice in choices.items() if group not in named), *words], folders


@functools.cache
def _root_keys() -> frozenset[str]:
    """Keys that every config has."""
    return frozenset(map(str, _hydra((), (CONFIG_DIR,))))


def _group(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")


def _require_task_to_reach(config: DictConfig, words: Sequence[str]) -> None:
    """Refuse `task=` where no stage takes it."""
    stages = {name: (config.stages[name].get("choose") or {}).get("task") for name in active_stages(config)}
    said = next((word for word in words if _group(word) == "task" and word[0] != "~"), None)
    if said is None or not stages or None in stages.values():
        return
    last = list(stages)[-1]
    raise UserError(
        f"{said}: each stage has a task of its own ({', '.join(f'{name}: {task}' for name, task in stages.items())}); "
        f"change that of one by stages.NAME.choose.{said}, as in stages.{last}.choose.{said}, or train no stages, "
        "stages=null"
    )


def _leave_out_misfits(config: DictConfig, origins: Origins, note: Callable[[str], None] | None) -> None:
    """Take out what an experiment sets for a part that is not the one it set it for."""
    chosen = {_group(word) for word in origins.overrides}
    if not (chosen & {"experiment"} or origins.stage):
        return
    OmegaConf.set_struct(config, False)
    for group in sorted(chosen | set(pretrained_sources(config))):
        node = config.get(group)
        if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
            continue
        known = _parameters(node._target_, allow_list(config))
        for key in [str(key) for key in node if not str(key).startswith("_") and key != KEY]:
            origin = origins.exactly(f"{group}.{key}") if known is not None and key not in known else None
            if origin is not None and origin.is_extra:
                del node[key]
                if note is not None:
                    note(
                        f"{group}.{key} ({origin}) is left out: {node._target_.rpartition('.')[2]} has no such setting"
                    )


def _parameters(path: str, allowed: tuple[str, ...]) -> set[str] | None:
    """Names of what a class takes; None where it takes any, or cannot be imported (said where it stands)."""
    try:
        parameters = parameters_of(locate(path, allowed))[0].values()
    except (ImportError, PermissionError, ValueError):
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def compose_choices(overrides: Sequence[str]) -> DictConfig:
    """As `compose` with no more than choices of shipped groups that have no defaults of their own, and values: many
    times faster for many such configs, since only what the choices change is read.

    Raises:
        UserError: as `compose`; also a group that must be composed.
    """
    config = compose()
    OmegaConf.set_struct(config, False)
    for override in overrides:
        _lenient(override, [CONFIG_DIR])
        key, _, value = override.partition("=")
        path = CONFIG_DIR / key / f"{value}.yaml"
        if path.is_file():
            node = OmegaConf.load(path)
            if "defaults" in node or "@package" in path.read_text(encoding="utf-8"):
                raise UserError(f"{override}: this choice has defaults of its own; compose it")
            config[key] = node
        else:
            OmegaConf.update(config, key, OverridesParser.create().parse_override(override).value(), force_add=True)
    return config


_OF_A_STAGE = ("after", "requires", "unless", "choose", "set")


def _require_stages(config: DictConfig) -> None:
    """Refuse what no stage has: it would be left out without a word."""
    stages: Any = config.get("stages")
    if not isinstance(stages, DictConfig | None):
        raise UserError(f"stages: {stages!r} is not a map of names to stages")
    for name, stage in (stages or {}).items():
        if stage is None:
            continue
        if not isinstance(stage, DictConfig):
            raise UserError(f"stages.{name}: {stage!r} is not a map of {', '.join(_OF_A_STAGE)}")
        for key in stage:
            if key not in _OF_A_STAGE:
                raise UserError(
                    f"stages.{name}.{key}: a stage has {', '.join(_OF_A_STAGE)}{_nearest(str(key), _OF_A_STAGE)}"
                )
        known = [str(other) for other in stages or ()]
        for other in stage.get("after") or ():
            if other not in stages:
                raise UserError(f"stages.{name}.after: there is no stage {other!r}{_nearest(str(other), known)}")


def _require_known_stages(
    config: DictConfig, overrides: Sequence[str], words: Sequence[str], folders: Sequence[Path]
) -> None:
    """Refuse a stage that only the command line names and no `+` asks for: a misspelt one would be trained anew."""
    said = {_stage_of(word): word for word in overrides}
    said.pop("", None)
    if not said:
        return
    known = [str(name) for name in _hydra([word for word in words if not _stage_of(word)], folders).get("stages") or ()]
    meant = {_stage_of(word) for word in overrides if word[0] == "+"}
    for name, word in said.items():
        if name not in known and name not in meant and name in (config.stages or ()):
            there = f"; there are: {', '.join(known)}." if known else "; this config has none."
            raise UserError(
                f"{word}: there is no stage {name!r}{_nearest(name, known) or there} A new one is made by "
                f"+stages.{name}.choose.task=TASK"
            )


def _stage_of(word: str) -> str:
    """The stage that an override is about; "" of any other."""
    key = word.split("=", 1)[0].lstrip("+")
    return key.split(".")[1] if key.startswith("stages.") else ""


def _nearest(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hydra(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """What Hydra composes: kept within the process, since a check asks for the same several times and each takes a
    tenth of a second and more. Another content of the folders is composed anew."""
    files = sorted(path for folder in folders for path in folder.glob("**/*.yaml"))
    for path in files:
        if not path.is_relative_to(CONFIG_DIR):
            require_bounded(path)
    states = [(path, path.stat()) for path in files]
    stamps = tuple((str(path), s.st_mtime_ns, s.st_size, s.st_ino) for path, s in states)
    asked = [word for word in overrides if not _deleted(word)]
    config = _with_stages(asked, stamps) or copy.deepcopy(_composed(tuple(asked), stamps))
    for word in overrides:
        _delete(config, word)
    return config


def _with_stages(overrides: Sequence[str], files: tuple[tuple[str, int, int, int], ...]) -> DictConfig | None:
    """What is composed without the settings of stages, and these laid on as Hydra does it: the same is asked for with
    and without them. None where there are none, or Hydra is to do it: it says what is wrong with them."""
    settings = [word for word in overrides if re.match(r"\+\+stages(\.\w+)+=", word)]
    others = [word for word in overrides if word not in settings]
    if not settings or any(_group(word).split(".")[0] == "stages" for word in others):
        return None
    config = copy.deepcopy(_composed(tuple(others), files))
    try:
        for word in settings:
            parsed = OverridesParser.create().parse_override(word)
            OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)
    except OmegaConfBaseException:
        return None
    require_no_cycles(config)
    return config


def _deleted(word: str) -> str:
    """The key below a node that an override such as `~frontend.stack` deletes; "" of any other override. Hydra itself
    deletes nothing whose value is null, nor what only a stage sets."""
    return word[1:] if word[0] == "~" and "." in word and "=" not in word else ""


def _owner(config: Any, key: str) -> DictConfig | None:
    """The node that has a key; None where none has."""
    owner, _, name = key.rpartition(".")
    node = OmegaConf.select(config, owner) if owner and config is not None else None
    return node if isinstance(node, DictConfig) and name in node.keys() else None  # noqa: SIM118 - `in` leaves out ???


def _delete(config: DictConfig, word: str) -> None:
    owner = _owner(config, _deleted(word))
    if owner is not None:
        OmegaConf.set_struct(owner, False)
        del owner[word.rpartition(".")[2]]


@functools.lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...], files: tuple[tuple[str, int, int, int], ...]) -> DictConfig:
    logging.getLogger("hydra").setLevel(logging.ERROR)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError, RecursionError, ValueError, OSError) as error:
        for path, *_ in files:  # one that is no YAML is named with its line
            if not Path(path).is_relative_to(CONFIG_DIR):
                load_yaml(path)
        raise UserError(f"config: {_words(error)}") from error
    except Exception as error:  # what Hydra itself does not expect in the place of a choice
        raise UserError(
            f"config: {few(overrides)}: cannot be composed ({type(error).__name__}: {_words(error)})"
        ) from error
    require_no_cycles(config)
    if any(not Path(path).is_relative_to(CONFIG_DIR) for path, *_ in files):
        require_named(config, overrides)
    return config


def _words(error: BaseException) -> str:
    """The message of an error and of what caused it, in one line; Hydra often leaves the outer one empty."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).partition("Config search path")[0].split())
        if text and text not in " ".join(texts):
            texts.append(text)
        cause = cause.__cause__
    return "; ".join(texts) or type(error).__name__


def _in_full(override: str) -> str:
    """An override whose key may be a short word (`lr=1e-5`), by its full key."""
    key, sign, value = override.partition("=")
    return f"{_SHORT.get(key, key)}{sign}{value}"


def _all_lenient(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """`_lenient` of each; what is wrong with several of them is said at once."""
    words, faults = [], []
    for override in overrides:
        try:
            words.append(_lenient(override, folders))
        except UserError as error:
            faults.append(str(error))
    if len(faults) > 1:
        raise UserError("\n  ".join([f"{len(faults)} faults in the overrides:", *faults]))
    if faults:
        raise UserError(faults[0])
    return words


def _lenient(override: str, folders: Sequence[Path]) -> str:
    """Check a group choice here (nearest names in the message); let any other key through as an addition."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, ArithmeticError, RecursionError, SystemError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"override {override!r} does not parse (key=value is expected): {reason}") from None
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        raise UserError(
            f"{override}: several values are several runs, each with a name of its own: give one here. "
            f"A list is {key}=[1,2], a text with commas \"{key}='1,2'\""
        )
    if not key.strip("/."):
        raise UserError(f"override {override!r} does not parse (key=value is expected): it has no key")
    key = key.lstrip("/")
    choices = sorted({path.stem for folder in folders for path in folder.glob(f"{key}/*.yaml")})
    if choices and "." not in key:
        value = parsed.value()
        if isinstance(value, dict):  # settings in place of a choice, as in freeze={adaptor: true}
            return override if override[0] in "+~" else f"++{override}"
        if isinstance(value, list) and len(value) > 1 and _is_exclusive(key, folders):
            raise UserError(f"{override}: {key} takes one choice; the settings of several would be mixed")
        if not (value in choices or isinstance(value, list) or parsed.is_delete()):
            elsewhere = belongs(str(value), folders)
            hint = f"{elsewhere}." if elsewhere else _nearest(str(value), choices) or "."
            raise UserError(f"{override}: there is no such choice{hint} Choices: {', '.join(choices)}")
        # The root chooses of each shipped group already: `+` would choose twice.
        return override.lstrip("+") if (CONFIG_DIR / key).is_dir() else override
    if override[0] in "+~":
        return override
    return f"++{override}"


def _is_exclusive(group: str, folders: Sequence[Path]) -> bool:
    """Whether the choices of a group are classes, of which one can be built; others are settings that add up."""
    files = (path for folder in folders for path in folder.glob(f"{group}/*.yaml"))
    return any(re.search(r"^_target_:", path.read_text(encoding="utf-8"), re.MULTILINE) for path in files)


def _fit_lora(config: DictConfig) -> None:
    """Leave out what a choice of `lora` has for roles that the task has not (`if_there`)."""
    roles: Any = config.get("lora")
    for role, node in [*roles.items()] if isinstance(roles, DictConfig) else []:
        if not isinstance(node, DictConfig) or "if_there" not in node:
            continue
        OmegaConf.set_struct(config, False)
        if node.pop("if_there") and OmegaConf.select(config, f"task.{role}._target_") is None:
            del roles[role]


def _again(config: DictConfig, override: str) -> None:
    """Apply a value override a second time; choices of groups, stages and the place of the run are left alone."""
    parsed = OverridesParser.create().parse_override(override)
    key = parsed.key_or_group
    if key.split(".")[0] in ("name", "root", "run_dir", "stage_dir", "stages", "hydra"):
        return
    if parsed.is_add() or parsed.is_force_add():
        OmegaConf.update(config, key, parsed.value(), force_add=True)
    _delete(config, override)


def _trust_what_is_said(config: DictConfig, words: Iterable[str]) -> None:
    """`allow` as the command line has it. A YAML file that could widen the list would be a way to run code.

    Raises:
        UserError: one tries to.
    """
    said = [word for word in words if word.lstrip("+").partition("=")[0].strip() == "allow"]
    written = config.get("allow")
    OmegaConf.update(config, "allow", [], merge=False)
    for word in said:
        OmegaConf.update(config, "allow", OverridesParser.create().parse_override(word).value(), merge=False)
    if written and not said:
        names = OmegaConf.to_container(written) if OmegaConf.is_config(written) else written
        raise UserError(
            f"allow: {names} stands in a YAML file, "
            "which cannot say what is trusted; if you trust it, say allow=[...] on the command line, or VOXZOO_ALLOW"
        )


def _absolute(config: DictConfig) -> None:
    """Paths in a saved config hold from any folder."""
    for key in _PATHS:
        _set(config, key, OmegaConf.select(config, key, throw_on_resolution_failure=False, throw_on_missing=False))
    for key in _PATH_MAPS:
        node = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(node, DictConfig):
            for name, value in node.items():
                _set(config, f"{key}.{name}", value)


def _set(config: DictConfig, key: str, value: Any) -> None:
    """Make a path, or each of several, absolute where it is written."""
    if isinstance(value, str):
        full: Any = _full(value)
    elif isinstance(value, ListConfig) and value and all(isinstance(one, str) for one in value):
        full = [_full(one) for one in value]
    else:
        return
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    if not OmegaConf.is_interpolation(parent, key.rpartition(".")[2]):
        OmegaConf.update(config, key, full)


def _full(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def to_yaml(config: DictConfig) -> str:
    """The resolved config as YAML: every interpolation replaced by its value."""
    try:
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError("config: " + " ".join(str(error).split())) from None
