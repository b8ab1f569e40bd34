"""Costs of work done by a process of its own: CPU seconds, and the memory that nobody shares with it."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Work = Callable[[], Mapping[str, float] | None]
"""What is measured; may add quantities of its own."""

_ROOT = Path(__file__).parents[2]


def private(pid: int | str = "self") -> int:
    """Bytes of a process now that are its own: not files, and not what it shares with others."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class Peak(threading.Thread):
    """The most that this process held for itself alone, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = private()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.most = max(self.most, private())

    def stop(self) -> int:
        """Bytes by which it grew at most."""
        self._ended.set()
        self.join()
        return max(self.most, private()) - self.before


def apart(work: str, size: int, folder: Path, **environment: str) -> dict[str, float]:
    """Do a work in a new process, with one thread.

    Args:
        work: `module:function` of this package; called with size and folder it imports what it needs and gives the
            `Work`, which alone is measured.

    Returns:
        cpu: seconds; peak: bytes of its own that it grew by at most; kept: those still there at the end; and what the
        work says.
    """
    command = [sys.executable, "-c", f"from {__name__} import main; main()", work, str(size), str(folder)]
    return json.loads(_output(command, folder, environment).splitlines()[-1])


def main() -> None:
    """The process."""
    name, size, folder = sys.argv[1:]
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(f"{__package__}.{module}"), function)(int(size), Path(folder))
    peak, cpu = Peak(), cpu_seconds()
    said = work() or {}
    cpu = cpu_seconds() - cpu
    kept = private() - peak.before
    print(json.dumps({"cpu": cpu, "peak": max(peak.stop(), kept), "kept": kept, **said}))


def command(words: list[str], folder: Path, **environment: str) -> dict[str, float]:
    """Run `voxzoo WORDS...` in a folder; its CPU seconds, those of its children included, wall seconds, and the most
    bytes that the command itself held (`resident`)."""
    start = time.perf_counter()
    with _started(voxzoo(words), folder, environment) as process:
        output = process.stdout.read() if process.stdout else b""
        # Not `wait`: it does not say what the process took.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"voxzoo {' '.join(words)} ended with {process.returncode}:\n{output.decode()[-2000:]}")
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - start,
        "resident": usage.ru_maxrss * 1024.0,
    }


def voxzoo(words: list[str]) -> list[str]:
    """The command line of `voxzoo WORDS...` in this environment."""
    return [sys.executable, "-c", "import sys; from voxzoo.tasks.commands.cli import main; sys.exit(main())", *words]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def _started(command: list[str], folder: Path, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=folder, env=_environment(more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _output(command: list[str], folder: Path, more: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment(more), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[3:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
