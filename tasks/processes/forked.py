"""Further calls of `voxzoo` in processes forked from one that has imported everything.

Importing takes a process 4 to 8 CPU seconds; a forked one has it. Whatever else could make it differ from a fresh one
is kept out: it is forked on Linux alone, from a process of the command itself in which no pool of threads and no GPU
has been in use, and it begins with a session, streams, signals and an environment of its own.
"""

from __future__ import annotations

import atexit
import importlib.util
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn, cast

from .signals import EXIT_CODES, REQUEUED, WATCHER

_COMMAND = "voxzoo.tasks.commands.cli"

_main: Callable[[list[str]], int] | None = None
_threads = 0


def is_command(main: Callable[[list[str]], int]) -> None:
    """Said by the `voxzoo` command: this process is its own, and `main` runs the words of a call."""
    global _main
    _main = main
    has_imported()


def is_own() -> bool:
    """Whether this process belongs to the `voxzoo` command, and not to a program that calls it."""
    return _main is not None


def has_imported() -> None:
    """Said when a process of the command has imported what its children need, and has computed nothing."""
    global _threads
    _threads = _native_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread: a pool of them would keep children from being forked from this process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start(
    words: Sequence[str], environment: Mapping[str, str], *, alone: bool = True, piped: bool = True, gpu: bool = True
) -> subprocess.Popen | Forked:
    """Run `voxzoo WORDS` in a process of its own: forked where that is as good as a fresh one, else a fresh one.

    Args:
        words: of the call.
        environment: all of it.
        alone: in a session of its own, without input, and what it says on standard error comes through `stdout` too;
            otherwise these stay those of this process.
        piped: what it says on standard output comes through `stdout`; otherwise that stays the one of this process.
        gpu: it may use one, which a forked process cannot where this one has so much as counted them.
    """
    if _can_fork(environment):
        return Forked(words, environment, alone=alone, piped=piped, gpu=gpu and _has_gpus())
    return subprocess.Popen(
        _command(words),
        stdin=subprocess.DEVNULL if alone else None,
        stdout=subprocess.PIPE if piped else None,
        stderr=subprocess.STDOUT if alone else None,
        bufsize=0,
        env=dict(environment),
        start_new_session=alone,
    )


def call(words: Sequence[str]) -> int:
    """Run `voxzoo WORDS` in a fresh process that speaks where this one does; its exit code."""
    return subprocess.call(_command(words))


def _command(words: Sequence[str]) -> list[str]:
    # -P: a random.py of the folder that the user stands in is not what a module of that name means.
    return [sys.executable, "-P", "-m", _COMMAND, *words]


# What is read from the environment once, when torch is imported.
_READ_WITH_TORCH = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _can_fork(environment: Mapping[str, str]) -> bool:
    if _main is None or not sys.platform.startswith("linux"):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    if any(thread.name != WATCHER for thread in threading.enumerate() if thread is not threading.main_thread()):
        return False
    if any(environment.get(name) != os.environ.get(name) for name in _READ_WITH_TORCH):
        return False
    torch: Any = sys.modules.get("torch")
    if torch is not None and (torch.cuda.is_initialized() or torch.distributed.is_initialized()):
        return False
    # More threads than were there after the imports: the pool of OpenMP, which a forked process would wait for.
    return _native_threads() <= _threads


def _native_threads() -> int:
    """Threads that are not Python's."""
    try:
        return len(os.listdir("/proc/self/task")) - threading.active_count()
    except OSError:
        return 0


class Forked:
    """What `subprocess.Popen` is for a fresh process, as far as it is needed here.

    Attributes:
        usage: of processors and memory, once it has ended, as `resource.getrusage` says it.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], *, alone: bool, piped: bool, gpu: bool
    ) -> None:
        self.returncode: int | None = None
        self.usage: resource.struct_rusage | None = None
        reader, writer = os.pipe() if piped else (-1, os.dup(1))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # A signal that comes now is for this process; the handlers that the other begins with are not its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see `_can_fork`
                self.pid = os.fork()
            if not self.pid:
                _become(list(words), environment, writer, mask, alone, gpu)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
        self.stdout: IO[bytes] | None = os.fdopen(reader, "rb", buffering=0) if piped else None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._ask(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return cast(int, self._ask(0))

    def _ask(self, options: int) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):  # another thread was told of its end
                pid, status, usage = os.wait4(self.pid, options)
                if pid:
                    self.usage = usage
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _become(words: list[str], environment: Mapping[str, str], out: int, mask: Any, alone: bool, gpu: bool) -> NoReturn:
    """In the forked process: begin as a fresh one would, run the call, and end; nothing of the caller's is unwound."""
    code = 1
    try:
        _own_signals(mask)
        _own_streams(out, alone)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        _own_rank()
        if gpu and _has_lost_its_gpu():
            os.execve(sys.executable, _command(words), dict(environment))
        # Lightning starts the further processes of a run by these.
        sys.argv = [sys.argv[0], *words]
        sys.modules["__main__"].__spec__ = importlib.util.find_spec(_COMMAND)
        assert _main is not None
        code = _main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] - waits for threads, as an exit does
            atexit._run_exitfuncs()
        finally:
            os._exit(code & 0xFF)


def _has_lost_its_gpu() -> bool:
    """Whether something before the fork, such as counting GPUs, has begun CUDA, which then cannot be used behind it."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and getattr(torch._C, "_cuda_isInBadFork", lambda: False)()


def _has_gpus() -> bool:
    """Asked before the fork: where there are none, none is lost. An optimizer that was tried has counted them."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda.device_count() > 0


def _own_rank() -> None:
    """Lightning reads the place of a process among those of its run when it is imported, and a trainer sets it."""
    module: Any = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if module is not None:
        module.rank_zero_only.rank = module._get_rank() or 0


def _own_signals(mask: Any) -> None:
    signal.set_wakeup_fd(-1)
    for number in REQUEUED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _own_streams(out: int, alone: bool) -> None:
    """Standard output goes to `out`, and nothing else that the caller has open is held open: pipes of other processes
    would not end with their readers."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(out, 1)
    if alone:
        os.setsid()
        os.dup2(null, 0)
        os.dup2(out, 2)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        # Not closed: an object that closes it later must not close what has the same number by then.
        if number > 2 and number != null and _is_open(number):
            os.dup2(null, number, inheritable=False)
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is not None:  # its pipe is gone: another is started where one is needed
        tracker._resource_tracker._fd = tracker._resource_tracker._pid = None
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = _unbuffered(1, sys.__stdout__)
    sys.stderr = sys.__stderr__ = _unbuffered(2, sys.__stderr__)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


_kept: list[Any] = []  # streams of the caller: they must not be closed here


def _unbuffered(number: int, before: Any) -> io.TextIOWrapper:
    _kept.append(before)
    raw = os.fdopen(number, "wb", buffering=0, closefd=False)
    return io.TextIOWrapper(raw, encoding=before.encoding, errors=before.errors, write_through=True)
