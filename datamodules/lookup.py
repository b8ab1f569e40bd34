"""A dictionary that is kept on disk: two files of millions of rows are joined in little memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

_AT_ONCE = 10_000
_CACHE = 32_000  # kB of it that are held in memory


class Lookup:
    """Text -> plain value, of any number; the first value of a key stays. It is gone with this object.

    Args:
        pairs: keys and values.
    """

    def __init__(self, pairs: Iterable[tuple[str, Any]] = ()) -> None:
        self._base = sqlite3.connect("")  # SQLite's name for a file that it removes again
        for line in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE}"):
            self._base.execute(f"PRAGMA {line}")
        self._base.execute("CREATE TABLE pairs (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._waiting: list[tuple[str, str]] = []
        for name, value in pairs:
            self.add(name, value)

    def add(self, name: str, value: Any) -> None:
        self._waiting.append((name, json.dumps(value)))
        if len(self._waiting) >= _AT_ONCE:
            self._write()

    def get(self, name: str, default: Any = None) -> Any:
        if self._waiting:
            self._write()
        found = self._base.execute("SELECT value FROM pairs WHERE name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def __len__(self) -> int:
        self._write()
        return self._base.execute("SELECT count(*) FROM pairs").fetchone()[0]

    def __contains__(self, name: str) -> bool:
        return self.get(name, self) is not self

    def _write(self) -> None:
        self._base.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", self._waiting)
        self._waiting.clear()
