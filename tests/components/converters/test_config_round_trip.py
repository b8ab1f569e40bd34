"""config.json of every family through voxzoo and back: each setting as it was, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from voxzoo.components.converters.published import family_of
from voxzoo.components.errors import UserError

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "hubert": transformers.HubertConfig,
    "m2m_100": transformers.M2M100Config,
    "seamless_m4t": transformers.SeamlessM4TConfig,
    "seamless_m4t_v2": transformers.SeamlessM4Tv2Config,
    "wav2vec2": transformers.Wav2Vec2Config,
    "wav2vec2-bert": transformers.Wav2Vec2BertConfig,
    "whisper": transformers.WhisperConfig,
}
# Said again by the length of conv_dim, which wins.
DERIVED = {"num_feat_extract_layers"}


def odd(key: str, value: Any) -> Any:
    """Another value of the same kind; None where there is no other to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if key.endswith("_id") else 2 * value or 3
    if isinstance(value, float):
        return value / 2 + 0.01
    return "relu" if value == "gelu" else "gelu" if value == "relu" else None


def round_trip(settings: dict[str, Any]) -> dict[str, Any]:
    """What an export writes over the config.json that came with the model."""
    family = family_of(settings["model_type"], "here")
    return {**settings, **family.settings(family.nodes(settings))}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_no_setting_changes_without_a_word(model_type: str):
    plain = json.loads(CONFIGS[model_type]().to_json_string(use_diff=False))
    # The class is that of the parts, and transformers writes none for a config alone.
    plain["architectures"] = round_trip(plain)["architectures"]
    assert round_trip(plain) == plain
    kept = 0
    for key, value in plain.items():
        other = odd(key, value)
        if other is None or key in DERIVED:
            continue
        settings = {**plain, key: other}
        try:
            found = round_trip(settings)
        except UserError:
            continue
        assert found == settings, key
        kept += 1
    assert kept > 20
