"""What a class that a config names takes: each argument with its type, default, value in YAML and docstring."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ... import components
from ...components.errors import UserError
from ...configs.check import LORA
from ...configs.origins import ROOT
from ...configs.signatures import parameters_of
from ...configs.source import leaves
from ...configs.targets import locate, trusted
from ...configs.yaml_files import load_yaml

_PACKAGES = ("components", "datamodules", "tasks")
_ENTRY = re.compile(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: \([^)]*\))?: *(.*)")


def describe_part(name: str, *, config_dirs: Sequence[str] = (), allow: Sequence[str] = ()) -> dict[str, Any]:
    """What a choice (`adaptor=conformer`) or a class (`ConformerAdaptor`, or its full path) takes.

    Args:
        name: of one or the other.
        config_dirs: further folders of YAML groups, searched before the shipped ones.
        allow: packages besides our own that class paths may name.

    Returns:
        `class`, its full `path` (both None of a choice that names no class), the YAML `file` of a choice, `about`,
        `paper` and `arguments`: maps of `name`, `type`, `default` and `value` (None where there is none), `is_needed`
        and `about`.

    Raises:
        UserError: there is no such choice or class, or it may not be used.
    """
    values: dict[str, Any] = {}
    file = None
    if "=" in name:
        file = _file(name, [*map(Path, config_dirs), ROOT])
        node: Any = OmegaConf.to_container(load_yaml(file)) or {}
        node = node.get("task", node) if name.startswith("task=") else node  # one with defaults of its own
        path = node.get("_target_")
        if path is None:
            return _without_class(name, file, node)
        values = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
    else:
        path = name if "." in name else _path(name)
    try:
        cls = locate(path, trusted(allow))
    except (ImportError, PermissionError) as error:
        raise UserError(f"{name}: {error}") from None
    parameters, hints = parameters_of(cls)
    about, said = _docstring(cls)
    arguments = []
    for key, parameter in parameters.items():
        if key == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        needed = parameter.default is parameter.empty
        arguments.append(
            {
                "name": key,
                "type": _type(hints.get(key, parameter.annotation)),
                "is_needed": needed,
                "default": None if needed else _text(parameter.default),
                "value": _text(values[key]) if key in values else None,
                "about": said.get(key, ""),
            }
        )
    return {
        "class": cls.__name__,
        "path": path,
        "file": str(file) if file is not None else None,
        "about": about,
        "paper": getattr(cls, "paper", ""),
        "arguments": arguments,
    }


def _without_class(name: str, file: Path, node: dict[str, Any]) -> dict[str, Any]:
    """Of a choice that sets keys of a config and builds nothing: what its file says first, and what it sets."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    about = [line.lstrip("# ") for line in head if "@package" not in line]
    if name.startswith("lora="):
        about.append(f"What a role takes here: voxzoo parts {LORA}")
    keys = {key: value for key, value in leaves(node) if key.split(".")[0] != "defaults" and not key.startswith("_")}
    arguments = [
        {"name": key, "type": "", "is_needed": False, "default": None, "value": _text(value), "about": ""}
        for key, value in keys.items()
    ]
    said = {"about": "\n".join(about), "paper": "", "arguments": arguments}
    return {"class": None, "path": None, "file": str(file), **said}


def _file(name: str, folders: Sequence[Path]) -> Path:
    group, _, choice = name.partition("=")
    choices = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob(f"{group}/*.yaml"))}
    if choice in choices:
        return choices[choice]
    if not choices:
        groups = sorted({path.parent.name for folder in folders for path in folder.glob("*/*.yaml")})
        raise UserError(f"{name}: there is no group {group!r}{_near(group, groups)} Groups: {', '.join(groups)}")
    raise UserError(
        f"{name}: there is no such choice{_near(choice, list(choices))} Choices: {', '.join(sorted(choices))}"
    )


def _path(name: str) -> str:
    """The full path of a class of our own."""
    import importlib

    where = {}
    for package in _PACKAGES:
        module = importlib.import_module(f"...{package}", __package__)
        where.update({each: f"{module.__name__}.{each}" for each in module.__all__ if each[0].isupper()})
    if name not in where:
        there = ", ".join(sorted({*components.parts(), *where}))
        raise UserError(
            f"{name}: expected a role or another group, a choice such as adaptor=conformer, or a class"
            f"{_near(name, list(where))} There are: {there}"
        )
    return where[name]


def _near(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _docstring(cls: Any) -> tuple[str, dict[str, str]]:
    """What comes before the first section of a docstring, and what each argument is, also by the classes below."""
    about, said = "", {}
    for base in reversed(inspect.getmro(cls)) if isinstance(cls, type) else (cls,):
        doc = (
            inspect.cleandoc(vars(base).get("__doc__") or "") if isinstance(base, type) else inspect.getdoc(base) or ""
        )
        if base is not object:
            said.update(_arguments(doc))
        about = re.split(r"\n\n?(?=\w+:\n)", doc)[0].strip() if base is cls else about
    return about, said


def _arguments(doc: str) -> dict[str, str]:
    """Name -> text of each entry of `Args:` (Google style); several names may share one."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(section[1]).splitlines() if section else ():
        entry = _ENTRY.fullmatch(line)
        if entry is not None and not line.startswith(" "):
            names = [name.strip().lstrip("*") for name in entry[1].split(",")]
            found.update(dict.fromkeys(names, entry[2].strip()))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return found


def _type(hint: Any) -> str:
    if hint is inspect.Parameter.empty:
        return ""
    text = hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", None) else str(hint)
    return re.sub(r"\b(?:typing|collections\.abc|torch|voxzoo(?:\.\w+)+|lightning(?:\.\w+)+)\.(?=\w)", "", text)


def _text(value: Any) -> str:
    """A value as YAML has it, in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple | frozenset):
        return "[" + ", ".join(_text(inner) for inner in value) + "]"
    return value if isinstance(value, str) else re.sub(r"<\w+ (?:object )?(\S+).*>", r"\1", repr(value))


def allowed_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that are no `allow=`, and what those of `allow=` name."""
    names: list[str] = []
    for word in words:
        if word.startswith("allow="):
            value = OverridesParser.create().parse_override(word).value()
            names += [str(name) for name in (value if isinstance(value, list) else [value])]
    return [word for word in words if not word.startswith("allow=")], names
