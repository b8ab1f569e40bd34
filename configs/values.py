"""Values of a config that may be at fault elsewhere."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def value_of(config: DictConfig, key: str, default: Any = None) -> Any:
    """A value; None where it is missing, or refers to what is not there: these are faults of their own."""
    try:
        return OmegaConf.select(config, key, default=default, throw_on_missing=False)
    except OmegaConfBaseException:
        return None
