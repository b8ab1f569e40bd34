"""`voxzoo parts`"""

from __future__ import annotations

import argparse
import difflib
import inspect
from pathlib import Path
from typing import Any

from ... import components
from ...components.errors import UserError
from .settings import settings_of

HELP = "list the zoo: every part by role, its choices and paper; what one takes; check parts, or write your own"
EXAMPLE = """voxzoo parts adaptor
  voxzoo parts adaptor=conformer
  voxzoo parts new adaptor mine --out my_zoo
  voxzoo parts check --config-dir my_zoo/configs adaptor=mine allow=[my_zoo]"""
_MOST = 3
"""Choices of one name that are all shown."""
_WITH = "# with: "
_WORDS = ("check", "new")
"""First words that are no role: what each does is a function here, its engine elsewhere."""


def configure(parser: argparse.ArgumentParser) -> None:
    # Named as those of the other verbs, so that words may stand behind options.
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="ROLE | ROLE=CHOICE | CHOICE | CLASS | check ROLE=CHOICE... | new ROLE NAME",
        help="roles or other groups alone: their choices; or choices and classes: what each takes; or `check` and "
        "what to check: choices of roles, "
        "`task=CHOICE` and settings, as for `voxzoo train`; or `new`, a role (or task, callback, optim, schedule) and "
        "a name: writes its class, YAML and test into --out",
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML groups"
    )
    parser.add_argument("--out", metavar="DIR", help="of `new`: the package that is made, or added to, such as my_zoo")


def run(args: argparse.Namespace) -> dict:
    first = args.overrides[0] if args.overrides else None
    rest: list[str] = args.overrides[1:]
    if first == "check":
        return _check(args, rest)
    if first == "new":
        return _new(args, rest)
    known = [*components.parts(), "data"]
    words, allow = _allowed(args.overrides)
    groups = _groups(args.config_dir)
    if not all(word in groups for word in words):
        words = [each for word in words for each in _by_name(word, groups, args.config_dir)]
        for word in words:
            near = difflib.get_close_matches(word, [*known, *_WORDS], n=1, cutoff=0.75)
            if near and word not in known and "=" not in word:
                raise UserError(f"{word}: expected a role or another group, check or new; did you mean {near[0]!r}?")
        return _explain(args, words, allow)
    return _list(args, words or known, allow)


def _groups(config_dirs: list[str]) -> set[str]:
    """Everything that has choices: roles, and what else a config chooses."""
    from ...configs.compose import CONFIG_DIR

    return {path.parent.name for folder in (CONFIG_DIR, *map(Path, config_dirs)) for path in folder.glob("*/*.yaml")}


def _by_name(word: str, groups: set[str], config_dirs: list[str]) -> list[str]:
    """A choice without its group (`conformer`) as the choices of that name; any other word as it is."""
    from ...configs.choices import choices_called

    if word in groups or not word.islower():
        return [word]
    found = choices_called(word, map(Path, config_dirs))
    if len(found) > _MOST:
        raise UserError(f"{word}: {len(found)} groups have such a choice; say of which: {', '.join(found)}")
    return found or [word]


def _allowed(words: list[str]) -> tuple[list[str], list[str]]:
    """Words that are no `allow=`, and what those of `allow=` name."""
    if not any(word.startswith("allow=") for word in words):
        return words, []
    from ..planning.describe import allowed_words

    return allowed_words(words)


def _explain(args: argparse.Namespace, names: list[str], allow: list[str]) -> dict:
    from ..planning.describe import describe_part
    from ..processes.console import quiet_libraries

    quiet_libraries()
    found = {name: describe_part(name, config_dirs=args.config_dir, allow=allow) for name in names}
    for part in found.values():
        if part["path"] is None:
            remarks = {key: about for key, _, about in settings_of(Path(part["file"]))}
            for each in part["arguments"]:
                each["about"] = remarks.get(each["name"], "")
    if not args.json:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console(width=None if Console().is_terminal else 140)
        for name, part in found.items():
            console.print(f"{name}: {part['path'] or part['file']}", markup=False, highlight=False, soft_wrap=True)
            for line in (part["about"], part["paper"] and f"Paper: {part['paper']}"):
                if line:
                    console.print(line, markup=False, highlight=False)
            if part["path"] is None:
                _show_settings(console, part["arguments"])
                continue
            table = Table(box=box.SIMPLE_HEAD)
            columns = ["argument", *(["value"] if part["file"] else []), "default", "type", "what it is"]
            for column in columns:
                table.add_column(column, overflow="fold", max_width=None if column == "what it is" else 28)
            for each in part["arguments"]:
                value = [each["value"] or ""] if part["file"] else []
                default = "(needed)" if each["is_needed"] else each["default"]
                table.add_row(*map(_escaped, (each["name"], *value, default, each["type"], each["about"])))
            console.print(table)
    return {"status": "ok", "parts": found}


def _show_settings(console: Any, settings: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    if not settings:
        return
    remarks = any(each["about"] for each in settings)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("setting", "value", *(["what it is"] if remarks else [])):
        table.add_column(column, overflow="fold")
    for each in settings:
        table.add_row(*map(_escaped, (each["name"], each["value"], *([each["about"]] if remarks else []))))
    console.print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _check(args: argparse.Namespace, overrides: list[str]) -> dict:
    from ...configs.contract import Checked, check_choices
    from ..processes.console import quiet_libraries

    quiet_libraries()
    found: list[Checked] = []
    named = {override.partition("=")[0] for override in overrides}
    if "data" in named:
        from ...datamodules.contract import examine_choice

        cls, outcomes = examine_choice(overrides, args.config_dir)
        found.append(Checked("data", cls, tuple(outcomes)))
    if "task" in named:
        from ..contract import check_choice

        cls, outcomes = check_choice(overrides, args.config_dir)
        found.append(Checked("task", cls, tuple(outcomes)))
    if not found or named & components.parts().keys():
        found += check_choices(overrides, args.config_dir)
    if not args.json:
        for one in found:
            print(*one.lines(), sep="\n")
    return {
        "status": "ok" if all(one.sound for one in found) else "broken",
        "parts": {one.role: one.as_dict() for one in found},
    }


def _new(args: argparse.Namespace, words: list[str]) -> dict:
    from ..templates.write import KINDS, write_new

    if len(words) != 2 or not args.out:
        usage = "voxzoo parts new adaptor mine --out my_zoo"
        raise UserError(f"parts new takes a kind, a name and --out DIR: {usage}. Kinds: {', '.join(KINDS)}")
    kind, name = words
    written = write_new(kind, name, args.out)
    here = written.folder == Path.cwd()
    if not args.json:
        for path in written.files:
            print(f"wrote {path.relative_to(written.folder) if here else path}")
        print("next" + ("" if here else f", in {written.folder}") + ":")
        for line in written.commands.values():
            print(f"  {line}")
    return {
        "status": "ok",
        "files": [str(path) for path in written.files],
        "folder": str(written.folder),
        "commands": written.commands,
    }


def _list(args: argparse.Namespace, roles: list[str], allow: list[str]) -> dict:
    from ...configs.compose import CONFIG_DIR
    from ..processes.console import quiet_libraries

    quiet_libraries()
    found: dict[str, list[dict[str, Any]]] = {}
    for role in roles:
        folders = [CONFIG_DIR, *map(Path, reversed(args.config_dir))]  # the ones searched first come last, and win
        files = {path.stem: path for folder in folders for path in (folder / role).glob("*.yaml")}
        found[role] = [_describe(role, files[name], args.config_dir, allow) for name in sorted(files)]
    if not args.json:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        for role, choices in found.items():
            table = Table(title=role, box=box.SIMPLE_HEAD, title_justify="left")
            for column in ("override", "class", "parameters", "what it is", "paper"):
                table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
            for choice in choices:
                override = "\n".join([f"{role}={choice['choice']}", *choice["with"]])
                count = "-" if choice["parameters"] is None else f"{choice['parameters']:,}"
                table.add_row(
                    *map(_escaped, (override, choice["class"] or "-", count, choice["about"], choice["paper"]))
                )
            Console(width=None if Console().is_terminal else 140).print(table)
    return {"status": "ok", "roles": found}


def _describe(role: str, path: Path, config_dirs: list[str], allow: list[str]) -> dict[str, Any]:
    import torch
    from omegaconf import DictConfig

    from ...components.roles import Part
    from ...configs.build import build
    from ...configs.compose import CONFIG_DIR, compose, compose_choices
    from ...configs.targets import locate, trusted
    from ...configs.yaml_files import load_yaml

    lines = path.read_text().splitlines()
    about = next(line for line in lines if line and "@package" not in line).lstrip("# ").strip()
    # What a published part goes with, such as its tokenizer: its sizes follow from theirs.
    beside = next((line.removeprefix(_WITH).split() for line in lines if line.startswith(_WITH)), [])
    node = load_yaml(path)
    assert isinstance(node, DictConfig)
    target = node.get("task", node).get("_target_") if role == "task" else node.get("_target_")
    entry: dict[str, Any] = {"choice": path.stem, "class": None, "parameters": None, "about": about, "paper": ""}
    entry["with"] = beside
    if target is None:
        return entry
    own = not path.is_relative_to(CONFIG_DIR)
    try:
        cls = locate(target, trusted(allow))
    except (ImportError, PermissionError) as error:
        raise UserError(f"{role}={path.stem}: {error}") from None
    entry.update({"class": cls.__name__, "paper": getattr(cls, "paper", ""), "doc": inspect.getdoc(cls) or ""})
    if issubclass(cls, Part):
        words = [f"{role}={path.stem}", *beside]
        config = compose(words, config_dirs=config_dirs) if own else compose_choices(words)
        with torch.device("meta"):
            part = build(config[role], allowed=trusted(allow))
        entry["parameters"] = sum(p.numel() for p in part.parameters())
    return entry
