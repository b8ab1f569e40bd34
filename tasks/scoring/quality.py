"""How output speech sounds: whose voice, how natural, and what melody; each number of an utterance beside its ceiling.

Letters: N samples, D of an embedding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...components.errors import UserError
from ...datamodules.audio import resample
from . import melody
from .evaluation import Scored
from .melody import Melody, agreement
from .naturalness import Dnsmos
from .voices import SpeakerEncoder, nearest, similarity

SAMPLE_RATE = 16_000
JUDGED_SECONDS = 60
"""Of an utterance, from its beginning, by the two networks: a voice and its quality are known by then."""
_SIMILARITY = ("speaker_similarity", "speaker_similarity_ceiling", "speaker_similarity_control",
               "speaker_similarity_target", "speaker_similarity_prompt", "nearer_to_prompt",
               "speaker_match", "speaker_match_ceiling")  # fmt: skip
_NATURALNESS = ("dnsmos", "dnsmos_ceiling", "dnsmos_speech", "dnsmos_background")
_MELODY = tuple(
    f"{name}{of}" for name in ("f0_correlation", "voicing_error") for of in ("", "_resynthesis", "_control")
)

_Model = TypeVar("_Model")


@dataclass
class _Voices:
    """Embeddings of one row; None for what has no sound or is not there."""

    row: Scored
    output: Tensor | None
    source: Tensor | None
    has_source: bool
    target: Tensor | None = None
    has_target: bool = False
    prompt: Tensor | None = None
    has_prompt: bool = False


class SpeechQuality:
    """Fills `quality` of rows. What is kept of an utterance are its numbers and at most four embeddings.

    Without the packages of one network its scores are left out, and `notes` says how to get them.
    """

    def __init__(self) -> None:
        self._missing: list[str] = []
        self.encoder = self._load(SpeakerEncoder)
        self.dnsmos = self._load(lambda: Dnsmos(torch.get_num_threads()))
        self._voices: dict[int, _Voices] = {}
        self._melodies: dict[int, Melody | None] = {}
        self._before: Melody | None = None
        self._said: Counter[str] = Counter()

    def _load(self, make: Callable[[], _Model]) -> _Model | None:
        try:
            return make()
        except UserError as error:
            self._missing.append(str(error))
            return None

    @property
    def signatures(self) -> dict[str, str]:
        """Score -> everything that changes it, in one line."""
        lines = dict.fromkeys(_MELODY, melody.SIGNATURE)
        if self.encoder is not None:
            lines |= dict.fromkeys(_SIMILARITY, self.encoder.signature)
        if self.dnsmos is not None:
            lines |= dict.fromkeys(_NATURALNESS, self.dnsmos.signature)
        return lines

    def add(
        self, rows: Sequence[Scored], audio: Sequence[Tensor], sample_rate: int, sources: Sequence[Tensor | None]
    ) -> None:
        """Output speech of some rows.

        Args:
            rows: `quality` is set.
            audio: (N,) samples each at `sample_rate`.
            sources: (N,) samples each at 16 kHz, whose voice it should be; None where there is none.
        """
        outputs = [_at_rate(samples, sample_rate) for samples in audio]
        self._melodies = {}
        for row, samples in zip(rows, outputs, strict=True):
            row.quality = {}
            self._melodies[id(row)] = melody.melody(samples)
        if self.encoder is not None:
            there = [_beginning(source) for source in sources if source is not None]
            points = iter(self.encoder.embed(there))
            spoken = self.encoder.embed([_beginning(samples) for samples in outputs])
            for row, output, source in zip(rows, spoken, sources, strict=True):
                found = None if source is None else next(points)
                self._voices[id(row)] = _Voices(row, output, found, source is not None)
        self._rate(rows, outputs, "")

    def add_prompts(self, rows: Sequence[Scored], prompts: Sequence[Tensor]) -> None:
        """Speech that rows which were added last had as their prompt in place of their source: (N,) samples each at
        16 kHz."""
        if self.encoder is not None:
            points = self.encoder.embed([_beginning(samples) for samples in prompts])
            for row, point in zip(rows, points, strict=True):
                self._voices[id(row)].prompt, self._voices[id(row)].has_prompt = point, True

    def _rate(self, rows: Sequence[Scored], audio: Sequence[Tensor], of: str) -> None:
        if self.dnsmos is None:
            return
        for row, rating in zip(rows, self.dnsmos.rate([_beginning(each) for each in audio]), strict=True):
            quality = _of(row)
            quality[f"dnsmos{of}"] = 1.0 if rating is None else rating.overall
            if not of:
                quality["dnsmos_speech"] = 1.0 if rating is None else rating.speech
                quality["dnsmos_background"] = 1.0 if rating is None else rating.background
                self._said["without samples: they are rated 1 by DNSMOS"] += rating is None

    def add_recordings(
        self, rows: Sequence[Scored], recordings: Sequence[Tensor], resynthesis: Sequence[Tensor] | None, rate: int
    ) -> None:
        """The target recordings of rows that were added last.

        Args:
            recordings: (N,) samples each at 16 kHz.
            resynthesis: what became of their units, (N,) samples each at `rate`; None where there is none.
        """
        recordings = [_at_rate(samples, SAMPLE_RATE) for samples in recordings]
        again = None if resynthesis is None else [melody.melody(_at_rate(samples, rate)) for samples in resynthesis]
        if self.encoder is not None:
            points = self.encoder.embed([_beginning(samples) for samples in recordings])
            for row, point in zip(rows, points, strict=True):
                self._voices[id(row)].target, self._voices[id(row)].has_target = point, True
        self._rate(rows, recordings, "_ceiling")
        for place, (row, samples) in enumerate(zip(rows, recordings, strict=True)):
            reference = melody.melody(samples)
            if reference is None:
                self._said["have a target recording without sound: their melody is not compared"] += 1
                continue
            ours = self._melodies[id(row)]
            self._compare(row, ours, reference, "")
            if again is not None:
                self._compare(row, again[place], reference, "_resynthesis")
            if self._before is not None:
                self._compare(row, ours, self._before, "_control")
            self._before = reference

    def _compare(self, row: Scored, ours: Melody | None, reference: Melody, of: str) -> None:
        quality = _of(row)
        if ours is None:
            voiced = float((reference.f0 > 0).float().mean())
            quality[f"f0_correlation{of}"], quality[f"voicing_error{of}"] = 0.0, 100 * voiced
            self._said["are silent: their F0 correlation counts as 0"] += not of
            return
        found = agreement(ours, reference)
        if found is None:
            self._said["are longer than 30 s, or their recording is not voiced: their melody is not compared"] += not of
            return
        quality[f"f0_correlation{of}"], quality[f"voicing_error{of}"] = found.correlation, 100 * found.voicing_error

    def finish(self, rows: Sequence[Scored]) -> None:
        """Compare voices, once all rows are there: the same ones, in the order of the split."""
        by_task: defaultdict[str, list[_Voices]] = defaultdict(list)
        for row in rows:
            if id(row) in self._voices:
                by_task[row.task].append(self._voices[id(row)])
        for members in by_task.values():
            self._similarities(members)
            self._matches([each for each in members if each.has_source])

    def _similarities(self, members: Sequence[_Voices]) -> None:
        sources = [each for each in members if each.has_source]
        for each in members:
            quality = _of(each.row)
            self._said["have no voice: their speaker similarity counts as 0"] += each.output is None
            if each.has_target:
                quality["speaker_similarity_target"] = similarity(each.output, each.target)
            if not each.has_source:
                continue
            quality["speaker_similarity"] = similarity(each.output, each.source)
            if each.has_prompt:
                quality["speaker_similarity_prompt"] = similarity(each.output, each.prompt)
                nearer = quality["speaker_similarity_prompt"] > quality["speaker_similarity"]
                quality["nearer_to_prompt"] = 100.0 * nearer
            if each.has_target:
                quality["speaker_similarity_ceiling"] = similarity(each.target, each.source)
        for place, each in enumerate(sources):
            other = _another(sources, place)
            if other is not None:
                _of(each.row)["speaker_similarity_control"] = similarity(each.output, other.source)

    def _matches(self, members: Sequence[_Voices]) -> None:
        """Whether the nearest of all voices of the split is the right one."""
        points: defaultdict[str, list[Tensor]] = defaultdict(list)
        for each in members:
            if each.row.speaker and each.source is not None:
                points[each.row.speaker].append(each.source)
        if len(points) < 2:
            return
        means = {name: torch.nn.functional.normalize(torch.stack(own).mean(0), dim=0) for name, own in points.items()}
        labelled = [each for each in members if each.row.speaker in means]
        with_target = [each for each in labelled if each.has_target]
        for name, group, embeddings in (
            ("speaker_match", labelled, [each.output for each in labelled]),
            ("speaker_match_ceiling", with_target, [each.target for each in with_target]),
        ):
            for each, found in zip(group, nearest(embeddings, means), strict=True):
                _of(each.row)[name] = 100.0 * (found == each.row.speaker)

    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        lines = [f"{count} outputs {what}" for what, count in self._said.items() if count]
        return [*lines, *(f"not measured: {reason}" for reason in self._missing)]


def _of(row: Scored) -> dict[str, float]:
    assert row.quality is not None, "the output of a row is added before what it is compared with"
    return row.quality


def _at_rate(samples: Tensor, rate: int) -> Tensor:
    samples = samples.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(-1, 1)
    return resample(samples, rate, SAMPLE_RATE) if len(samples) else samples


def _beginning(samples: Tensor) -> Tensor:
    return samples[: JUDGED_SECONDS * SAMPLE_RATE]


def _another(members: Sequence[_Voices], place: int) -> _Voices | None:
    """The next row that another speaker speaks, in a circle; of rows without speakers, the next recording."""
    own = members[place].row
    for step in range(1, len(members)):
        other = members[(place + step) % len(members)]
        if own.speaker and other.row.speaker:
            differs = own.speaker != other.row.speaker
        else:
            differs = not own.speaker and not other.row.speaker and own.source_audio != other.row.source_audio
        if differs:
            return other
    return None
