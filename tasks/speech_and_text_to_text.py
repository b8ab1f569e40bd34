"""Speech and its transcript to text at once: translation of both, and distillation from one into the other.

Letters: B batch, T frames, S subwords, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal

import torch

from ..components.errors import UserError
from ..components.losses.divergence import Kind, distillation_loss
from ..components.roles import Adaptor, Frontend, SpeechEncoder, TextSeq2Seq, Tokenizer
from ..components.search import SearchOptions
from ..components.types import Adapted, Batch, Loss, Padded, Statistic
from .speech_to_text import SpeechToText
from .teacher import Teacher
from .text import decoder_input, of_two_passes, side_of, text_loss


class SpeechAndTextToText(SpeechToText):
    """Multi-task fine-tuning of a model that reads speech and text (SeamlessM4T 2023, section 4.4.2; GMU at IWSLT 2025,
    arXiv:2505.21781): one decoder translates the speech (`text`) and its transcript (`mt`) into the same target, and
    what it says of the transcript is the teacher of what it says of the speech (`kd`).

    Targets of `asr` rows are the transcripts, which the text path then copies. Rows without a transcript learn from
    speech alone. It is a `SpeechToText` with the same state names, and serves `t2tt` too.

    Args:
        text_seq2seq: a model with an encoder.
        mt_weight, kd_weight: of the losses `mt` and `kd`; 0 leaves one out.
        kd_loss: `kl`, the sum of q (log q - log p); `cross_entropy`, that of -q log p, for the teacher's distribution q
            and the student's p.
        kd_temperature: of both (Hinton et al. 2015); the loss is multiplied by its square.
        detach_teacher: the teacher is not drawn towards the student. With a `mt_weight` of 0 too, the text path stands
            beside the training.
        train_text_encoder: whether the text encoder learns. Where it does not and has embeddings of its own
            (`text_seq2seq.tie_embeddings=false`), it stays as it is; else it reads those that the decoder learns.
        speech_encoder, adaptor, tokenizer, frontend, ctc_weight, ctc_on, label_smoothing, loss_on_lang_token, r_drop,
            teacher, loss_weights, search: as in `SpeechToText`.
    """

    needs = frozenset({"speech", "transcript", "source", "target"})
    modes = frozenset({"s2tt", "asr", "t2tt"})

    def __init__(
        self,
        *,
        speech_encoder: SpeechEncoder,
        adaptor: Adaptor,
        text_seq2seq: TextSeq2Seq,
        tokenizer: Tokenizer,
        frontend: Frontend,
        mt_weight: float = 1.0,
        kd_weight: float = 2.0,
        kd_loss: Literal["kl", "cross_entropy"] = "kl",
        kd_temperature: float = 1.0,
        detach_teacher: bool = False,
        train_text_encoder: bool = False,
        ctc_weight: float = 0.0,
        ctc_on: Literal["encoder", "adaptor"] = "encoder",
        label_smoothing: float = 0.1,
        loss_on_lang_token: bool = False,
        r_drop: float = 0.0,
        teacher: Teacher | None = None,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
        if not text_seq2seq.has_encoder:
            raise ValueError("SpeechAndTextToText needs a text encoder: set text_seq2seq.num_encoder_layers above 0")
        if min(mt_weight, kd_weight) < 0 or mt_weight == kd_weight == 0:
            raise ValueError(
                f"mt_weight={mt_weight}, kd_weight={kd_weight}: expected at least 0, and one above it; without either "
                "take task=speech_to_text"
            )
        if not kd_temperature > 0:
            raise ValueError(f"kd_temperature must be above 0; got {kd_temperature}")
        super().__init__(
            speech_encoder=speech_encoder,
            adaptor=adaptor,
            text_seq2seq=text_seq2seq,
            tokenizer=tokenizer,
            frontend=frontend,
            ctc_weight=ctc_weight,
            ctc_on=ctc_on,
            label_smoothing=label_smoothing,
            loss_on_lang_token=loss_on_lang_token,
            r_drop=r_drop,
            teacher=teacher,
            loss_weights={"mt": mt_weight, "kd": kd_weight, **(loss_weights or {})},
            search=search,
        )
        self.mt_weight, self.kd_weight = mt_weight, kd_weight
        self.kd_loss: Kind = kd_loss
        self.kd_temperature = kd_temperature
        self.detach_teacher = detach_teacher
        self.text_learns = mt_weight > 0 or not detach_teacher
        self.train_text_encoder = train_text_encoder and self.text_learns
        for module in text_seq2seq.encoder_only() if self.train_text_encoder else ():
            module.requires_grad_(True)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        first, text = self.text_pass(batch), self.source_pass(batch)
        losses, statistics = self._losses(batch, first, text)
        if not (self.r_drop and self.training):
            return losses, statistics
        second, again = self.text_pass(batch), self.source_pass(batch)
        both = (losses, self._losses(batch, second, again)[0])
        passes = [(first[2], second[2], self.label_mask(first[2]))]
        if self.text_learns:
            passes.append((text, again, self.label_mask(text, self._has_source(batch))))
        return of_two_passes(self.text_seq2seq, both, tuple(passes)), statistics

    def source_pass(self, batch: Batch) -> Padded:
        """(B, S-1, D) decoder states over the source text."""
        assert batch.target is not None
        if batch.source is None:
            spoken = ", ".join(sorted({*batch.src_lang}))
            raise UserError(
                f"SpeechAndTextToText reads transcripts, but the tokenizer has not all of {spoken}: add the language, "
                "or take task=speech_to_text"
            )
        with nullcontext() if self.text_learns else torch.no_grad():
            with nullcontext() if self.train_text_encoder else torch.no_grad():
                memory = self.text_seq2seq.encode(batch.source)
            return self.text_seq2seq.decode(memory, decoder_input(batch.target))

    @staticmethod
    def _has_source(batch: Batch) -> torch.Tensor:
        """(B,) bool: rows that have a transcript."""
        assert batch.transcript is not None
        return batch.transcript.lengths > 0

    def _losses(
        self, batch: Batch, speech: tuple[Padded, Adapted, Padded], text: Padded
    ) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        assert batch.target is not None
        assert self.tokenizer is not None
        losses, statistics = self.text_losses(batch, *speech)
        model, rows = self.text_seq2seq, self._has_source(batch)
        if self.mt_weight:
            losses["mt"], statistics["mt_accuracy"] = text_loss(
                model,
                text,
                batch.target,
                self.label_smoothing,
                self.loss_on_lang_token,
                self.tokenizer.prefix_length,
                rows,
            )
        if self.kd_weight:
            losses["kd"] = distillation_loss(
                side_of(model, speech[2]),
                side_of(model, text),
                mask=self.label_mask(text, rows),
                kind=self.kd_loss,
                temperature=self.kd_temperature,
                detach_teacher=self.detach_teacher,
            )
        return losses, statistics

    def serving_needs(self) -> frozenset[str]:
        return super().serving_needs() | {"source"}
