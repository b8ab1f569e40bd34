"""Errors a user can act on."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """One clear line: the key, file or utterance, the value, what was expected, what to do next. No traceback shown."""


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list and how many more there are, for messages; `none` of an empty one."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "none"
