"""Training of a unit vocoder. Letters: B batch, U units, N samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..components.roles import UnitExtractor, UnitVocoder
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from .task import Task
from .voices import require_voices, resynthesise, told_to_vocoder


class UnitVocoderTask(Task):
    """Units to waveform: the vocoder's own losses on pairs of units and the speech they came from.

    Args:
        vocoder: what learns.
        unit_extractor: makes the units of a batch that brings none; it does not learn here. `voxzoo train` reads them
            from `data.units`.
        loss_weights: weights by the vocoder's loss names.
        vocoder_languages: the languages of `vocoder` in the order of its table, of which each row takes its target
            language; empty where it has none.
        speaker: speaker of rows for which the batch says none; None leaves it to the vocoder.
    """

    needs = frozenset({"units", "target_speech"})
    modes = frozenset({"u2s"})
    roles = ("vocoder", "unit_extractor")

    def __init__(
        self,
        *,
        vocoder: UnitVocoder,
        unit_extractor: UnitExtractor | None = None,
        loss_weights: Mapping[str, float] | None = None,
        vocoder_languages: Sequence[str] = (),
        speaker: int | None = None,
    ) -> None:
        super().__init__(loss_weights=loss_weights)
        if unit_extractor is not None and unit_extractor.num_units != vocoder.num_units:
            raise ValueError(
                f"vocoder.num_units is {vocoder.num_units}, but unit_extractor.num_units is "
                f"{unit_extractor.num_units}: " + "set vocoder.num_units=${unit_extractor.num_units}"
            )
        require_voices(vocoder, vocoder_languages, speaker)
        self.vocoder = vocoder
        self.unit_extractor = unit_extractor
        self.vocoder_languages, self.speaker = tuple(vocoder_languages), speaker
        if unit_extractor is not None:
            self.freeze_parts(["unit_extractor"])

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        units, speech = self.pairs(batch)
        return self.vocoder.losses(units, speech, **self.told(batch, units.device)), {}

    def told(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """What the vocoder is told of the rows while it learns."""
        speaker = self.speaker_of(batch)
        return told_to_vocoder(self.vocoder, batch, self.vocoder_languages, speaker, device, training=True)

    def speaker_of(self, batch: Batch) -> Tensor | int | None:
        return self.speaker if batch.speaker is None else batch.speaker

    def pairs(self, batch: Batch) -> tuple[Padded, Padded]:
        """(B, U) units of a batch, made here where it brings none, and the (B, N) samples they come from."""
        assert batch.target_speech is not None
        units = batch.units
        if units is None:
            assert self.unit_extractor is not None
            with torch.no_grad():
                units = self.unit_extractor(batch.target_speech)
        return units, batch.target_speech

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        self.pick_mode(task, batch if batch.task else replace(batch, task=("u2s",)))
        speech = self.resynthesise(batch)
        assert speech is not None
        return [
            Prediction(id=i, task="u2s", tgt_lang=lang, audio=audio, sample_rate=self.vocoder.sample_rate)
            for i, lang, audio in zip(batch.ids, batch.tgt_lang, speech, strict=True)
        ]

    def resynthesise(self, batch: Batch) -> list[Tensor] | None:
        """The batch's reference units through the vocoder, one (N,) waveform per row."""
        speaker = self.speaker_of(batch)
        return resynthesise(self.vocoder, self.unit_extractor, batch, self.vocoder_languages, speaker)

    def serving_needs(self) -> frozenset[str]:
        return frozenset({"target_speech"} if self.unit_extractor is not None else {"units"})
