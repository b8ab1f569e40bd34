"""What decides the result of a training, as a key: two trainings of one key are the same training."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..training.settling import what_counts

_LENGTH = 12  # of a key, in hexadecimal digits


def key_of(*what: str) -> str:
    """A short key of texts."""
    return hashlib.sha256("\0".join(what).encode(errors="surrogatepass")).hexdigest()[:_LENGTH]


def stage_keys(stages: Mapping[str, DictConfig], after: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The key of each stage: of what counts in its config, of the files that it names, of the stages that it builds on.

    Args:
        stages: name -> composed config, in an order in which they could run.
        after: name -> the stages that it waits for.
    """
    keys: dict[str, str] = {}
    for name, config in stages.items():
        lines = what_counts(config)
        files = sorted(_inputs(OmegaConf.to_container(OmegaConf.create("\n".join(lines)))))
        keys[name] = key_of("\n".join(lines), *files, *(keys[other] for other in after[name]))
    return keys


def _inputs(value: Any) -> Iterator[str]:
    """A line on each file and folder that a config names."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _inputs(one)
    elif isinstance(value, list):
        for one in value:
            yield from _inputs(one)
    elif isinstance(value, str) and ("/" in value or "." in value) and len(value) < 4096 and "\0" not in value:
        path = Path(value).expanduser()
        try:
            if path.is_file():
                state = path.stat()
                yield f"{value} {_sum(path, state.st_size, state.st_mtime_ns)}"
            elif path.is_dir() and any((path / name).exists() for name in ("config.yaml", "config.json")):
                yield f"{value} {_states(path)}"
        except OSError:
            return


@functools.cache
def _sum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _states(folder: Path) -> str:
    """Of a run or a published folder to begin with: names and sizes of what has its weights, and the smaller files."""
    lines = []
    for path in sorted(folder.glob("**/*")):
        if path.suffix in (".ckpt", ".safetensors", ".bin", ".pt") and path.is_file():
            state = path.stat()
            lines.append(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}")
        elif path.name in ("config.yaml", "config.json", "done.json", "best.json"):
            lines.append(f"{path.relative_to(folder)} {_sum(path, path.stat().st_size, path.stat().st_mtime_ns)}")
    return key_of(*lines)
