"""`voxzoo check`"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from ...configs.check import require_valid
from ...configs.compose import compose, to_yaml
from ..run import active_stages
from ..shapes import Row, trace
from ..training import quiet_libraries

HELP = "check a config, build it without weights, and show what flows through its parts"
EXAMPLE = "voxzoo check experiment=quickstart adaptor=stack"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config overrides, as for `voxzoo train`")
    parser.add_argument("--stage", help="check one stage of a staged experiment alone")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML groups"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML")


def run(args: argparse.Namespace) -> dict:
    quiet_libraries()
    config = compose(args.overrides, stage=args.stage, config_dirs=args.config_dir)
    stages = active_stages(config)
    configs = {s: compose(args.overrides, stage=s, config_dirs=args.config_dir) for s in stages} or {"run": config}
    tables: dict[str, list[Row]] = {}
    for name, stage in configs.items():
        require_valid(stage)
        tables[name] = trace(stage)
    if not args.json:
        if args.print_config:
            print(to_yaml(config))
        for name, rows in tables.items():
            _show(name, configs[name].task._target_.rpartition(".")[2], rows)
    return {
        "status": "ok",
        "stages": {
            name: {
                "task": configs[name].task._target_,
                "parts": [{**asdict(row), "state": row.state} for row in rows],
                "parameters": sum(row.parameters for row in rows),
                "trainable": sum(row.trainable for row in rows),
            }
            for name, rows in tables.items()
        },
    }


def _show(name: str, task: str, rows: list[Row]) -> None:
    table = Table(title=f"{name}: {task}", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("part", "class", "input", "output", "parameters", ""):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row in rows:
        table.add_row(row.part, row.cls, row.input, row.output, f"{row.parameters:,}", row.state)
    table.add_row(
        "total", "", "", "", f"{sum(r.parameters for r in rows):,}", f"{sum(r.trainable for r in rows):,} trainable"
    )
    Console(width=None if Console().is_terminal else 140).print(table)
