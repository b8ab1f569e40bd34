"""A speech encoder by itself: what a published encoder is until it is composed with a decoder."""

from __future__ import annotations

from typing import Any

from ..components.errors import UserError
from ..components.roles import Adaptor, Frontend, SpeechEncoder
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .task import Task


class EncodeSpeech(Task):
    """Speech to states. It holds an imported encoder, for `export`, for `init.speech_encoder=RUN` and for `check`. It
    has no loss of its own (pre-training is another task), so it neither trains nor translates.

    Args:
        speech_encoder: the part.
        frontend: waveform to what it reads.
        adaptor: where it was published with one.
    """

    needs = frozenset({"speech"})
    modes = frozenset()
    roles = ("speech_encoder", "adaptor")

    def __init__(self, *, speech_encoder: SpeechEncoder, frontend: Frontend, adaptor: Adaptor | None = None) -> None:
        super().__init__()
        self.speech_encoder = speech_encoder
        self.adaptor = adaptor
        self.frontend = frontend

    def encode(self, speech: Padded) -> Padded:
        """(B, T, F) features or (B, N) samples -> (B, T', D) states."""
        states = self.speech_encoder(speech)
        return states if self.adaptor is None else self.adaptor(states).states

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        assert batch.speech is not None
        self.encode(batch.speech)
        return {}, {}

    def attach_optimizer(self, optimizer: Any, schedule: Any) -> None:
        raise UserError("task=encode_speech has nothing to train: compose the encoder in task=speech_to_text")

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        raise UserError("a speech encoder alone translates nothing: compose it with a decoder in task=speech_to_text")
