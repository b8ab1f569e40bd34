"""Reading config.json and preprocessor_config.json: values that must be there, values no part has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import read_json


def value(settings: dict[str, Any], key: str) -> Any:
    """A setting that must be there.

    Raises:
        UserError: it is missing.
    """
    if settings.get(key) is None:
        raise UserError(f"config.json of a {settings.get('model_type')} model has no {key}: fetch the whole file")
    return settings[key]


def refuse_unless(settings: dict[str, Any], key: str, expected: Any) -> None:
    """Refuse a setting that voxzoo's part has only one value for; a missing one is fine.

    Raises:
        UserError: it has another value.
    """
    if key in settings and settings[key] != expected:
        raise UserError(f"{key}={settings[key]!r}: only {expected!r} is published, and only that can be converted")


def fbank(folder: Path | None) -> dict[str, Any]:
    """The front end of SeamlessM4T and w2v-BERT 2.0, from preprocessor_config.json where there is one."""
    path = None if folder is None else folder / "preprocessor_config.json"
    found = read_json(path) if path is not None and path.exists() else {}
    bins, stack = found.get("num_mel_bins", found.get("feature_size", 80)), found.get("stride", 2)
    return {
        "_target_": "voxzoo.components.Fbank",
        "sample_rate": found.get("sampling_rate", 16000),
        "num_mel_bins": bins,
        "stack": stack,
        "standardise": True,
        "output_dim": bins * stack,
    }
