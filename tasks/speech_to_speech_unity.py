"""Speech to speech by UnitY: a first pass to text, a second pass from its states to units, a vocoder.

Letters: B batch, T frames, S subwords, U units, N samples, D model dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..components.roles import (
    Adaptor,
    Frontend,
    SpeechEncoder,
    TextSeq2Seq,
    TextToUnit,
    Tokenizer,
    UnitExtractor,
    UnitVocoder,
)
from ..components.search import Hypothesis, SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction
from .speech_to_text import SpeechToText, text_predictions, translate_text


class SpeechToSpeechUnitY(SpeechToText):
    """Two passes (UnitY, Inaguma et al. 2022, section 3): text first, then units from the text decoder's states.

    It is a `SpeechToText` with a second pass behind it: the same state names, so that a trained first pass loads into
    it. With the three parts of the first pass frozen (`freeze`), as in stage 3 of SeamlessM4T, only the second pass
    learns and only its losses are computed. Otherwise both passes learn together.

    Args:
        speech_encoder, adaptor, text_seq2seq: first pass.
        t2u: second pass. It reads the decoder state that predicts each token, from the first piece to eos.
        vocoder: units to waveform, for `predict`; it does not learn here (`UnitVocoderTask` trains it).
        unit_extractor: what made the units, kept so that speech can be turned into them again. May be None.
        tokenizer, frontend, ctc_weight, ctc_on, label_smoothing, loss_on_lang_token, loss_weights, search: as in
            `SpeechToText`; `loss_weights` also takes the names of the second pass's losses.
    """

    modes = frozenset({"s2tt", "asr", "s2st"})
    needs = frozenset({"speech", "transcript", "target", "units"})
    roles = ("speech_encoder", "adaptor", "text_seq2seq", "t2u", "vocoder", "unit_extractor")

    def __init__(
        self,
        *,
        speech_encoder: SpeechEncoder,
        adaptor: Adaptor,
        text_seq2seq: TextSeq2Seq,
        t2u: TextToUnit,
        vocoder: UnitVocoder,
        tokenizer: Tokenizer,
        frontend: Frontend,
        unit_extractor: UnitExtractor | None = None,
        ctc_weight: float = 0.3,
        ctc_on: Literal["encoder", "adaptor"] = "encoder",
        label_smoothing: float = 0.1,
        loss_on_lang_token: bool = False,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
    ) -> None:
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
            loss_weights=loss_weights,
            search=search,
        )
        self.t2u = t2u
        self.vocoder = vocoder
        self.unit_extractor = unit_extractor
        for owner, part in (("t2u", t2u), ("unit_extractor", unit_extractor)):
            if part is not None and part.num_units != vocoder.num_units:
                raise ValueError(
                    f"{owner}.num_units is {part.num_units}, but vocoder.num_units is {vocoder.num_units}: "
                    "set both to ${unit_extractor.num_units}"
                )
        if t2u.input_dim != text_seq2seq.dim:
            raise ValueError(
                f"t2u.input_dim is {t2u.input_dim}, but text_seq2seq has width {text_seq2seq.dim}: "
                "set t2u.input_dim=${text_seq2seq.dim}"
            )
        t2u.set_characters(tokenizer.piece_characters())
        self.freeze_parts(["vocoder", *(["unit_extractor"] if unit_extractor is not None else [])])

    @property
    def first_pass_frozen(self) -> bool:
        return self.frozen.issuperset(SpeechToText.roles)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Loss]]:
        assert batch.target is not None
        assert batch.units is not None
        losses: dict[str, Loss] = {}
        statistics: dict[str, Loss] = {}
        with torch.no_grad() if self.first_pass_frozen else nullcontext():
            encoded, adapted, states = self.text_pass(batch)
            if not self.first_pass_frozen:
                losses, statistics = self.text_losses(batch, encoded, adapted, states)
        second, text = second_pass_input(states, batch.target)
        losses.update(self.t2u(second, batch.units, text))
        return losses, statistics

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        mode = self.pick_mode(task, batch)
        assert batch.speech is not None
        memory = self.encode_speech(batch.speech)
        assert self.tokenizer is not None
        speak = mode == "s2st"
        options = options or self.search
        hypotheses = translate_text(self.text_seq2seq, memory, batch, mode, self.tokenizer, options, keep_states=speak)
        predictions = text_predictions(batch, mode, hypotheses, self.tokenizer)
        if not speak:
            return predictions
        states, text = self.second_pass_of(hypotheses)
        output = self.t2u.generate(states, text)
        speech = self.vocoder(output.units, durations=output.durations)
        return [
            replace(p, units=units.tolist(), audio=audio.float().cpu(), sample_rate=self.vocoder.sample_rate)
            for p, units, audio in zip(predictions, output.units.unpad(), speech.unpad(), strict=True)
        ]

    def second_pass_of(self, hypotheses: list[Hypothesis]) -> tuple[Padded, Padded]:
        """What the second pass reads of finished hypotheses: (B, S, D) states and the (B, S) ids they predict."""
        assert self.tokenizer is not None
        eos = torch.tensor([self.tokenizer.eos_id])
        states = [h.states[1:] for h in hypotheses if h.states is not None]  # the first one predicts the language
        text = [torch.cat([h.tokens, eos]) for h in hypotheses]
        return Padded.from_list(states), Padded.from_list(text, self.tokenizer.pad_id).to(states[0].device)

    @torch.inference_mode()
    def resynthesise(self, batch: Batch) -> list[Tensor] | None:
        """The batch's reference units through the vocoder, one (N,) waveform per row: what perfect units would give.

        None where the batch has neither units nor target speech.
        """
        return resynthesise(self.vocoder, self.unit_extractor, batch)


def second_pass_input(states: Padded, target: Padded) -> tuple[Padded, Padded]:
    """Drop the state that predicts the language: (B, S-1, D) -> (B, S-2, D) and the (B, S-2) ids the rest predict."""
    lengths = (states.lengths - 1).clamp(min=0)
    return Padded(states.data[:, 1:], lengths), Padded(target.data[:, 2:], lengths)


def resynthesise(vocoder: UnitVocoder, unit_extractor: UnitExtractor | None, batch: Batch) -> list[Tensor] | None:
    """Reference units (given, or made from the target speech) through a vocoder: one (N,) waveform per row, or None."""
    units = batch.units
    if units is None:
        if unit_extractor is None or batch.target_speech is None:
            return None
        units = unit_extractor(batch.target_speech)
    durations = units.with_data(torch.ones_like(units.data))
    return [audio.float().cpu() for audio in vocoder(units, durations=durations).unpad()]
