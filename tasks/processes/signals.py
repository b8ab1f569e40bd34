"""Signals to a run before its first step, the end of its parent, and a word to its launcher.

Imports nothing slow: the command answers a signal from its first moments on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

# What a run that was stopped by a signal exits with; 75 (EX_TEMPFAIL) tells a scheduler to requeue.
STOPPED = 75
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: STOPPED, signal.SIGUSR1: STOPPED}
REQUEUED = [number for number, code in EXIT_CODES.items() if code == STOPPED]

GRACE = 10.0  # seconds in which a process may end in its own words before it is ended
PARENT = "VOXZOO_PARENT"
LAUNCHER = "VOXZOO_LAUNCHER_FILE"
WATCHER = "voxzoo-signals"  # the threads that look whether the main one hears a signal, and whether the parent is there


class Interrupted(BaseException):
    """A signal asked the run to stop, and what there was to save is saved. Like KeyboardInterrupt no mere Exception,
    since it may arise anywhere.

    Args:
        number: the signal.
        step: the step that was saved; None: this process had none.
        where: then in place of it, for the message.
    """

    def __init__(self, number: int, step: int | None, where: str = "") -> None:
        where = where if step is None else f" at step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{where}; the same command continues")
        self.number = number
        self.step = step


_told = _taken = False  # whether `_stop` has raised, or another has in its place, since `stopped_at_once` began


def _stop(number: int, frame: Any) -> None:
    # Signals are repeated: torchrun tells the others to end when the first process of a run that was stopped has, and
    # Slurm tells again at the time limit. The first was heard, and what comes behind it must not cut it short.
    global _told
    if not (_told or _taken):
        _told = True
        raise _no_step(number)


def heard() -> None:
    """Said by who raises `Interrupted` in the place of `_stop`: from here on SIGTERM and SIGUSR1 say nothing new."""
    global _taken
    _taken = True


def _no_step(number: int) -> Interrupted:
    return Interrupted(number, None, " with no step under way")


def stops_at_once(number: int = signal.SIGTERM) -> bool:
    """Whether a signal would find `stopped_at_once` in charge."""
    return signal.getsignal(number) is _stop


@contextmanager
def stopped_at_once(*, process_ends: bool = False) -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 raise `Interrupted`, once, but where a `Checkpointer` has taken them over to save a
    step.

    Outside, they are again whose they were before. In a thread, to which no signal comes, nothing changes.

    Args:
        process_ends: the process ends with this; once it is stopped these signals are ignored, so that it exits in its
            own words.
    """
    global _told, _taken
    if threading.current_thread() is not threading.main_thread() or stops_at_once():
        yield
        return
    _told = _taken = False
    handlers = {number: signal.signal(number, _stop) for number in REQUEUED}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if before != -1:  # an event loop's, which needs it more
        signal.set_wakeup_fd(before)
    over = threading.Event()
    threading.Thread(target=_end_where_stuck, args=(reader, over), name=WATCHER, daemon=True).start()
    try:
        yield
    except Interrupted:
        if process_ends:
            handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_where_stuck(reader: int, over: threading.Event) -> None:
    """Python handles a signal when the main thread comes back to it: where that waits in C++ for another process of the
    run to begin, this may be half an hour later."""
    while told := os.read(reader, 1):
        number = told[0]
        if stops_at_once(number) and not _taken and not over.wait(GRACE) and stops_at_once(number):
            print(f"voxzoo train: {_no_step(number)}", file=sys.stderr, flush=True)
            tell_launcher("stopped")
            os._exit(STOPPED)
    os.close(reader)


def _forget() -> None:
    """A forked process, such as a worker that reads data, is no run."""
    if stops_at_once():
        signal.set_wakeup_fd(-1)
        for number in REQUEUED:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)


def child(wish: Literal["stop", "end"]) -> dict[str, str]:
    """What to set in the environment of a process so that, when this one is gone, it saves its step and stops, or ends
    at once."""
    return {PARENT: f"{os.getpid()} {wish}"}


def watch_parent() -> None:
    """In a process that was started with `child`: look whether its parent is there, and if not, do what it wished."""
    parent, _, wish = os.environ.pop(PARENT, "").partition(" ")

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        if wish == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not stops_at_once():  # amid training it hears of it by the lost connection
            time.sleep(GRACE)
        os._exit(1)

    if parent:
        threading.Thread(target=watch, name=WATCHER, daemon=True).start()


def tell_launcher(word: str) -> None:
    """Write to the file that `configs/launch/torchrun.sh` gives its processes: `ready` for signals, or `stopped`."""
    if path := os.environ.get(LAUNCHER):
        with Path(path).open("a") as file:
            file.write(f"{word}\n")
