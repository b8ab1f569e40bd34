"""Which recording each line of a file of units or codes was made of: an id that stands for another one is refused.

A line begins `{"id":"a","recording":"1f3a5c7e 48000 0.05123"`: where the recording was, as a hash, how many samples it
has, and their mean magnitude. A corpus may move: only where the place is another one, the sound is compared.

Letters: N samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..components.errors import UserError
from ..components.lines import open_text, raw_lines
from ..datamodules.audio import AudioError, AudioFiles

_BEGIN = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"),"recording":"([0-9a-f]{8}) (\d+) ([\d.e+-]+)"')


@dataclass(frozen=True)
class Recording:
    """What is kept of a recording.

    Attributes:
        place: a hash of what reads it, such as its path.
        samples: N.
        level: their mean magnitude.
    """

    place: str
    samples: int
    level: float

    def __str__(self) -> str:
        return f"{self.place} {self.samples} {self.level:.4g}"

    def sounds_like(self, other: Recording) -> bool:
        """Whether both have the same samples, but for the rounding of a resampler."""
        return self.samples == other.samples and math.isclose(self.level, other.level, rel_tol=1e-3, abs_tol=1e-6)


def recording_of(audio: str, samples: Tensor) -> Recording:
    """What is kept of the (N,) samples that were read by the name `audio`."""
    return Recording(_place(audio), len(samples), float(samples.abs().mean()) if len(samples) else 0.0)


def require_same_recordings(path: Path, audio: Mapping[str, str], files: AudioFiles, sample_rate: int) -> None:
    """Refuse a file whose lines were made of other recordings than those that have their ids now.

    Args:
        path: a file of units or codes; lines that do not say what they were made of are passed over.
        audio: id -> name of its recording.
        files: reads it.
        sample_rate: at which it was read.

    Raises:
        UserError: one is another; says which.
    """
    for name, before in _recordings(path):
        now = audio.get(name)
        if now is None or before.place == _place(now):
            continue
        try:
            samples = files.load(now, sample_rate)
        except AudioError:
            continue  # what is there needs it no more
        if not before.sounds_like(recording_of(now, samples)):
            raise UserError(
                f"{path}: the id {name!r} is there already, of another recording than {now}: rows are found by id, so "
                "ids must be unique over all splits; rename those of one manifest, or delete the file where the "
                "recordings themselves were replaced"
            )


def _place(audio: str) -> str:
    return hashlib.blake2b(os.path.abspath(audio).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def _recordings(path: Path) -> Iterator[tuple[str, Recording]]:
    with open_text(path) as file:
        for line in raw_lines(file, path):
            found = _BEGIN.match(line)
            if found:
                place, samples, level = (value.decode() for value in found.groups()[1:])
                yield json.loads(found[1]), Recording(place, int(samples), float(level))
