"""Memory that this process may take: what the machine has, what its control groups (containers, Slurm, systemd) leave,
and its own limits (`ulimit`), whichever is least."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# What the kernel gives back when it is asked for memory, by its name in a group's memory.stat.
_GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")
# /proc/self/limits -> /proc/self/status: what counts against a limit.
_LIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}
_GUESS = 2**31


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take without pushing anything out or being ended; a cautious guess of 2 GB
    where the system does not say.

    Args:
        root: of the file system that holds `proc` and `sys`.
    """
    return max(min(most - taken for most, taken in _bounds(root)), 0)


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process may have in all, with what others have taken given back."""
    return min(most for most, _ in _bounds(root))


def _bounds(root: Path) -> Iterator[tuple[int, int]]:
    """(most, taken) in bytes of each thing that bounds this process."""
    machine = _numbers(root / "proc/meminfo")
    if "MemTotal" in machine:
        most = machine["MemTotal"] * 1024
        yield most, most - machine.get("MemAvailable", machine.get("MemFree", 0)) * 1024
    else:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield most, max(most - _GUESS, 0)
    for folder in _groups(root):
        taken = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if taken is None:
            continue
        content = _numbers(folder / "memory.stat")
        # Version 1 has the sums over a group and those within it under names of their own.
        back = sum(content.get(f"total_{name}", content.get(name, 0)) for name in _GIVEN_BACK)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None:
                yield limit, max(taken - back, 0)
    own = _numbers(root / "proc/self/status")
    for line in _lines(root / "proc/self/limits"):
        for name, counted in _LIMITS.items():
            soft = line.removeprefix(name).split()[:1]
            if line.startswith(name) and soft[0].isdigit():
                yield int(soft[0]), own.get(counted, 0) * 1024


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that count this process's memory, its own first, then those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        kind = "cgroup" if controllers else "cgroup2"
        if controllers and "memory" not in controllers.split(","):
            continue
        for top, mount in _mounts(root, kind):
            # Within a container, its group may be all that is mounted, under the name that the machine knows.
            inner = path.removeprefix(top) if top != "/" and f"{path}/".startswith(f"{top}/") else path
            folder = mount / inner.strip("/")
            if ".." in folder.parts or not folder.is_dir():
                folder = mount
            while True:
                yield folder
                if folder == mount:
                    break
                folder = folder.parent


def _mounts(root: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """(what is mounted, where) of the hierarchies of a version that may count memory."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        system, _, options = after.split()[:3]
        if system == kind and (kind == "cgroup2" or "memory" in options.split(",")):
            top, mount = before.split()[3:5]
            yield top, root / mount.strip("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name number` or `name: number kB` of a file."""
    fields = (line.replace(":", " ").split() for line in _lines(path))
    return {words[0]: int(words[1]) for words in fields if len(words) > 1 and words[1].isdigit()}


def _number(*paths: Path) -> int | None:
    """The number in the first of these files that holds one; `max` is none."""
    for path in paths:
        words = " ".join(_lines(path)).split()
        if words and words[0].isdigit():
            return int(words[0])
    return None
