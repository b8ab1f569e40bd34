"""What is trained or run: one LightningModule per task, and the commands. Tasks are imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "EncodeSpeech": "encode_speech",
    "FitUnits": "fit_units",
    "GanVocoder": "gan_vocoder",
    "SpeechToSpeechUnitY": "speech_to_speech_unity",
    "SpeechToText": "speech_to_text",
    "Task": "task",
    "TextToText": "text_to_text",
    "UnitVocoderTask": "unit_vocoder",
    "load_run": "run",
    "prepare": "training",
    "train": "training",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"voxzoo.tasks has no {name!r}; there are: {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
