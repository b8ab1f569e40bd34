"""Processes of the command that run side by side: what each says is passed on behind its name."""

from __future__ import annotations

import codecs
import io
import locale
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .forked import start
from .signals import EXIT_CODES, REQUEUED, Interrupted, heard


class Child:
    """`voxzoo WORDS` in a process of its own.

    Args:
        name: begins each of its lines.
        words: of the call.
        environment: all of it.
        shown: whether its lines are passed on; its reason is known in any case.

    Attributes:
        reason: the error that it has printed, else its last line.
        speaks: whether more can come of it.
        started: when, in seconds of `time.monotonic`.
    """

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str], *, shown: bool = True) -> None:
        self.name = name
        self._shown = shown
        self.started = time.monotonic()
        self.reason = ""
        self.speaks = True
        self._error = f"voxzoo {words[0]}: "  # begins what the command says when it fails
        self._has_said_why = False
        self._begun = ""  # a line that has no end yet
        decoder = codecs.getincrementaldecoder(locale.getencoding())("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        # Its own process group: Ctrl-C reaches this process, which tells each child once.
        self.process = start(words, environment)

    def fileno(self) -> int:
        """Of what it says."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def pass_on(self) -> None:
        """Pass on what it has said by now; waits where there is nothing."""
        content = os.read(self.fileno(), 1 << 16)
        self.speaks = bool(content)
        *lines, self._begun = (self._begun + self._decoder.decode(content, not content)).split("\n")
        for line in lines if self.speaks else [*lines, self._begun]:
            if line.strip():
                self._note(line.rstrip())
                with suppress(OSError):  # nobody listens any more: it goes on
                    if self._shown:
                        print(f"[{self.name}] {line.rstrip()}", file=sys.stderr, flush=True)

    def _note(self, line: str) -> None:
        if line.startswith(self._error):
            self.reason = line.removeprefix(self._error)
            self._has_said_why = True
        elif not self._has_said_why:
            self.reason = line.strip()
        elif line.startswith("  "):  # an error of several lines, such as the faults of a config
            self.reason += f"\n{line}"

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None and not self.speaks

    @property
    def code(self) -> int:
        """Of its end, negative for a signal."""
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def why(self) -> str:
        """Why it failed."""
        if self.code < 0:  # what it said last has nothing to do with it
            return killed_by(self.code)
        return self.reason or f"exit {self.code}"

    def stop(self, running: Iterable[Child]) -> None:
        """Ask it to save and stop, and wait for it while all are heard; Ctrl-C kills it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                while self.process.poll() is None:  # a large model takes minutes to write
                    pass_on(running, 0.05)
            except BaseException:  # Ctrl-C, a second time
                self.process.kill()
        until = time.monotonic() + 5
        while self.speaks and time.monotonic() < until:
            pass_on([self], 0.05)


def killed_by(code: int) -> str:
    """What ended a process whose exit code is negative."""
    by = signal.Signals(-code).name
    return f"killed by {by}{' (out of memory?)' if by == 'SIGKILL' else ''}"


def pass_on(children: Iterable[Child], seconds: float) -> None:
    """Pass on what children say, and wait for it no longer than that."""
    speaking = [child for child in children if child.speaks]
    if not speaking:
        time.sleep(seconds)
        return
    for child in select.select(speaking, [], [], seconds)[0]:
        child.pass_on()


@contextmanager
def stopped_together(running: Mapping[Any, Any]) -> Iterator[None]:
    """Inside, the first signal raises `Interrupted`; whatever ends it asks the children that run to save and stop."""

    def stop(number: int, frame: Any) -> None:
        heard()
        for again in REQUEUED:  # as of the first: what comes behind it changes nothing, but Ctrl-C
            signal.signal(again, signal.SIG_IGN)
        raise Interrupted(number, None)

    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, stop) for number in EXIT_CODES} if in_main else {}
    try:
        yield
    except BaseException:
        for child in running.values():
            child.stop(running.values())
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
