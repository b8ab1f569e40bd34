"""The unit vocoder of SeamlessM4T: units, language and speaker to samples by HiFi-GAN.

Letters: B batch, U units, T frames (T = sum of durations), N samples, D width of a unit's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from ..layers.duration import DurationPredictor
from ..layers.hifi_gan import HiFiGANGenerator
from ..layers.mel import LogMel
from ..layers.runs import expand_runs, reduce_runs
from ..layers.steps import refuse_no_steps
from ..limits import odd
from ..roles import UnitVocoder
from ..types import Loss, Padded, Reconstruction
from .unit_states import mel_loss, random_crops, require_one_each

_PAD = 1
"""The unit that published code fills rows up with, and cannot tell from a real unit 1."""


class CodeHiFiGAN(UnitVocoder):
    """Code HiFi-GAN with language and speaker (SeamlessM4T, arXiv 2308.11596, section 4.4; Polyak et al., 2104.00355).

    The embeddings of language, unit and speaker, side by side, go through the generator of HiFi-GAN; a predictor says
    how many frames each (reduced) unit lasts. N is exactly T times the product of `upsample_rates`. Versions 1 and 2
    of SeamlessM4T have the same architecture.

    `losses` are those of the generator alone; `GanVocoder` trains it against discriminators.

    Args:
        num_units: size of the unit table.
        unit_dim: D; also the width of the duration predictor.
        num_langs, lang_dim: rows and width of the language table; 0 rows for none.
        num_speakers, speaker_dim: rows and width of the speaker table; 0 rows for none.
        speakers: language code -> its speakers, in the order of the language table; the first is its default.
        default_language: place of the language where `lang` is not given; null: it must be given (unless there is
            one).
        default_speaker: speaker where `speaker` is not given or negative: one for all languages, or the first one of
            the language in `speakers`, as in the original code (transformers takes 0).
        predict_durations: `without`: where none are given. `always`: also where some are, as transformers does even
            for non-autoregressive units, which stand one per frame already.
        published_lengths: lengths as transformers counts them, which differ where a row is padded or has a unit 1:
            padding is embedded and spoken as unit 1, the predictor and the generator see it, a padded row is one unit
            too long, and each unit 1 is taken off the length. False: padding changes nothing and lengths are exact.
        channels, upsample_rates, upsample_kernels, resblock_kernels, resblock_dilations, slope, final_slope: see
            `HiFiGANGenerator`.
        duration_kernel: width of the duration predictor's convolutions.
        duration_factor: stretches predicted durations; above 1 is slower.
        dropout: of the duration predictor.
        crop_units: units of an utterance that a training step looks at.
        sample_rate, fft_size, window_length, hop_length, num_mel_bins: of the mel loss (see `LogMel`).
    """

    learns_samples = True
    paper = "SeamlessM4T, arXiv 2308.11596, section 4.4; HiFi-GAN, arXiv 2010.05646"
    stacks = ()

    def __init__(
        self,
        num_units: int,
        unit_dim: int = 1280,
        num_langs: int = 36,
        lang_dim: int = 256,
        num_speakers: int = 200,
        speaker_dim: int = 256,
        speakers: Mapping[str, Sequence[int]] | None = None,
        default_language: int | None = None,
        default_speaker: int | Literal["first_of_language"] = 0,
        predict_durations: Literal["without", "always"] = "without",
        published_lengths: bool = False,
        channels: int = 512,
        upsample_rates: Sequence[int] = (5, 4, 4, 2, 2),
        upsample_kernels: Sequence[int] = (11, 8, 8, 4, 4),
        resblock_kernels: Sequence[int] = (3, 7, 11),
        resblock_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        slope: float = 0.1,
        final_slope: float = 0.01,
        duration_kernel: int = 3,
        duration_factor: float = 1.0,
        dropout: float = 0.5,
        crop_units: int = 28,
        sample_rate: int = 16000,
        fft_size: int = 640,
        window_length: int = 640,
        hop_length: int = 160,
        num_mel_bins: int = 80,
    ) -> None:
        super().__init__()
        odd(duration_kernel=duration_kernel)
        self.num_units, self.sample_rate = num_units, sample_rate
        self.num_langs, self.num_speakers, self.languages = num_langs, num_speakers, tuple(speakers or ())
        self.first_speakers = [next(iter(of), 0) for of in (speakers or {}).values()]
        self.default_language, self.default_speaker = default_language, default_speaker
        self.predict_durations, self.published_lengths = predict_durations, published_lengths
        if published_lengths:
            leaks = "published_lengths: padding is spoken, as the published code does"
            self.exempt = dict.fromkeys(("samples", "padding", "rows", "alone"), leaks)
        self.duration_factor, self.crop_units = duration_factor, crop_units
        self.mel_settings = (sample_rate, fft_size, window_length, hop_length, num_mel_bins)
        _log_mel(*self.mel_settings, torch.device("cpu"))  # its tables cannot be made while a plan runs on fake tensors
        _require(num_langs, num_speakers, speakers, default_language, default_speaker)
        self.units = nn.Embedding(num_units, unit_dim)
        self.langs = nn.Embedding(num_langs, lang_dim) if num_langs else None
        self.speakers = nn.Embedding(num_speakers, speaker_dim) if num_speakers else None
        self.durations = DurationPredictor(unit_dim, unit_dim, duration_kernel, dropout)
        self.generator = HiFiGANGenerator(
            unit_dim + (lang_dim if num_langs else 0) + (speaker_dim if num_speakers else 0),
            channels,
            upsample_rates,
            upsample_kernels,
            resblock_kernels,
            resblock_dilations,
            slope,
            final_slope,
        )
        self.hop_length = self.generator.samples_per_frame

    def forward(
        self, units: Padded, lang: Tensor | None = None, speaker: Tensor | None = None, durations: Padded | None = None
    ) -> Padded:
        """(B, U) units -> (B, N) samples in -1..1, N = hop_length x sum of durations.

        Args:
            units: reduced units, or with `durations` of ones one unit per frame.
            lang: (B,) int64 place in the language table; None: `default_language`.
            speaker: (B,) int64; None, and a negative one: `default_speaker`.
            durations: (B, U) int64 frames of each; None predicts them (see `predict_durations`).
        """
        refuse_no_steps(self, units, "no row has a unit")
        lang, speaker = self._conditions(len(units), units.device, lang, speaker)
        if self.published_lengths:
            return self._published(units, lang, speaker, durations)
        if durations is None or self.predict_durations == "always":
            durations = self.durations.predict(units.with_data(self.units(units.data)), self.duration_factor)
        else:
            require_one_each(durations, units)
        frames = expand_runs(units.data, durations)
        return self.generator(self._states(frames, lang, speaker))

    def losses(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> dict[str, Loss]:
        """`mel`: absolute error of log-mel, mean over bins, per frame of a random crop; `duration`: squared error of
        log(1 + duration), per run. Without the adversarial terms of HiFi-GAN (arXiv 2010.05646, section 2.4), which
        `GanVocoder` adds, a voice stays metallic.

        Args:
            units: (B, U), one per frame.
            speech: (B, N) samples that they came from.
            speaker, lang: (B,) int64, as in `forward`.
        """
        return self.reconstruct(units, speech, speaker, lang).losses

    def reconstruct(
        self, units: Padded, speech: Padded, speaker: Tensor | None = None, lang: Tensor | None = None
    ) -> Reconstruction:
        lang, speaker = self._conditions(len(units), units.device, lang, speaker)
        cropped, target = random_crops(units, speech, self.crop_units, self.hop_length, 0)
        predicted = self.generator(self._states(cropped, lang, speaker))
        mel = _log_mel(*self.mel_settings, predicted.device)
        frames = Padded(mel(predicted.data), predicted.lengths // mel.hop_length)
        wanted = predicted.with_data(target.float()).zeroed()
        with torch.no_grad():
            theirs = mel(wanted.data)
        reduced, durations = reduce_runs(units)
        losses = {
            "mel": mel_loss(frames, theirs),
            "duration": self.durations.loss(reduced.with_data(self.units(reduced.data)), durations),
        }
        return Reconstruction(predicted, wanted, frames.lengths, losses)

    def _states(self, frames: Padded, lang: Tensor | None, speaker: Tensor | None) -> Padded:
        """(B, T) units, one per frame -> (B, T, language + unit + speaker)."""
        data = frames.with_data(self.units(frames.data)).zeroed().data
        parts = [data]
        if self.langs is not None and lang is not None:
            parts.insert(0, self.langs(lang)[:, None].expand(-1, data.shape[1], -1))
        if self.speakers is not None and speaker is not None:
            parts.append(self.speakers(speaker)[:, None].expand(-1, data.shape[1], -1))
        return frames.with_data(torch.cat(parts, 2))

    def _conditions(
        self, batch: int, device: torch.device, lang: Tensor | None, speaker: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B,) places in both tables, with the defaults filled in; None where there is no table."""
        if self.langs is None:
            lang = None
        elif lang is not None:
            lang = lang.to(device)
        elif self.default_language is not None or self.langs.num_embeddings == 1:
            lang = torch.full((batch,), self.default_language or 0, device=device)
        else:
            raise ValueError(
                f"this vocoder has {self.langs.num_embeddings} languages: give lang (B,) int64, or build it with "
                "default_language"
            )
        if self.speakers is None:
            return lang, None
        if self.default_speaker == "first_of_language" and lang is not None:
            default = torch.tensor(self.first_speakers, device=device)[lang]
        else:
            default = torch.full((batch,), int(self.default_speaker or 0), device=device)
        if speaker is None:
            return lang, default
        speaker = speaker.to(device)
        return lang, torch.where(speaker < 0, default, speaker)

    def _published(
        self, units: Padded, lang: Tensor | None, speaker: Tensor | None, durations: Padded | None
    ) -> Padded:
        """`forward` with padding as one more unit, and lengths counted as transformers counts them."""
        data = units.data.masked_fill(~units.mask, _PAD)
        whole = Padded(data, torch.full_like(units.lengths, data.shape[1]))
        if durations is None or self.predict_durations == "always":
            durations = self.durations.predict(whole.with_data(self.units(data)), self.duration_factor)
        else:
            require_one_each(durations, units)
            durations = Padded(durations.zeroed().data, whole.lengths)
        frames = expand_runs(data, durations)
        # Rows that end before the longest one go on with language and speaker but no unit, and the generator sees it.
        states = self._states(frames, lang, speaker).data
        samples = self.generator(Padded(states, torch.full_like(frames.lengths, states.shape[1]))).data
        last = (data != _PAD).sum(1).clamp(max=data.shape[1] - 1)
        return Padded(samples, durations.data.cumsum(1).gather(1, last[:, None])[:, 0] * self.hop_length)


def _require(
    num_langs: int,
    num_speakers: int,
    speakers: Mapping[str, Sequence[int]] | None,
    default_language: int | None,
    default_speaker: int | str,
) -> None:
    """Refuse tables and defaults that do not fit each other."""
    if default_language is not None and not 0 <= default_language < max(num_langs, 1):
        raise ValueError(f"default_language={default_language} must be 0 to num_langs - 1 = {num_langs - 1}")
    if isinstance(default_speaker, int) and not 0 <= default_speaker < max(num_speakers, 1):
        raise ValueError(f"default_speaker={default_speaker} must be 0 to num_speakers - 1 = {num_speakers - 1}")
    named = sum(1 for of in (speakers or {}).values() if of)
    if default_speaker == "first_of_language" and (not named or named != num_langs):
        raise ValueError(
            f"default_speaker=first_of_language needs `speakers` of all {num_langs} languages; it has those of "
            f"{named}: give them, or a speaker's number"
        )
    if len(speakers or ()) > num_langs:
        raise ValueError(f"`speakers` names {len(speakers or ())} languages, but num_langs={num_langs}")
    beyond = [f"{lang}: {who}" for lang, of in (speakers or {}).items() for who in of if not 0 <= who < num_speakers]
    if beyond:
        raise ValueError(f"`speakers` has {beyond[0]}, but speakers are 0 to num_speakers - 1 = {num_speakers - 1}")


@lru_cache(maxsize=4)
def _log_mel(
    sample_rate: int, fft_size: int, window_length: int, hop_length: int, num_mel_bins: int, device: torch.device
) -> LogMel:
    # Kept outside the module: its tables would be left empty when a part built on the meta device is filled.
    with torch.inference_mode(False), torch.device(device):
        return LogMel(sample_rate, fft_size, window_length, hop_length, num_mel_bins)
