"""`voxzoo parts`"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from ... import components

HELP = "list the zoo: every part by role, its choices in YAML, parameters and paper"
EXAMPLE = "voxzoo parts adaptor"
_WITH = "# with: "


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", nargs="?", choices=sorted(components.parts()), help="one role alone")


def run(args: argparse.Namespace) -> dict:
    from ...configs.compose import CONFIG_DIR
    from ..processes.console import quiet_libraries

    quiet_libraries()
    roles = [args.role] if args.role else list(components.parts())
    found = {role: [_describe(role, path) for path in sorted((CONFIG_DIR / role).glob("*.yaml"))] for role in roles}
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
                table.add_row(override, choice["class"] or "-", count, choice["about"], choice["paper"])
            Console(width=None if Console().is_terminal else 140).print(table)
    return {"status": "ok", "roles": found}


def _describe(role: str, path: Path) -> dict[str, Any]:
    import torch
    from omegaconf import DictConfig, OmegaConf

    from ...components.roles import Part
    from ...configs.build import build
    from ...configs.compose import compose_choices

    lines = path.read_text().splitlines()
    about = lines[0].lstrip("# ").strip()
    # What a published part goes with, such as its tokenizer: its sizes follow from theirs.
    beside = next((line.removeprefix(_WITH).split() for line in lines if line.startswith(_WITH)), [])
    node = OmegaConf.load(path)
    assert isinstance(node, DictConfig)
    target = node.get("_target_")
    entry: dict[str, Any] = {"choice": path.stem, "class": None, "parameters": None, "about": about, "paper": ""}
    entry["with"] = beside
    if target is None:
        return entry
    cls = getattr(components, target.rpartition(".")[2])
    entry.update({"class": cls.__name__, "paper": getattr(cls, "paper", ""), "doc": inspect.getdoc(cls) or ""})
    if issubclass(cls, Part):
        config = compose_choices([f"{role}={path.stem}", *beside])
        with torch.device("meta"):
            part = build(config[role])
        entry["parameters"] = sum(p.numel() for p in part.parameters())
    return entry
