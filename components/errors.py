"""Errors a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """One clear line: the key, file or utterance, the value, what was expected, what to do next. No traceback shown."""


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list and how many more there are, for messages; `none` of an empty one."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "none"


_LONGEST = 2000  # characters of a line

# C0, DEL and C1 but tab and line feed, what turns the direction of text, and halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """What may be printed of ids, keys, file names and texts that come from a file: a terminal obeys some characters.

    They are written as Python writes them (`\\x1b`); of a line of more than 2,000 characters the middle is left out.
    """
    escaped = _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return "\n".join(map(_cut, escaped.split("\n")))


def _cut(line: str) -> str:
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2
    return f"{line[:half]} ... ({len(line) - 2 * half:,} characters more) ... {line[-half:]}"


@contextmanager
def faults_of(source: object) -> Iterator[None]:
    """While something is made of values that someone else wrote in `source`: each fault names it, also what a
    constructor or an operator of Python has against a value.

    Raises:
        UserError: one line.
    """
    try:
        yield
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: holds a value that cannot be used ({type(error).__name__}: {reason})") from error
