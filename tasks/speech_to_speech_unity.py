"""Speech to speech by UnitY: a first pass to text, a second pass from its states to units, a vocoder; with a text
encoder also from text.

Letters: B batch, T frames, S subwords, U units, N samples, D model dim, P tokens of the prefix, n tokens of a
hypothesis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..components.errors import UserError
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
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .speech_to_text import SpeechToText
from .teacher import Teacher
from .text import prefixes, text_predictions, translate_text
from .voices import require_languages, require_voices, resynthesise, told_to_t2u, told_to_vocoder


class SpeechToSpeechUnitY(SpeechToText):
    """Two passes (UnitY, Inaguma et al. 2022, section 3): text first, then units from the text decoder's states.

    It is a `SpeechToText` with a second pass behind it: the same state names, so that a trained first pass loads into
    it. With the three parts of the first pass frozen (`freeze`), as in stage 3 of SeamlessM4T, only the second pass
    learns and only its losses are computed. Otherwise both passes learn together.

    It serves `s2st`, `s2tt` and `asr`, and where `text_seq2seq` has an encoder `t2st` and `t2tt` too. The source is
    encoded once; the second pass reads the states that the search kept, so the decoder does not run again either (but
    for `t2u_eos`).

    Args:
        speech_encoder, adaptor, text_seq2seq: first pass. Without the first two the model reads text alone and does not
            train here.
        t2u: second pass. It reads decoder states, each with the token that it predicts.
        vocoder: units to waveform, for `predict`; it does not learn here (`UnitVocoderTask` trains it).
        unit_extractor: what made the units, kept so that speech can be turned into them again. May be None.
        tokenizer, frontend, ctc_weight, ctc_on, label_smoothing, loss_on_lang_token, r_drop, teacher, loss_weights,
            search: as in `SpeechToText`; `loss_weights` also takes the names of the second pass's losses.
        t2u_input: which states the second pass reads. `pieces`: those that predict the first piece to eos. `all`: also
            those of the prefix before them (eos, language), as the published models do.
        t2u_eos: whether it also reads the state of the closing eos itself. `strip`: no (the original implementation).
            `keep`: yes (SeamlessM4T v1 in transformers; the decoder then runs once more over the finished text).
            `keep_shorter`: in all rows of a batch but the longest, so that a row depends on its batch (v2 in
            transformers; in training as `strip`).
        t2u_languages: the languages of `t2u` in the order of their tokens; empty where it has none. A second pass that
            takes no language is not told; what is named here still bounds what is spoken.
        vocoder_languages: the languages of `vocoder` in the order of its table; empty where it has none.
        speaker: speaker of the vocoder; None leaves it to the vocoder.
    """

    modes = frozenset({"s2tt", "asr", "s2st"})
    needs = frozenset({"speech", "transcript", "target", "units"})
    roles = ("speech_encoder", "adaptor", "text_seq2seq", "t2u", "vocoder", "unit_extractor")

    def __init__(
        self,
        *,
        text_seq2seq: TextSeq2Seq,
        t2u: TextToUnit,
        vocoder: UnitVocoder,
        tokenizer: Tokenizer,
        speech_encoder: SpeechEncoder | None = None,
        adaptor: Adaptor | None = None,
        frontend: Frontend | None = None,
        unit_extractor: UnitExtractor | None = None,
        ctc_weight: float = 0.3,
        ctc_on: Literal["encoder", "adaptor"] = "encoder",
        label_smoothing: float = 0.1,
        loss_on_lang_token: bool = False,
        r_drop: float = 0.0,
        teacher: Teacher | None = None,
        loss_weights: Mapping[str, float] | None = None,
        search: SearchOptions | None = None,
        t2u_input: Literal["pieces", "all"] = "pieces",
        t2u_eos: Literal["strip", "keep", "keep_shorter"] = "strip",
        t2u_languages: Sequence[str] = (),
        vocoder_languages: Sequence[str] = (),
        speaker: int | None = None,
    ) -> None:
        super().__init__(
            speech_encoder=speech_encoder,  # pyright: ignore[reportArgumentType]
            adaptor=adaptor,  # pyright: ignore[reportArgumentType]
            text_seq2seq=text_seq2seq,
            tokenizer=tokenizer,
            frontend=frontend,  # pyright: ignore[reportArgumentType]
            ctc_weight=ctc_weight if speech_encoder is not None else 0.0,
            ctc_on=ctc_on,
            label_smoothing=label_smoothing,
            loss_on_lang_token=loss_on_lang_token,
            r_drop=r_drop,
            teacher=teacher,
            loss_weights=loss_weights,
            search=search,
        )
        self.t2u = t2u
        self.vocoder = vocoder
        self.unit_extractor = unit_extractor
        self.t2u_input, self.t2u_eos = t2u_input, t2u_eos
        self.t2u_languages, self.vocoder_languages = tuple(t2u_languages), tuple(vocoder_languages)
        self.speaker = speaker
        modes = type(self).modes if speech_encoder is not None else frozenset()
        if text_seq2seq.has_encoder:
            modes |= {"t2tt", "t2st"}
        if not modes or (speech_encoder is None) != (adaptor is None):
            raise ValueError(
                "SpeechToSpeechUnitY reads speech with speech_encoder and adaptor, or text with an encoder in "
                "text_seq2seq: give both of the first, or text_seq2seq.num_encoder_layers above 0"
            )
        self.modes = modes  # pyright: ignore[reportAttributeAccessIssue]
        require_languages(t2u, self.t2u_languages)
        require_voices(vocoder, self.vocoder_languages, speaker)
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
        with torch.device("cpu"):  # the tokenizer's tables are real, also where parameters are built on the meta device
            t2u.set_characters(tokenizer.piece_characters(), tokenizer.pieces())
        self.freeze_parts(["vocoder", *(["unit_extractor"] if unit_extractor is not None else [])])

    @property
    def first_pass_frozen(self) -> bool:
        return self.frozen.issuperset(SpeechToText.roles)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        if self.speech_encoder is None:
            raise UserError(
                "this model reads text alone: the second pass is trained from speech, give a speech_encoder"
            )
        assert batch.target is not None
        assert batch.units is not None
        losses: dict[str, Loss] = {}
        statistics: dict[str, Statistic] = {}
        keep = self.t2u_eos == "keep"
        with torch.no_grad() if self.first_pass_frozen else nullcontext():
            encoded, adapted, states = self.text_pass(batch, with_eos=keep)
            if not self.first_pass_frozen:
                predicting = Padded(states.data[:, :-1], (states.lengths - 1).clamp(min=0)) if keep else states
                losses, statistics = self.text_learning(batch, (encoded, adapted, predicting))
        second, text = self.second_pass_input(states, batch.target)
        told = told_to_t2u(self.t2u, batch, self.t2u_languages, second.device, training=True)
        losses.update(self.t2u(second, batch.units, text, **told))
        return losses, statistics

    def second_pass_input(self, states: Padded, target: Padded) -> tuple[Padded, Padded]:
        """What the second pass reads in training: states of the (B, S) target and the ids that they predict, from the
        first or from the language on; a state that predicts nothing stands by padding."""
        assert self.tokenizer is not None
        first = 0 if self.t2u_input == "all" else self.tokenizer.prefix_length - 1
        lengths = (states.lengths - first).clamp(min=0)
        text = target.data[:, 1:]
        if states.data.shape[1] > text.shape[1]:
            text = torch.cat([text, torch.full_like(text[:, :1], self.tokenizer.pad_id)], 1)
        return Padded(states.data[:, first:], lengths), Padded(text[:, first:], lengths)

    @property
    def spoken_languages(self) -> tuple[str, ...] | None:
        """Languages that second pass and vocoder both have; None where neither is told."""
        tables = [table for table in (self.t2u_languages, self.vocoder_languages) if table]
        return tuple(lang for lang in tables[0] if lang in tables[-1]) if tables else None

    def serving_needs(self) -> frozenset[str]:
        return super().serving_needs() | ({"source"} if "t2tt" in self.modes else set())

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        mode = self.pick_mode(task, batch)
        assert self.tokenizer is not None
        speak = mode.endswith("2st")
        # A language that cannot be spoken is refused before the first pass runs.
        told, voice = {}, {}
        if speak:
            told = told_to_t2u(self.t2u, batch, self.t2u_languages, self.device)
            voice = told_to_vocoder(self.vocoder, batch, self.vocoder_languages, self.speaker, self.device)
        memory, options = self.memory_of(batch, mode), options or self.search
        found = translate_text(self.text_seq2seq, memory, batch, mode, self.tokenizer, options, keep_states=speak)
        hypotheses = [row[0] for row in found]
        predictions = text_predictions(batch, mode, hypotheses, self.tokenizer)
        if not speak:
            return predictions
        states, text = self.second_pass_of(hypotheses, memory, prefixes(batch, mode, self.tokenizer))
        output = self.t2u.generate(states, text, **told)
        speech = self.vocoder(output.units, durations=output.durations, **voice)
        return [
            replace(p, units=units.tolist(), audio=audio.float().cpu(), sample_rate=self.vocoder.sample_rate)
            for p, units, audio in zip(predictions, output.units.unpad(), speech.unpad(), strict=True)
        ]

    def second_pass_of(
        self, hypotheses: list[Hypothesis], memory: Padded, prefix: list[list[int]]
    ) -> tuple[Padded, Padded]:
        """What the second pass reads of finished hypotheses: (B, S, D) states and the (B, S) ids they predict.

        Args:
            hypotheses: with their states.
            memory: (B, T, D) that they were decoded from.
            prefix: P tokens of each.
        """
        assert self.tokenizer is not None
        eos, pad = self.tokenizer.eos_id, self.tokenizer.pad_id
        first = 0 if self.t2u_input == "all" else self.tokenizer.prefix_length - 1
        whole = [
            torch.tensor([*row, *h.tokens.tolist(), *([eos] if h.ended else [])])
            for row, h in zip(prefix, hypotheses, strict=True)
        ]
        sizes = [len(row) for row in whole]
        # Each state but the last predicts the next token.
        counts = [size - 1 for size in sizes]
        if self.t2u_eos == "keep":
            counts = sizes
        elif self.t2u_eos == "keep_shorter":
            counts = [min(size, max(sizes) - 1) for size in sizes]
        if counts == [size - 1 for size in sizes]:
            kept = [h.states for h in hypotheses if h.states is not None]
        else:
            kept = self.text_seq2seq.decode(memory, Padded.from_list(whole, pad).to(memory.device)).data
        states = [rows[first:count] for rows, count in zip(kept, counts, strict=True)]
        text = [
            torch.cat([row[1:], torch.tensor([pad])])[first:count] for row, count in zip(whole, counts, strict=True)
        ]
        if self.t2u_eos == "keep_shorter":  # there the last token counts as eos, also of a text that was cut
            for row, hypothesis in zip(text, hypotheses, strict=True):
                row[-1] = row[-1] if hypothesis.ended else pad
        return Padded.from_list(states), Padded.from_list(text, pad).to(states[0].device)

    @torch.inference_mode()
    def resynthesise(self, batch: Batch) -> list[Tensor] | None:
        """The batch's reference units through the vocoder, one (N,) waveform per row: what perfect units would give.

        None where the batch has neither units nor target speech.
        """
        return resynthesise(self.vocoder, self.unit_extractor, batch, self.vocoder_languages, self.speaker)
