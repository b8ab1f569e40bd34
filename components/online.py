"""Whether published models may be fetched by their hub name. Not unless it is asked for: a name may stand in a file of
somebody else, and a folder that is misspelt looks like one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_online: ContextVar[bool] = ContextVar("online", default=False)


@contextmanager
def online(allowed: bool = True) -> Iterator[None]:
    """Inside, hub names that are in no cache are fetched, or not; `--online` of the commands."""
    token = _online.set(allowed)
    try:
        yield
    finally:
        _online.reset(token)


def is_online() -> bool:
    """Whether they are fetched."""
    return _online.get()
