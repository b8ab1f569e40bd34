"""From utterances to a `Batch`: reads the audio, runs the front end and the tokenizer, pads.

Letters: B batch, T frames, S subwords, U units, N samples, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..components.errors import UserError
from ..components.roles import Frontend, Tokenizer
from ..components.types import Batch, Padded
from .audio import SAMPLE_RATE, AudioFiles, change_speed
from .feature_cache import FeatureCache
from .manifest import Utterance

PREPARED = ("units", "source_units", "codes", "source_codes")
"""Fields that are read from files of `voxzoo units`, joined by id."""
FIELDS = frozenset({"speech", "transcript", "source", "target", *PREPARED, "target_speech", "speaker"})
TASKS = ("s2tt", "asr", "t2tt", "s2st", "t2st")
FROM_SPEECH = frozenset({"s2tt", "asr", "s2st"})


class Collator:
    """Picklable; runs in data workers and in `voxzoo translate`.

    Args:
        frontend: waveform to features; needed for `speech`.
        tokenizer: needed for `transcript`, `source` and `target`.
        needs: names of the `Batch` fields to fill.
        units: utterance id -> target units, one per frame.
        prepared: name of a field in `PREPARED` -> utterance id -> units (U,) or codes (T, K), `units` left out.
        speakers: label -> index.
        cache: where features are kept, or None.
        audio: reads what utterances name as their audio.

    Raises:
        UserError: a need that is no field of `Batch`, or one that lacks its frontend or tokenizer.
    """

    def __init__(
        self,
        frontend: Frontend | None,
        tokenizer: Tokenizer | None,
        needs: Iterable[str],
        *,
        units: Mapping[str, Sequence[int] | np.ndarray] | None = None,
        prepared: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        speakers: Mapping[str, int] | None = None,
        cache: FeatureCache | None = None,
        audio: AudioFiles = AudioFiles(),  # noqa: B008 - has no state
    ) -> None:
        self.needs = frozenset(needs)
        unknown = self.needs - FIELDS
        if unknown:
            raise UserError(f"needs={sorted(unknown)}: expected some of {', '.join(sorted(FIELDS))}")
        if "speech" in self.needs and frontend is None:
            raise UserError("the task reads speech, but the data has no frontend: set data.frontend to ${frontend}")
        texts = self.needs & {"transcript", "source", "target"}
        if texts and tokenizer is None:
            raise UserError(f"the task reads {', '.join(sorted(texts))}, but the data has no tokenizer")
        self.prepared: dict[str, Mapping[str, Sequence[int] | np.ndarray]] = {**(prepared or {})}
        if units is not None:
            self.prepared["units"] = units
        for name in PREPARED:
            if name in self.needs and name not in self.prepared:
                verb = "codes" if name.endswith("codes") else "extract"
                what = name.replace("_", " ")
                raise UserError(
                    f"the task reads {what}, but the data has none: set data.{name} to what `voxzoo units {verb}` wrote"
                )
        self.frontend, self.tokenizer = frontend, tokenizer
        self.speakers, self.cache, self.audio = speakers, cache, audio

    def __call__(self, utterances: list[Utterance]) -> Batch:
        """Utterances of one task -> `Batch`. `speech` stays None where no utterance has audio.

        Raises:
            AudioError: a file cannot be read.
            UserError: some utterances of the batch have audio and others have none, or units or a speaker are unknown.
        """
        fields: dict[str, Padded | Tensor | None] = {}
        seconds = [utterance.duration for utterance in utterances]
        if "speech" in self.needs and any(utterance.audio for utterance in utterances):
            speech = [self._speech(utterance) for utterance in utterances]
            fields["speech"] = Padded.from_list([features for features, _ in speech])
            seconds = [spoken for _, spoken in speech]
        if "target_speech" in self.needs and any(utterance.tgt_audio for utterance in utterances):
            target = [self._waveform(utterance, utterance.tgt_audio) for utterance in utterances]
            fields["target_speech"] = Padded.from_list(target)
            seconds = [
                len(wave) / SAMPLE_RATE if utterance.audio is None else spoken
                for wave, utterance, spoken in zip(target, utterances, seconds)
            ]
        if "transcript" in self.needs:
            fields["transcript"] = self._ids([self._tokenizer.encode(item.src_text) for item in utterances])
        # For a model that reads both, speech may be in a language that its tokenizer does not have.
        of_speech = "speech" in self.needs and not any(item.task.startswith("t2") for item in utterances)
        if "source" in self.needs and (
            not of_speech or all(self._tokenizer.knows(item.src_lang) for item in utterances)
        ):
            fields["source"] = self._ids([self._tokenizer.source(item.src_text, item.src_lang) for item in utterances])
        if "target" in self.needs:
            fields["target"] = self._ids(
                [self._tokenizer.target(item.tgt_text, item.tgt_lang, item.src_lang, item.task) for item in utterances]
            )
        for name in PREPARED:
            if name in self.needs:
                fields[name] = Padded.from_list([self._prepared(name, item) for item in utterances])
        if "speaker" in self.needs:
            fields["speaker"] = torch.tensor([self._speaker(item) for item in utterances], dtype=torch.int64)
        known = all(value is not None for value in seconds)
        return Batch(
            ids=tuple(item.id for item in utterances),
            task=tuple(item.task for item in utterances),
            src_lang=tuple(item.src_lang for item in utterances),
            tgt_lang=tuple(item.tgt_lang for item in utterances),
            seconds=torch.tensor(seconds, dtype=torch.float32) if known else None,
            references=tuple(item.tgt_text for item in utterances),
            **fields,  # pyright: ignore[reportArgumentType]
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self.tokenizer is not None
        return self.tokenizer

    def _speech(self, utterance: Utterance) -> tuple[Tensor, float | None]:
        """Features, and seconds as played."""
        assert self.frontend is not None
        seconds = None if utterance.duration is None else utterance.duration / utterance.speed
        key = None
        if self.cache is not None and utterance.audio is not None and seconds is not None:
            try:
                key = self.cache.key(utterance.audio, utterance.speed)
            except (OSError, ValueError):
                key = None  # load_audio says what is wrong with the file
            features = None if key is None else self.cache.get(key)
            if features is not None:
                return features, seconds
        waveform = change_speed(self._waveform(utterance, utterance.audio, self.frontend.sample_rate), utterance.speed)
        features = self.frontend(waveform)
        if self.cache is not None and key is not None:
            features = self.cache.put(key, features)
        return features, len(waveform) / self.frontend.sample_rate if seconds is None else seconds

    def _waveform(self, utterance: Utterance, path: str | None, sample_rate: int = SAMPLE_RATE) -> Tensor:
        if path is None:
            raise UserError(f"utterance {utterance.id}: has no audio, but others of its batch have")
        return self.audio.load(path, sample_rate)

    def _ids(self, rows: list[list[int]]) -> Padded:
        return Padded.from_list([torch.tensor(row, dtype=torch.int64) for row in rows], value=self._tokenizer.pad_id)

    def _prepared(self, name: str, utterance: Utterance) -> Tensor:
        found = self.prepared[name]
        if utterance.id not in found:
            raise UserError(f"utterance {utterance.id}: the {name.split('_')[-1]} file (data.{name}) has no such id")
        return torch.as_tensor(np.asarray(found[utterance.id], np.int64))

    def _speaker(self, utterance: Utterance) -> int:
        known = self.speakers or {}
        if utterance.speaker is None or utterance.speaker not in known:
            raise UserError(
                f"utterance {utterance.id}: speaker {utterance.speaker!r} is none of the {len(known)} in training"
            )
        return known[utterance.speaker]
