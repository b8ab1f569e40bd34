"""A part of a recording, named in one string: `talk.wav#t=12.5,15.7&channel=1` (as W3C Media Fragments write times).

A manifest says `offset`, `duration` and `channel`; from there on the recording is one name, so that whatever reads,
measures or caches audio means the same samples.

A recording may itself be part of a file: `shard.tar#bytes=1536,48044` is the 48,044 bytes from 1536 on, a member of a
tar file, read in place. Both together: `shard.tar#bytes=1536,48044&t=12.5,15.7`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_FRAGMENT = re.compile(
    r"#(?:bytes=(?P<place>\d{1,18}),(?P<size>\d{1,18}))?&?"
    r"(?:t=(?P<start>\d+(?:\.\d+)?)(?:,(?P<end>\d+(?:\.\d+)?))?)?&?(?:channel=(?P<channel>\d+))?$"
)
_MEMBER = re.compile(r"#bytes=\d{1,18},\d{1,18}$")


@dataclass(frozen=True)
class Segment:
    """What a name means.

    Attributes:
        path: of the file.
        start: seconds from its beginning.
        end: seconds from its beginning, or None for its end.
        channel: which, from 0; None is the mean of all.
        place: first byte and bytes of the recording, where it is a member of an archive; None: the file is it.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    channel: int | None = None
    place: tuple[int, int] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its recording."""
        return self.start == 0 and self.end is None and self.channel is None

    def frames(self, rate: int) -> tuple[int, int | None]:
        """First frame and the one behind the last, of a file at `rate`; None is its end."""
        return round(self.start * rate), None if self.end is None else round(self.end * rate)


def segment_name(path: str, offset: float | None, duration: float | None, channel: int | None) -> str:
    """The name of a part; without offset and channel that of the recording, whatever its duration. `path` may be that
    of a member."""
    parts = []
    if offset is not None:
        end = "" if duration is None else f",{_plain(offset + duration)}"
        parts.append(f"t={_plain(offset)}{end}")
    if channel is not None:
        parts.append(f"channel={channel}")
    behind = "&" if _MEMBER.search(path) else "#"
    return f"{path}{behind}{'&'.join(parts)}" if parts else path


def member_name(path: str, place: int, size: int) -> str:
    """The name of `size` bytes of a file from `place` on."""
    return f"{path}#bytes={place},{size}"


def segment_of(name: str | os.PathLike[str]) -> Segment:
    """What a name means: a file of that very name where there is one, else a part of one. That of a member is taken at
    its word: to look for such a file would ask a file system once more for each clip."""
    name = os.fspath(name)
    found = _FRAGMENT.search(name) if "#" in name else None
    if found is None or found.end() == found.start() + 1 or (found["place"] is None and os.path.lexists(name)):
        return Segment(name)
    start, end, channel, place = (found[key] for key in ("start", "end", "channel", "place"))
    return Segment(
        name[: found.start()],
        float(start or 0),
        None if end is None else float(end),
        None if channel is None else int(channel),
        None if place is None else (int(place), int(found["size"])),
    )


def _plain(seconds: float) -> str:
    """Seconds without an exponent, and with no more than the digits that tell them apart at any rate."""
    return f"{seconds:.7f}".rstrip("0").rstrip(".")
