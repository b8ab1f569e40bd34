"""Rows about starting: what a command costs before it does anything."""

from __future__ import annotations

from pathlib import Path

from .data import TINY
from .process import command
from .row import Costs, Row

_COMMANDS = {
    "--help": ["--help"],
    "check --help": ["check", "--help"],
    "parts": ["parts"],
    "check, tiny": ["check", *TINY, "data=tiny"],
    "check, quickstart": ["check", "experiment=quickstart"],
}


def start(_: int, folder: Path) -> Costs:
    return {f"{name}, CPU s": command(words, folder)["cpu"] for name, words in _COMMANDS.items()}


def memory(_: int, folder: Path) -> Costs:
    cost = command(["check", "experiment=quickstart", "--memory", "24"], folder)
    return {"CPU s": cost["cpu"], "resident MB": cost["resident"] / 1e6}


ROWS = (
    Row("startup", "G5 start of commands", start,
        aims={"--help, CPU s": 0.3, "check --help, CPU s": 0.6, "check, tiny, CPU s": 5.0}),
    Row("check-memory", "G6 check --memory", memory, aims={"CPU s": 12}),
)  # fmt: skip
