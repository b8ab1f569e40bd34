"""What differs between the configs of runs, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ...components.errors import UserError
from ...configs.yaml_files import load_map
from ..training.settling import what_counts
from .results import Run

_ABSENT = "-"


def differences(runs: Mapping[str, Sequence[Run]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: keys of which systems have different values, and those values.

    What does not decide what is learned is left out, and so is what follows from another key: `task.t2u.dim` where
    `t2u.dim` says the same, seeds where they repeat systems. Systems without a config, as those of elsewhere, are not
    in the table.

    Args:
        runs: system -> its runs, of which the first one's config counts.
    """
    flat: dict[str, dict[str, str]] = {}
    for system, own in runs.items():
        run = next((run for run in own if run.config is not None and run.config.is_file()), None)
        if run is not None:
            flat[system] = _flat(run)
    keys = sorted({key for values in flat.values() for key in values})
    found = {key: [values.get(key, _ABSENT) for values in flat.values()] for key in keys}
    rows = [[key, *own] for key, own in found.items() if len(set(own)) > 1 and found.get(_of_part(key)) != own]
    return ["key", *flat], rows


def _of_part(key: str) -> str:
    """The key of a part that the task has, by itself."""
    return key.removeprefix("task.") if key.startswith("task.") else ""


def _flat(run: Run) -> dict[str, str]:
    assert run.config is not None
    try:
        lines = what_counts(load_map(run.config))
    except UserError:  # an imported model's, which is none of ours
        return {}
    values = dict(_leaves(OmegaConf.to_container(OmegaConf.create("\n".join(lines)))))
    if run.seed:
        seed = values.pop("seed", None)
        values = {key: value for key, value in values.items() if not (key.endswith(".seed") and value == seed)}
    return values


def _leaves(value: Any, before: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{before}.{key}" if before else str(key))
    else:
        yield before, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
