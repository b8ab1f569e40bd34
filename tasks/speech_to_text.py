"""Speech to text: translation (S2TT) and recognition (ASR) by one model, many directions.

Letters: B batch, T frames, S subwords, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..components.errors import UserError
from ..components.losses.ctc import ctc_loss
from ..components.roles import Adaptor, Frontend, SpeechEncoder, TextSeq2Seq, Tokenizer
from ..components.search import SearchOptions
from ..components.types import Adapted, Batch, Loss, Padded, Prediction, Statistic
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


class SpeechToText(Task):
    """Speech encoder, adaptor and text decoder under label-smoothed cross entropy and an auxiliary CTC loss.

    ASR is translation whose target language is the source's (Seamless Communication 2023, section 4). The CTC loss is
    on the source transcript (hybrid CTC/attention, Watanabe et al. 2017), over encoder or adaptor states; rows that are
    too short for their transcript, or have none, contribute nothing and are not counted.

    Args:
        speech_encoder, adaptor, text_seq2seq: the parts. A text encoder of the last one is kept, but does not learn.
        tokenizer: text ids; its language tokens name the directions.
        frontend: waveform to features, for inference.
        ctc_weight: weight of the CTC loss; 0 leaves its head out.
        ctc_on: whose states the CTC head reads.
        label_smoothing: mass spread over the vocabulary (fairseq form).
        loss_on_lang_token: also learn to predict the target language (transformers does, the original does not).
        r_drop: weight of R-Drop (Liang et al. 2021): in training each batch goes through twice, and the passes are to
            agree; 0: once. Validation has one pass.
        teacher: a run to learn from besides the targets.
        loss_weights: weights by loss name (`text`, `ctc`, and what the adaptor brings).
        search: default options of `predict`.
    """

    needs = frozenset({"speech", "transcript", "target"})
    modes = frozenset({"s2tt", "asr"})
    reads_speech = True
    roles = ("speech_encoder", "adaptor", "text_seq2seq")

    def __init__(
        self,
        *,
        speech_encoder: SpeechEncoder,
        adaptor: Adaptor,
        text_seq2seq: TextSeq2Seq,
        tokenizer: Tokenizer,
        frontend: Frontend,
        ctc_weight: float = 0.3,
        ctc_on: Literal["encoder", "adaptor"] = "encoder",
        label_smoothing: float = 0.1,
        loss_on_lang_token: bool = False,
        r_drop: float = 0.0,
        teacher: Teacher | None = None,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
        super().__init__(
            loss_weights={"ctc": ctc_weight, **r_drop_weight(r_drop), **teacher_weight(teacher), **(loss_weights or {})}
        )
        self.speech_encoder = speech_encoder
        self.adaptor = adaptor
        self.text_seq2seq = text_seq2seq
        self.tokenizer = tokenizer
        self.frontend = frontend
        self.ctc_on = ctc_on
        self.label_smoothing = label_smoothing
        self.loss_on_lang_token = loss_on_lang_token
        self.r_drop = r_drop
        self.teacher = teacher
        read_for_teacher(self, teacher)
        self.search = search or SearchOptions()
        self.ctc_head = None
        if ctc_weight < 0:
            raise ValueError(f"ctc_weight must be at least 0; got {ctc_weight}")
        if ctc_weight > 0:
            width = speech_encoder.output_dim if ctc_on == "encoder" else adaptor.output_dim
            self.ctc_head = nn.Linear(width, tokenizer.vocab_size)
        if speech_encoder is not None:  # a model that reads text alone has none (SpeechToSpeechUnitY)
            match_widths(speech_encoder, adaptor, text_seq2seq)
        match_vocabulary(text_seq2seq, tokenizer)
        for module in text_seq2seq.encoder_only():
            module.requires_grad_(False)  # no loss reaches it, and DDP would wait for its gradients

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        return self.text_learning(batch, self.text_pass(batch))

    def text_learning(
        self, batch: Batch, first: tuple[Padded, Adapted, Padded]
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses and statistics of what `text_pass` gave, and with R-Drop of another pass."""
        losses, statistics = self.text_losses(batch, *first)
        if not (self.r_drop and self.training):
            return losses, statistics
        second = self.text_pass(batch)
        both = (losses, self.text_losses(batch, *second)[0])
        return of_two_passes(self.text_seq2seq, both, ((first[2], second[2], self.label_mask(first[2])),)), statistics

    def label_mask(self, states: Padded, rows: Tensor | None = None) -> Tensor:
        """(B, S-1) bool: where states of the decoder predict what is learned."""
        assert self.tokenizer is not None
        return label_mask(states, self.loss_on_lang_token, self.tokenizer.prefix_length, rows)

    def text_pass(self, batch: Batch, with_eos: bool = False) -> tuple[Padded, Adapted, Padded]:
        """Teacher forcing: encoder states (B, T, D), adapted states (B, T', D) and decoder states (B, S-1, D); with the
        state of the closing eos, which predicts nothing, (B, S, D)."""
        assert batch.speech is not None
        assert batch.target is not None
        encoded = self.speech_encoder(batch.speech)
        adapted = self.adaptor(encoded, batch.transcript)
        tokens = batch.target if with_eos else decoder_input(batch.target)
        return encoded, adapted, self.text_seq2seq.decode(adapted.states, tokens)

    def text_losses(
        self, batch: Batch, encoded: Padded, adapted: Adapted, states: Padded
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses and statistics of what `text_pass` gave."""
        assert batch.target is not None
        assert self.tokenizer is not None
        text, accuracy = text_loss(
            self.text_seq2seq,
            states,
            batch.target,
            self.label_smoothing,
            self.loss_on_lang_token,
            self.tokenizer.prefix_length,
        )
        losses = {"text": text, **adapted.losses}
        if self.ctc_head is not None:
            assert batch.transcript is not None
            source = encoded if self.ctc_on == "encoder" else adapted.states
            logits = source.with_data(self.ctc_head(source.data))
            losses["ctc"] = ctc_loss(logits, batch.transcript, blank=self.tokenizer.pad_id)
        if self.teacher is not None:
            side = side_of(self.text_seq2seq, states)
            losses["teacher"] = self.teacher.teach(batch, side, self.label_mask(states))
        return losses, {"accuracy": accuracy}

    def freeze_parts(self, roles: Iterable[str]) -> None:
        super().freeze_parts(roles)
        if self.ctc_head is not None and self.frozen.issuperset(SpeechToText.roles):
            self.ctc_head.requires_grad_(False)  # its loss is not computed for a frozen first pass

    def encode_speech(self, speech: Padded) -> Padded:
        """(B, T, F) features -> (B, T', D) memory of the text decoder."""
        dtype = next((p.dtype for p in self.speech_encoder.parameters()), speech.data.dtype)
        return self.adaptor(self.speech_encoder(speech.to(dtype))).states  # of weights in half precision too

    def memory_of(self, batch: Batch, mode: str) -> Padded:
        """(B, T', D) what the text decoder reads of a batch in a task."""
        if mode.startswith("t2"):
            if batch.source is None:
                raise UserError(f"{mode} reads text, but the batch has none")
            return self.text_seq2seq.encode(batch.source)
        assert batch.speech is not None
        return self.encode_speech(batch.speech)

    @torch.inference_mode()
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


def match_widths(speech_encoder: SpeechEncoder, adaptor: Adaptor, text_seq2seq: TextSeq2Seq) -> None:
    """Refuse parts whose widths do not fit, naming both."""
    if speech_encoder.output_dim != adaptor.input_dim:
        raise ValueError(
            f"adaptor.input_dim is {adaptor.input_dim}, but speech_encoder gives width {speech_encoder.output_dim}: "
            "set adaptor.input_dim=${speech_encoder.dim}"
        )
    if adaptor.output_dim != text_seq2seq.dim:
        raise ValueError(
            f"adaptor.output_dim is {adaptor.output_dim}, but text_seq2seq has width {text_seq2seq.dim}: "
            "set adaptor.output_dim=${text_seq2seq.dim}"
        )
