"""A command within bounds of time and memory, and what is wrong with how it ends."""

from __future__ import annotations

import faulthandler
import resource
import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings

SECONDS = 20
"""CPU time that a command may take for inputs of a few kilobytes."""
WAITING = 90
"""Seconds by the clock: a command that waits for something uses no CPU. More than the above, as machines are shared."""
GROWTH = 10**9
"""Bytes that it may take beyond what the process has."""
LONGEST = 4000
"""Characters of a line on standard error."""


SHORT = "task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}"
STEPS = ["schedule=constant", "trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none", SHORT]
TEXT = ["task=text_to_text", "data.tasks.s2tt=false", "data.tasks.t2tt=true"]
"""A run that translates text, on the tiny parts."""


def share(part: float) -> settings:
    """Fewer examples than others, for a property that costs more."""
    return settings(max_examples=max(1, round(part * settings.default.max_examples)))


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Hang(BaseException):
    """Took too long. No Exception: the command must not take it for a fault of its input."""


@contextmanager
def bounds() -> Iterator[None]:
    """Raise `Hang` after SECONDS of CPU time, and let no more than GROWTH be allocated."""

    def stop(number: int, frame: Any) -> None:
        raise Hang(f"more than {SECONDS} s of CPU time, or {WAITING} s of waiting")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    faulthandler.dump_traceback_later(2 * WAITING, exit=True)  # where no signal is heard: in a library's own loop
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + GROWTH, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again: what is raised in a callback is lost
    signal.setitimer(signal.ITIMER_REAL, WAITING, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def _data() -> int:
    """Bytes that this process has allocated, as RLIMIT_DATA counts them."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) * 1024


Attempt = Callable[..., Done]


def judge(verb: str, done: Done, names: tuple[str, ...] = ()) -> str | None:
    """What is wrong with how a command ended; None where nothing is."""
    text = done.out + done.err
    if done.code not in (0, 1, 2):
        return f"exit status {done.code}"
    for word in ("Traceback", "should not happen", "MemoryError", "allocate memory", "Error ignored"):
        if word in text:
            return f"it says {word!r}"
    raw = {char for char in text if unicodedata.category(char) == "Cc" and char not in "\n\t"}
    if raw:
        return f"control characters are printed: {sorted(raw)}"
    if max(map(len, text.splitlines()), default=0) > LONGEST:
        return f"a line of more than {LONGEST} characters"
    if done.code and not done.err.strip() and not done.out.strip():
        return "it fails without a word"
    if done.code and names and not any(name in text for name in names):
        return f"it names none of {', '.join(names)}"
    if done.code == 1 and not done.out.strip() and f"voxzoo {verb}: " not in done.err:
        return f"no line begins with `voxzoo {verb}:`"
    return None
