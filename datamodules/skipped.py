"""Rows that were left out while a run was reading its data (`data.on_error=skip`): each is named once in a run,
whichever of its processes met it first, before or after a restart."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import BinaryIO, Literal

from ..components.errors import printable
from ..components.lines import json_line

OnError = Literal["stop", "skip"]
"""What a row does that cannot be read: ends the run, or is left out of it."""

_log = logging.getLogger(__name__)


class SkippedRows:
    """The rows left out so far, by split and id; in memory, and in a file of JSON lines once `keep` was called.

    Attributes:
        path: the file, or None.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._known: set[tuple[str, str]] = set()
        self._read = 0  # bytes of the file

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, path: Path) -> None:
        """Write what is left out from now on into a file as well; what is in it already was said by then."""
        self.path = path
        if path.exists():
            with path.open("rb") as file:
                self._look(file)

    def note(self, split: str, row: str, reason: str) -> None:
        """A row was left out; says so where it is new."""
        if (split, row) in self._known:
            return
        reason = " ".join(reason.split())
        if self.path is not None and not self._write(split, row, reason):
            return  # another process of this run has said it
        self._known.add((split, row))
        _log.warning(printable(f"{split}: left out {row}: {reason} ({len(self)} rows so far)"))

    def count(self) -> int:
        """Rows left out by all processes of the run."""
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                self._look(file)
        return len(self)

    def _write(self, split: str, row: str, reason: str) -> bool:
        """Whether it was not there yet."""
        import fcntl

        assert self.path is not None
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._look(file)
            if (split, row) in self._known:
                return False
            file.truncate(self._read)  # half a line, of a process that was killed
            line = json_line({"split": split, "id": row, "reason": reason}).encode() + b"\n"
            file.write(line)
            self._read += len(line)
        return True

    def _look(self, file: BinaryIO) -> None:
        """Read what was added since the last look."""
        file.seek(self._read)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.split(b"\n"):
            if line.strip():
                found = json.loads(line)
                self._known.add((found["split"], found["id"]))
