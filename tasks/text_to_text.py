"""Text to text translation (T2TT). Letters: B batch, S subwords, D model dim."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..components.roles import TextSeq2Seq, Tokenizer
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Prediction, Statistic
from .task import Task
from .text import decoder_input, match_vocabulary, text_loss, text_predictions, translate_text


class TextToText(Task):
    """A text encoder and decoder under label-smoothed cross entropy (NLLB Team 2022).

    Args:
        text_seq2seq: a model with an encoder.
        tokenizer: text ids and languages.
        label_smoothing, loss_on_lang_token, loss_weights, search: as in `SpeechToText`.
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
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
        super().__init__(loss_weights=loss_weights)
        if not text_seq2seq.has_encoder:
            raise ValueError("TextToText needs a text encoder: set text_seq2seq.num_encoder_layers above 0")
        match_vocabulary(text_seq2seq, tokenizer)
        self.text_seq2seq = text_seq2seq
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing
        self.loss_on_lang_token = loss_on_lang_token
        self.search = search or SearchOptions()

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        assert batch.source is not None
        assert batch.target is not None
        assert self.tokenizer is not None
        states = self.text_seq2seq.decode(self.text_seq2seq.encode(batch.source), decoder_input(batch.target))
        text, accuracy = text_loss(
            self.text_seq2seq,
            states,
            batch.target,
            self.label_smoothing,
            self.loss_on_lang_token,
            self.tokenizer.prefix_length,
        )
        return {"text": text}, {"accuracy": accuracy}

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        mode = self.pick_mode(task, batch)
        assert batch.source is not None
        assert self.tokenizer is not None
        memory = self.text_seq2seq.encode(batch.source)
        hypotheses = translate_text(self.text_seq2seq, memory, batch, mode, self.tokenizer, options or self.search)
        return text_predictions(batch, mode, hypotheses, self.tokenizer)
