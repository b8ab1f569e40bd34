"""What `voxzoo train --help` says of configs, by the files themselves: reads no YAML library, let alone torch."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_LINE = re.compile(r"( *)([a-z_]+):(?: +([^#]*?))? *(?:# *(.*))?$")
_NESTED = {
    "trainer": ("trainer/cpu.yaml", ("max_steps", "max_epochs", "devices", "precision", "val_check_interval")),
    "data": ("data/manifest.yaml", ("train", "valid", "test", "batch_size", "batch_seconds", "tasks", "num_workers")),
    "optim": ("optim/adamw.yaml", ("lr",)),
}
"""Settings of groups that are said most often, and the file that says what they are."""


def settings_of(file: Path) -> Iterator[tuple[str, str, str]]:
    """(dotted key, value as written, what it is: the remark behind it) of each line of a YAML file that sets a key."""
    above: list[tuple[int, str]] = []
    in_defaults = False
    for line in file.read_text(encoding="utf-8").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        depth, key = len(found[1]), found[2]
        in_defaults = key == "defaults" if depth == 0 else in_defaults
        if in_defaults or key.startswith("_"):
            continue
        above = [(d, name) for d, name in above if d < depth]
        yield ".".join([*(name for _, name in above), key]), (found[3] or "").strip(), (found[4] or "").strip()
        above.append((depth, key))


def groups() -> dict[str, list[str]]:
    """Group -> names of its choices; the groups in the order in which `config.yaml` chooses."""
    text = (_CONFIGS / "config.yaml").read_text(encoding="utf-8").partition("defaults:")[2].partition("\n\n")[0]
    names = re.findall(r"^ +- (\w+):", text, re.MULTILINE)
    return {name: sorted(path.stem for path in (_CONFIGS / name).glob("*.yaml")) for name in names}


def overview() -> str:
    """Groups, their choices, and settings with their values, for a help text."""
    lines = ["groups and their choices, GROUP=CHOICE (`voxzoo parts GROUP=CHOICE` says what one takes):"]
    for name, choices in groups().items():
        lines += _entry(name, ", ".join(choices), 16)
    lines += ["", "settings, KEY=VALUE:"]
    for key, value, about in settings_of(_CONFIGS / "config.yaml"):
        lines += _entry(f"{key}={_plain(value)}", about, 34)
    lines += ["", "settings of a group that are said most often (all of them: `voxzoo parts data=manifest` and so on):"]
    for group, (file, keys) in _NESTED.items():
        said = {key: (value, about) for key, value, about in settings_of(_CONFIGS / file)}
        for key in keys:
            lines += _entry(f"{group}.{key}={_plain(said[key][0])}", said[key][1], 34)
    return "\n".join(lines)


def _plain(value: str) -> str:
    return "" if "${" in value or value.startswith("{") else value


def _entry(name: str, text: str, width: int) -> list[str]:
    gap = " " * (width + 3)
    first, *rest = textwrap.wrap(text, 112 - len(gap)) or [""]
    if len(name) > width:
        return [f"  {name}", *(f"{gap}{line}" for line in (first, *rest))]
    return [f"  {name:<{width}} {first}".rstrip(), *(f"{gap}{line}" for line in rest)]
