"""Masking while training in config.json of wav2vec 2.0, HuBERT and w2v-BERT 2.0: how much, and whether there is a
learned vector for it."""

from __future__ import annotations

from typing import Any

# Our argument -> the published key, and its value where config.json does not say.
_KEYS = {
    "mask_time_prob": ("mask_time_prob", 0.05),
    "mask_time_length": ("mask_time_length", 10),
    "mask_time_min": ("mask_time_min_masks", 2),
    "mask_feature_prob": ("mask_feature_prob", 0.0),
    "mask_feature_length": ("mask_feature_length", 10),
    "mask_feature_min": ("mask_feature_min_masks", 0),
}
_PROBS = ("mask_time_prob", "mask_feature_prob")


def masked(settings: dict[str, Any]) -> bool:
    """Whether the model has the vector: where a probability is set, also if masking is then switched off."""
    return any(settings.get(key, _KEYS[key][1]) > 0 for key in _PROBS)


def span_masking(settings: dict[str, Any]) -> dict[str, Any]:
    """An encoder's arguments for the masking that config.json asks for."""
    found = {ours: settings.get(theirs, default) for ours, (theirs, default) in _KEYS.items()}
    return found if settings.get("apply_spec_augment", True) else {**found, **dict.fromkeys(_PROBS, 0.0)}


def span_masking_settings(encoder: dict[str, Any]) -> dict[str, Any]:
    """config.json of an encoder's masking."""
    if not encoder.get("mask_embedding"):
        return dict.fromkeys(_PROBS, 0.0)
    if not any(encoder.get(key, 0.0) for key in _PROBS):
        return {"apply_spec_augment": False}  # a probability of 0 would mean that there is no vector
    found = {theirs: encoder[ours] for ours, (theirs, _) in _KEYS.items() if ours in encoder}
    return {**dict.fromkeys(_PROBS, 0.0), **found, "apply_spec_augment": True}
