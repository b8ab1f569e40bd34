"""Where each key of a composed config was written: which file and line of YAML, or the command line."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Origin:
    """Where a key was written.

    Attributes:
        file: the YAML file; None for the command line.
        line: counted from 1.
        is_extra: whether it is what an experiment, or a stage of one, sets beside the choices of its parts.
        key: by which an override takes it out: that of the stage, where a stage sets it.
    """

    file: Path | None = None
    line: int = 0
    is_extra: bool = False
    key: str = ""

    @property
    def is_foreign(self) -> bool:
        """Whether it is in a folder of choices beside the shipped ones, which may come from anywhere."""
        return self.file is not None and not self.file.is_relative_to(ROOT)

    def __str__(self) -> str:
        if self.file is None:
            return "on the command line"
        shown = self.file
        if self.file.is_relative_to(ROOT):
            shown = Path(ROOT.name) / self.file.relative_to(ROOT)
        elif self.file.is_relative_to(Path.cwd()):
            shown = self.file.relative_to(Path.cwd())
        return f"{shown}:{self.line}"


class Origins:
    """The origins of a config's keys, found out when the first one is asked for.

    Args:
        overrides: as Hydra gets them, those of a stage's choices included.
        folders: of YAML groups, in the order in which they are searched.
        stage: whose settings are laid over.
    """

    def __init__(self, overrides: Sequence[str], folders: Sequence[Path], stage: str | None = None) -> None:
        self.overrides = list(overrides)
        self.folders = list(folders)
        self.stage = stage

    def exactly(self, path: str) -> Origin | None:
        """Where a key itself was written."""
        return self._all.get(path)

    def of(self, path: str) -> Origin | None:
        """Where a key, or else the nearest node around it, was written."""
        while path:
            found = self._all.get(path) or self._all.get(f"{path}._target_")
            if found is not None:
                return found
            path = path.rpartition(".")[0]
        return None

    @functools.cached_property
    def _all(self) -> dict[str, Origin]:
        found: dict[str, Origin] = {}
        for file, package in self._files():
            for path, line, is_leaf in lines_of(file):
                key = ".".join(part for part in (package, path) if part)
                _set(found, key, Origin(file, line, file.parent.name == "experiment", key), is_leaf)
        self._override(found)
        self._lay_over(found)
        self._override(found)  # what was said on the command line also wins over what a stage sets
        return found

    def _override(self, found: dict[str, Origin]) -> None:
        for override in self.overrides:
            parsed = OverridesParser.create().parse_override(override)
            if parsed.is_delete():
                _set(found, parsed.key_or_group, None, True)
            elif parsed.is_add() or parsed.is_force_add():
                _set(found, parsed.key_or_group, Origin(), True)

    def _lay_over(self, found: dict[str, Origin]) -> None:
        """The settings of the stage, from where the stage is written."""
        before = f"stages.{self.stage}.set."
        below = {key.removeprefix(before): origin for key, origin in found.items() if key.startswith(before)}
        for key, origin in below.items():
            is_leaf = not any(other.startswith(f"{key}.") for other in below)
            _set(found, key, Origin(origin.file, origin.line, origin.file is not None, origin.key), is_leaf)

    def _files(self) -> Iterator[tuple[Path, str]]:
        """The files that were composed, in their order, and the node where each one's keys stand."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list("config", self.overrides, RunMode.RUN).defaults
        for default in defaults:
            for folder in self.folders:
                file = folder / f"{default.config_path}.yaml"
                if file.is_file():
                    yield file, default.package or ""
                    break


def lines_of(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(dotted key, line, whether it is no map) of each key of a YAML file; its list of defaults is none."""
    root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    yield from (entry for entry in _walk(root, "") if entry[0].partition(".")[0] != "defaults")


def _walk(node: yaml.Node | None, before: str) -> Iterator[tuple[str, int, bool]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{before}{key.value}"
            is_map = isinstance(value, yaml.MappingNode) and bool(value.value)
            yield path, key.start_mark.line + 1, not is_map
            yield from _walk(value, f"{path}.")


def _set(found: dict[str, Origin], key: str, origin: Origin | None, is_leaf: bool) -> None:
    """Enter a key; a value that is no map stands in the place of what was below it."""
    if is_leaf:
        for below in [other for other in found if other.startswith(f"{key}.")]:
            del found[below]
    if origin is None:
        found.pop(key, None)
    else:
        found[key] = origin
