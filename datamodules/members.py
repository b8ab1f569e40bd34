"""Members of an archive, read in place: some bytes of a file as a file of its own.

A tar file stores its members whole and uncompressed, one behind the other: where one begins and how long it is, is all
that reading it takes. A manifest that says so (`segments`) is the index, and the archive is opened like any audio file.
"""

from __future__ import annotations

import io
import os


class Member(io.RawIOBase):
    """`size` bytes of a file from `place` on.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], place: int, size: int) -> None:
        super().__init__()
        self._place, self._size, self._at = place, size, 0
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        if not count:
            return 0
        self._file.seek(self._place + self._at)
        read = self._file.readinto(view[:count])
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
