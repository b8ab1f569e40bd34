"""`voxzoo` in processes of its own without paying for imports each time: torch, lightning and voxzoo are imported once
in a server, which forks for every command that a test starts. Everything behind the imports is as in a process that a
user starts: arguments, environment, folder, streams, signals, session, exit status. The further processes of a run,
which it starts itself, are forked in the same way.

    python tests/forkserver.py SOCKET PID    serve until the process PID is gone
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MODULE = "voxzoo.tasks.commands.cli"
COMMAND = (sys.executable, "-m", MODULE)
WHERE = "VOXZOO_TEST_FORKSERVER"  # the socket, for what commands start themselves


class Process(subprocess.Popen):
    """As `subprocess.Popen` of `[*COMMAND, *words]`, but forked by the server at `WHERE`."""

    # What CPython's own class does with fork and waitpid; the rest of it (pipes, communicate, timeouts) is as it is.

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, session, group,
    ) -> None:  # pyright: ignore  # fmt: skip
        environment = dict(os.environ if env is None else env)
        request = {
            "words": [os.fspath(word) for word in args][len(COMMAND) :],
            "env": {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
            "cwd": os.fspath(cwd) if cwd else os.getcwd(),
            "session": bool(session),
            "parent": os.getpid(),
        }
        content = json.dumps(request).encode()
        self._line = _connected(os.environ[WHERE])
        streams = [fd if fd != -1 else number for number, fd in enumerate((p2cread, c2pwrite, errwrite))]
        socket.send_fds(self._line, [len(content).to_bytes(8, "big")], streams)
        self._line.sendall(content)
        self._heard = self._line.makefile("r")
        self.pid = int(self._heard.readline())
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # pyright: ignore

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self._try_wait(os.WNOHANG)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._line], [], [], 0)[0]:
            return 0, 0
        status = int(self._heard.readline() or signal.SIGKILL)  # the server is gone
        self.returncode = os.waitstatus_to_exitcode(status)
        return self.pid, status


def _connected(path: str) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    for _ in range(500):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            line.connect(path)
            return line
        time.sleep(0.01)  # a server that begins
    raise FileNotFoundError(path)


def popen(command: Any, *args: Any, **options: Any) -> subprocess.Popen:
    """`subprocess.Popen`, by the server where the command is `voxzoo` and there is one."""
    ours = isinstance(command, list | tuple) and tuple(command[: len(COMMAND)]) == COMMAND
    return (Process if ours and os.environ.get(WHERE) else _POPEN)(command, *args, **options)


_POPEN = subprocess.Popen


def start(folder: Path, owner: int) -> str:
    """The socket of the server in a folder, which is started where there is none; it serves until `owner` is gone."""
    path = folder / "forkserver"
    with open(folder / "forkserver.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with open(folder / "forkserver.log", "w") as log:
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                server = _POPEN(
                    [sys.executable, __file__, str(path), str(owner)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                )  # fmt: skip
            while not path.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"the fork server ended: {(folder / 'forkserver.log').read_text()}")
                time.sleep(0.05)
    return str(path)


def _import() -> None:
    from voxzoo import components, tasks
    from voxzoo.tasks.commands import cli

    for package in (components, tasks):
        for name in package.__all__:
            getattr(package, name)
    for verb in cli.VERBS:
        cli._module(verb)
    for module in ("lightning.pytorch.loggers", "torch.utils.tensorboard"):
        importlib.import_module(module)


def serve(path: str, owner: int) -> None:
    """Fork for those who ask at a socket, and tell them how it ended, until the owner is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # it is there when it is served
    children: dict[int, socket.socket] = {}
    while _is_there(owner):
        if select.select([listener], [], [], 0.02)[0]:
            line, _ = listener.accept()
            try:
                _serve_one(path, line, listener, children)
            except (OSError, ValueError):
                line.close()
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            told = children.pop(pid, None)
            if told is not None:
                with contextlib.suppress(OSError), told:
                    told.sendall(f"{status}\n".encode())
    os.unlink(path)


def _is_there(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _serve_one(path: str, line: socket.socket, listener: socket.socket, children: dict[int, socket.socket]) -> None:
    head, streams, _, _ = socket.recv_fds(line, 8, 3)
    size, content = int.from_bytes(head, "big"), b""
    while len(content) < size:
        more = line.recv(size - len(content))
        if not more:
            raise ConnectionError("who asked has ended")  # and others wait to be served
        content += more
    request = json.loads(content)
    pid = os.fork()
    if not pid:
        listener.close()
        for other in children.values():
            other.close()
        line.close()
        _become(path, request, streams)
    for fd in streams:
        os.close(fd)
    children[pid] = line
    line.sendall(f"{pid}\n".encode())


def _become(path: str, request: dict[str, Any], streams: list[int]) -> None:
    """What a new process of the command would be behind its imports; never returns."""
    import torch
    from lightning.fabric.utilities import rank_zero

    import __main__

    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for fd in streams:
        if fd > 2:
            os.close(fd)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ[WHERE] = _server_of_its_own(path)
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = [str(importlib.util.find_spec(MODULE).origin), *request["words"]]  # pyright: ignore
    __main__.__spec__ = importlib.util.find_spec(MODULE)  # what Lightning starts its other processes by
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    rank = rank_zero._get_rank()
    for module in (rank_zero, sys.modules["lightning_utilities.core.rank_zero"]):
        module.rank_zero_only.rank = rank or 0
    subprocess.Popen = popen
    parent = request["parent"]
    real = os.getppid
    os.register_at_fork(after_in_child=lambda: setattr(os, "getppid", real))
    os.getppid = lambda: parent if _is_there(parent) else 1
    status = 1
    try:
        from voxzoo.tasks.commands.cli import main

        status = main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        _leave(status)


def _server_of_its_own(path: str) -> str:
    """What this process will start must be in its group: a server beside it, forked while it has no threads."""
    own, place = os.getpid(), f"{path.partition('.')[0]}.{os.getpid()}"
    if not os.fork():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # sent to the group, they are for the others
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        with contextlib.suppress(BaseException):
            serve(place, own)
        os._exit(0)
    return place


def _leave(status: int) -> None:
    """End as an interpreter does: what registered for it is called, and threads that are no daemons are waited for."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # pyright: ignore
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _import()
    serve(sys.argv[1], int(sys.argv[2]))
