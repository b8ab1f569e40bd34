"""Manifests, batching and the built-in corpora.

Names are imported on first use: the corpus generator runs in processes that must stay free of torch, because they fork.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "BatchSampler": "batching",
    "Collator": "collator",
    "SpeechTranslationData": "datamodule",
    "SpokenPhrases": "spoken_phrases",
    "Utterance": "manifest",
    "load_audio": "audio",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"voxzoo.datamodules has no {name!r}; there are: {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
