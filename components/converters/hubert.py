"""HuBERT (`HubertModel`): the layout of wav2vec 2.0 and two switches of its own."""

from __future__ import annotations

from typing import Any

from .settings import refuse_unless
from .wav2vec2 import Wav2Vec2


class Hubert(Wav2Vec2):
    model_types = ("hubert",)
    architecture = "HubertModel"

    def refuse(self, settings: dict[str, Any]) -> None:
        super().refuse(settings)
        refuse_unless(settings, "conv_pos_batch_norm", False)

    def own_settings(self, encoder: dict[str, Any]) -> dict[str, Any]:
        return {"feat_proj_layer_norm": encoder["input_norm"]}


FAMILY = Hubert()
