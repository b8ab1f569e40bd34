"""`from=RUN_OR_FOLDER`: the parts of a run or of a published folder, for every role that says `source`. The one place
where `from` is resolved: what comes out is a plain config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..components import parts
from ..components.errors import UserError
from .foreign import require_plain
from .pretrained import KEY as PRETRAINED
from .stages import last_stage
from .targets import allow_list, locate
from .yaml_files import load_map

KEY = "from"
MARK = "source"
"""Key of `configs/ROLE/source.yaml`: this role is taken from there."""

_SPOKEN = ("s2st", "t2st")
_TASKS = Path(__file__).resolve().parent / "task"


@dataclass(frozen=True)
class Source:
    """What `from` names.

    Attributes:
        nodes: role (and `task`) -> config node, plain values; absent parts are left out.
        model_type: the published layout it has or was imported from.
        path: absolute path of a run folder, a checkpoint or a published folder; a hub name as it is.
        is_run: whether it is a run of voxzoo, a folder or a checkpoint.
    """

    nodes: dict[str, dict[str, Any]]
    model_type: str | None
    path: str
    is_run: bool


def read_source(source: str) -> Source:
    """Read what a run or a published folder is made of, without its weights.

    Args:
        source: a run folder, a checkpoint, a published folder or a hub name.

    Raises:
        UserError: neither of them, or a run whose config is damaged.
    """
    path = Path(source).expanduser()
    if path.is_file() or (path / "config.yaml").is_file():
        config = _run_config(path)
        roles = (*parts(), "task")
        nodes = {role: dict(config[role]) for role in roles if (config.get(role) or {}).get("_target_")}
        for node in nodes.values():
            node.pop(PRETRAINED, None)  # the run has the weights
        return Source(nodes, config.get("model_type"), str(path.absolute()), True)
    from ..components.converters import describe
    from ..components.converters.files import published_folder, read_json

    try:
        nodes = describe(source)
        require_plain(nodes, source)
    except UserError as error:
        raise UserError(f"{KEY}={source}: neither a run nor a published model; {error}") from None
    model_type = read_json(published_folder(source) / "config.json").get("model_type")
    return Source(nodes, model_type, str(path.absolute()) if path.is_dir() else source, False)


def _run_config(path: Path) -> dict[str, Any]:
    """The resolved config of a run folder (its last stage) or a checkpoint."""
    if path.is_file():
        from ..components.converters.files import read_pickle

        content: Any = (read_pickle(path).get("voxzoo") or {}).get("config")
    else:
        try:
            config = load_map(path / "config.yaml")
            folder = last_stage(path, config)
            content = OmegaConf.to_container(load_map(folder / "config.yaml"))
        except (OSError, ValueError, AttributeError, OmegaConfBaseException) as error:
            raise UserError(f"{KEY}={path}: its config.yaml cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("task"), Mapping):
        raise UserError(f"{KEY}={path}: carries no config; expected what `voxzoo train` or `import` wrote")
    for key, value in leaves(content):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{KEY}={path}: {key}={value!r} in its config; the config of a run has plain values alone")
    return {str(key): value for key, value in content.items()}


def leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of each plain value of a config."""
    if isinstance(node, Mapping):
        return [leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list):
        return [leaf for value in node for leaf in leaves(value, path)]
    return [(path, node)]


def fill_source(config: DictConfig, defaults: Callable[[], DictConfig], *, required: bool = True) -> None:
    """Put the parts that `from` names where a role says `source`; what the config says itself stays.

    A role that the source does not have gets the choice of the root config. The task follows from `data.tasks` and the
    parts there are; roles that it does not use are none.

    Args:
        config: composed; changed in place.
        defaults: the root config.
        required: refuse roles that ask for a source where there is none; else they are left as they are.

    Raises:
        UserError: no source where a role asks for one, or one that nothing asks for.
    """
    roles = [role for role in parts() if isinstance(config.get(role), DictConfig) and MARK in config[role]]
    given = config.get(KEY)
    if not roles and MARK not in config.task:
        if given is not None:
            raise UserError(f"{KEY}={given}: no part is taken from there; say experiment=finetune, or ROLE=source")
        return
    if given is None and not required:
        return
    if given is None:
        raise UserError(f"{KEY}: give the run or the published folder to begin with, as in {KEY}=runs/whisper")
    OmegaConf.set_struct(config, False)
    if _goes_on(config, roles, str(given)):
        return
    source = read_source(str(given))
    config[KEY] = source.path
    there = {role for role in roles if role in source.nodes}
    _choose_task(config, source, there, "speech_encoder" in there or "speech_encoder" not in roles)
    used = {"frontend", *(role for role in parts() if role in config.task)}  # the data have a front end too
    taken = there & used
    if not _adaptor_fits(config, source, taken):
        taken.discard("adaptor")
    for role in roles:
        own = _without_mark(config[role])
        base = _taken(role, source) if role in taken else _plain(defaults()[role]) if role in used else _NONE
        config[role] = OmegaConf.merge(base, own)
        if role == "t2u" and role in taken and _class(source.nodes[role]) == "UnitY2T2U" and "aligner" not in own:
            config.t2u.aligner = True  # published weights have no durations to train on: it makes them
    if source.is_run:
        if isinstance(config.get("init"), str):
            raise UserError(f"init={config.init}: with {KEY} say which parts come from there, as in init.vocoder=RUN")
        weights = {role: source.path for role in source.nodes if role in taken - {"frontend"}}
        config.init = {**weights, **(config.get("init") or {})}
    # As long as nothing of it was replaced, it goes out in the layout that it came in; an adaptor without a decoder
    # behind it is not what an encoder was published for.
    replaced = (source.nodes.keys() & used) - taken - (set() if "text_seq2seq" in source.nodes else {"adaptor"})
    config.model_type = None if replaced else source.model_type


_NONE = {"_target_": None}


def _goes_on(config: DictConfig, roles: list[str], given: str) -> bool:
    """Fill a config from the run that it goes on with, where the run that this one began with is gone: it stands in the
    folder what was taken. Returns whether that was so."""
    path = Path(str(config.run_dir)) / "config.yaml"
    if Path(given).expanduser().exists() or not path.is_file():
        return False
    own: Any = load_map(path)
    if own.get(KEY) != str(Path(given).expanduser().absolute()):
        return False
    for name in (*roles, *(["task"] if MARK in config.task else [])):
        config[name] = OmegaConf.merge(own[name], _without_mark(config[name]))
    for key in (KEY, "init", "model_type", "data.tasks"):
        if OmegaConf.select(own, key) is not None:
            OmegaConf.update(config, key, OmegaConf.select(own, key), merge=False)
    return True


def _choose_task(config: DictConfig, source: Source, there: set[str], reads_speech: bool) -> None:
    """The task with the source's settings, under what the config says itself; and `data.tasks` where only their
    default stands there and the model cannot do it."""
    tasks = OmegaConf.select(config, "data.tasks") or {}
    asked = {str(name) for name, on in tasks.items() if on}
    if asked == {"s2tt"}:
        text_alone = not reads_speech or _class(config.task) == "TextToText"
        other = "t2tt" if text_alone else "s2st" if OmegaConf.select(config, "data.units") else "s2tt"
        config.data.tasks = {**tasks, "s2tt": False, other: True}
        asked = {other}
    if MARK in config.task:
        text = asked == {"t2tt"} or not (asked or reads_speech)
        name = "speech_to_speech_unity" if asked & {*_SPOKEN} else "text_to_text" if text else "speech_to_text"
        own = _without_mark(config.task)
    else:
        name, own = _choice(_class(config.task)), _plain(config.task)
    base = _plain(OmegaConf.load(_TASKS / f"{name}.yaml")) if name else own
    settings: dict[str, Any] = {}
    if "text_seq2seq" in there:  # they are about the text model
        known = inspect.signature(locate(str(base["_target_"]), allow_list(config))).parameters
        settings = {key: value for key, value in source.nodes.get("task", {}).items() if key in known}
        settings = {key: value for key, value in settings.items() if key not in parts()}
    said = {key: value for key, value in own.items() if key not in base or value != base[key] or not name}
    config.task = OmegaConf.merge(base, settings, said)


def _choice(target: str) -> str | None:
    """The shipped choice of `task` that names a class."""
    found = (path.stem for path in sorted(_TASKS.glob("*.yaml")) if f"voxzoo.tasks.{target}\n" in path.read_text())
    return next(found, None)


def _adaptor_fits(config: DictConfig, source: Source, taken: set[str]) -> bool:
    """Whether the source's adaptor stands between parts of its widths. A new decoder of another one gets a new
    adaptor."""
    adaptor = source.nodes.get("adaptor", {})
    given = _plain(config.adaptor)
    for neighbour, key in (("speech_encoder", "input_dim"), ("text_seq2seq", "output_dim")):
        width = OmegaConf.select(config, f"{neighbour}.dim", throw_on_resolution_failure=False)
        if neighbour not in taken and width is not None and key not in given and adaptor.get(key) != width:
            return False
    return True


def _taken(role: str, source: Source) -> dict[str, Any]:
    """The node of a role that is taken."""
    if not source.is_run:
        return {PRETRAINED: source.path}
    if role == "tokenizer":  # its file comes out of the checkpoint, and holds the characters too
        characters = {"characters": None} if "characters" in source.nodes[role] else {}
        return {**source.nodes[role], "model": "${run_dir}/tokenizer.model", **characters}
    return source.nodes[role]


def _plain(node: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node)
    return found


def _without_mark(node: Any) -> dict[str, Any]:
    return {key: value for key, value in _plain(node).items() if key != MARK}


def _class(node: Any) -> str:
    return str(node.get("_target_") or "").rpartition(".")[2]
