"""Text to text translation (T2TT). Letters: B batch, S subwords, D model dim."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..components.roles import TextSeq2Seq, Tokenizer
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .task import Task
from .teacher import Teacher, read_for_teacher, teacher_weight
from .text import (
    decoder_input,
    label_mask,
    match_vocabulary,
    of_two_passes,
    r_drop_weight,
    several_texts,
    side_of,
    text_loss,
)


class TextToText(Task):
    """A text encoder and decoder under label-smoothed cross entropy (NLLB Team 2022).

    Args:
        text_seq2seq: a model with an encoder.
        tokenizer: text ids and languages.
        label_smoothing, loss_on_lang_token, r_drop, teacher, loss_weights, search: as in `SpeechToText`.
    """

    needs = frozenset({"source", "target"})
    modes = frozenset({"t2tt"})
    roles = ("text_seq2seq",)

    def __init__(
        self,
        *,
        text_seq2seq: TextSeq2Seq,
        tokenizer: Tokenizer,
        label_smoothing: float = 0.1,
        loss_on_lang_token: bool = False,
        r_drop: float = 0.0,
        teacher: Teacher | None = None,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
        super().__init__(loss_weights={**r_drop_weight(r_drop), **teacher_weight(teacher), **(loss_weights or {})})
        if not text_seq2seq.has_encoder:
            raise ValueError("TextToText needs a text encoder: set text_seq2seq.num_encoder_layers above 0")
        match_vocabulary(text_seq2seq, tokenizer)
        self.text_seq2seq = text_seq2seq
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing
        self.loss_on_lang_token = loss_on_lang_token
        self.r_drop = r_drop
        self.teacher = teacher
        read_for_teacher(self, teacher)
        self.search = search or SearchOptions()

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        first = self._states(batch)
        losses, accuracy = self._losses(batch, first)
        if self.r_drop and self.training:
            second = self._states(batch)
            both = (losses, self._losses(batch, second)[0])
            losses = of_two_passes(self.text_seq2seq, both, ((first, second, self._mask(first)),))
        return losses, {"accuracy": accuracy}

    def memory_of(self, batch: Batch, mode: str) -> Padded:
        """(B, S, D) what the decoder reads of a batch."""
        assert batch.source is not None
        return self.text_seq2seq.encode(batch.source)

    def _states(self, batch: Batch) -> Padded:
        """(B, S-1, D) states of the decoder."""
        assert batch.target is not None
        return self.text_seq2seq.decode(self.memory_of(batch, "t2tt"), decoder_input(batch.target))

    def _mask(self, states: Padded) -> Tensor:
        assert self.tokenizer is not None
        return label_mask(states, self.loss_on_lang_token, self.tokenizer.prefix_length)

    def _losses(self, batch: Batch, states: Padded) -> tuple[dict[str, Loss], Statistic]:
        assert batch.target is not None
        assert self.tokenizer is not None
        smoothing, prefix = self.label_smoothing, self.tokenizer.prefix_length
        text, accuracy = text_loss(self.text_seq2seq, states, batch.target, smoothing, self.loss_on_lang_token, prefix)
        losses = {"text": text}
        if self.teacher is not None:
            losses["teacher"] = self.teacher.teach(batch, side_of(self.text_seq2seq, states), self._mask(states))
        return losses, accuracy

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        return [found[0] for found in self.predict_several(batch, task=task, options=options)]

    @torch.inference_mode()
    def predict_several(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None, count: int = 1
    ) -> list[list[Prediction]]:
        mode = self.pick_mode(task, batch)
        assert self.tokenizer is not None
        memory, options = self.memory_of(batch, mode), options or self.search
        return several_texts(self.text_seq2seq, memory, batch, mode, self.tokenizer, options, count)
