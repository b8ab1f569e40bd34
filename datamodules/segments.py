"""A part of a recording, named in one string: `talk.wav#t=12.5,15.7&channel=1` (as W3C Media Fragments write times).

A manifest says `offset`, `duration` and `channel`; from there on the recording is one name, so that whatever reads,
measures or caches audio means the same samples.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FRAGMENT = re.compile(r"#(?:t=(?P<start>\d+(?:\.\d+)?)(?:,(?P<end>\d+(?:\.\d+)?))?)?&?(?:channel=(?P<channel>\d+))?$")


@dataclass(frozen=True)
class Segment:
    """What a name means.

    Attributes:
        path: of the file.
        start: seconds from its beginning.
        end: seconds from its beginning, or None for its end.
        channel: which, from 0; None is the mean of all.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    channel: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None and self.channel is None

    def frames(self, rate: int) -> tuple[int, int | None]:
        """First frame and the one behind the last, of a file at `rate`; None is its end."""
        return round(self.start * rate), None if self.end is None else round(self.end * rate)


def segment_name(path: str, offset: float | None, duration: float | None, channel: int | None) -> str:
    """The name of a part; without offset and channel that of the file, whatever its duration."""
    parts = []
    if offset is not None:
        end = "" if duration is None else f",{_plain(offset + duration)}"
        parts.append(f"t={_plain(offset)}{end}")
    if channel is not None:
        parts.append(f"channel={channel}")
    return f"{path}#{'&'.join(parts)}" if parts else path


def segment_of(name: str | os.PathLike[str]) -> Segment:
    """What a name means: a file of that very name where there is one, else a part of one."""
    name = os.fspath(name)
    found = _FRAGMENT.search(name) if "#" in name else None
    if found is None or found.end() == found.start() + 1 or os.path.lexists(name):
        return Segment(name)
    start, end, channel = (found[key] for key in ("start", "end", "channel"))
    return Segment(
        name[: found.start()],
        float(start or 0),
        None if end is None else float(end),
        None if channel is None else int(channel),
    )


def _plain(seconds: float) -> str:
    """Seconds without an exponent, and with no more than the digits that tell them apart at any rate."""
    return f"{seconds:.7f}".rstrip("0").rstrip(".")
