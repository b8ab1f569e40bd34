"""File names for ids: one for each, whatever characters the id has."""

from __future__ import annotations

import os
import re

_LONGEST = 120
"""Characters: a name with its suffix stays below the 255 bytes of file systems, also in scripts of several bytes."""


def cut_name(name: str, most: int = 200) -> str:
    """A file name, without what is more than so many bytes: of the 255 that file systems take, some are for what
    stands behind it."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


class FileNames:
    """Gives out names that no other id has, letter case aside (some file systems know none)."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, given: str) -> str:
        base = cut_name(re.sub(r"[^\w.-]", "_", given).strip("."), _LONGEST)
        base = base or "utterance"
        name, number = base, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name.lower())
        return name
