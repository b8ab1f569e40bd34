"""What this process does to the machine while a command runs: sockets and processes are refused and noted, and so is
what it changes outside of the folders that it may write in."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REFUSED = frozenset(
    [
        *(f"socket.{name}" for name in ("connect", "bind", "sendto", "getaddrinfo", "gethostbyname")),
        # A fork alone runs nothing else, and is watched as well.
        *(f"os.{name}" for name in ("system", "exec", "posix_spawn", "spawn")),
        *("urllib.Request", "subprocess.Popen", "pty.spawn", "webbrowser.open", "ftplib.connect"),
    ]
)
_CHANGES = frozenset(
    [
        *(
            f"os.{name}"
            for name in ("remove", "rename", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "utime")
        ),
        *("os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp"),
    ]
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_now: Watch | None = None
_hooked = False


class Watch:
    """What was tried since it began.

    Attributes:
        tried: event and arguments, of what no command may do.
    """

    def __init__(self, allowed: Sequence[Path]) -> None:
        self.tried: list[str] = []
        self._allowed = [os.path.realpath(folder) for folder in (*allowed, "/dev")]

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called for each audit event. Raises PermissionError for what is refused."""
        if event in ("socket.connect", "socket.bind") and not isinstance(arguments[1], tuple):
            return  # between processes of this machine: how data workers hand on tensors
        if event in _REFUSED:
            self.tried.append(f"{event}{arguments!r:.200}")
            raise PermissionError(f"refused by the test: {event}")
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and not self._may(path):
                self.tried.append(f"open {path!r} for writing")
        elif event in _CHANGES and not all(map(self._may, arguments[:2])):
            if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
                return  # within `shutil.rmtree`, by a folder that is open
            self.tried.append(f"{event}{arguments!r:.200}")

    def _may(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a number of an open file, or no path
        # Of a link that is itself replaced or removed, its folder counts.
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        where = os.path.join(os.path.realpath(folder), name)
        return any(where == one or where.startswith(f"{one}/") for one in self._allowed)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _now is not None and (event == "open" or event in _REFUSED or event in _CHANGES):
        _now.note(event, arguments)


@contextmanager
def watched(allowed: Sequence[Path]) -> Iterator[Watch]:
    """Watch this process inside. A hook stays for good, and does nothing outside.

    Args:
        allowed: folders in which may be written.
    """
    global _now, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _now = Watch(allowed)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield _now
    finally:
        _now, sys.dont_write_bytecode = None, before


def snapshot(folder: Path, without: Sequence[Path] = ()) -> dict[str, tuple[Any, ...]]:
    """Kind, size, time of change and sum of all that is below a folder, links not followed."""
    found: dict[str, tuple[Any, ...]] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) not in without]
        for name in (*folders, *files):
            path = Path(place, name)
            about = path.lstat()
            if path.is_symlink():
                found[str(path)] = ("link", os.readlink(path))
            elif path.is_file():
                digest = hashlib.blake2b(path.read_bytes()).hexdigest()
                found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, digest)
            else:
                found[str(path)] = (about.st_mode,)
    return found
