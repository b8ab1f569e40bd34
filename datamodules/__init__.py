"""Manifests, batching and the built-in corpora.

Names are imported on first use: the corpus generator runs in processes that must stay free of torch, because they fork.
"""

from __future__ import annotations

from ..components.lazy import on_first_use

_WHERE = {
    "AudioFiles": "audio",
    "BatchSampler": "batching",
    "Collator": "collator",
    "Mix": "mixing",
    "SpeechTranslationData": "datamodule",
    "SpokenPhrases": "spoken_phrases",
    "Utterance": "manifest",
    "UtteranceData": "utterances",
    "check_data": "contract",
    "load_audio": "audio",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _WHERE)
