"""Memory that a process may take, read from made-up systems and from the one here."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from voxzoo.components.layers import linear
from voxzoo.components.memory import free_memory, memory_limit

GB = 10**9


def system(root: Path, files: dict[str, str], total: int = 64, available: int = 40) -> Path:
    """A made-up machine: GB of memory, and files by their path."""
    kilobytes = [number * GB // 1024 for number in (total, available)]
    files = {
        "proc/meminfo": "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n".format(*kilobytes),
        "proc/self/status": f"Name:\tpython\nVmSize:\t{6 * GB // 1024} kB\nVmData:\t{2 * GB // 1024} kB\n",
        **files,
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def close(found: int, expected: float) -> bool:
    return abs(found - expected * GB) < 10_000


def limits(space: str = "unlimited", data: str = "unlimited") -> str:
    return (
        "Limit                     Soft Limit           Hard Limit           Units\n"
        f"Max data size             {data:<20} unlimited            bytes\n"
        f"Max address space         {space:<20} unlimited            bytes\n"
    )


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"


def group(folder: str, most: str, current: int, cache: int = 0, high: str = "max") -> dict[str, str]:
    """Files of a group of version 2."""
    return {
        f"{folder}/memory.max": f"{most}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{current}\n",
        f"{folder}/memory.stat": f"anon {current - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\n",
    }


def test_a_machine_without_limits(tmp_path: Path):
    root = system(tmp_path, {"proc/self/limits": limits()})
    assert close(free_memory(root), 40)
    assert close(memory_limit(root), 64)


def test_a_group_of_version_2_and_its_page_cache(tmp_path: Path):
    """What is cached of files is given back, as the machine's own number counts it."""
    files = {"proc/self/cgroup": "0::/job/step\n", "proc/self/mountinfo": V2}
    files |= group("sys/fs/cgroup/job/step", str(10 * GB), 7 * GB, cache=4 * GB)
    root = system(tmp_path, files)
    assert close(free_memory(root), 7)
    assert close(memory_limit(root), 10)


def test_groups_around_a_group_count(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/user/job/step\n", "proc/self/mountinfo": V2}
    files |= group("sys/fs/cgroup/user/job/step", "max", 1 * GB)
    files |= group("sys/fs/cgroup/user/job", str(30 * GB), 28 * GB)  # of all its steps
    files |= group("sys/fs/cgroup/user", str(50 * GB), 29 * GB)
    root = system(tmp_path, files)
    assert close(free_memory(root), 2)
    assert close(memory_limit(root), 30)


def test_the_limit_from_which_a_group_is_slowed_down(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2}
    files |= group("sys/fs/cgroup", str(20 * GB), 3 * GB, high=str(8 * GB))
    root = system(tmp_path, files)
    assert close(free_memory(root), 5)
    assert close(memory_limit(root), 8)


def test_a_group_that_is_full(tmp_path: Path):
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2}
    root = system(tmp_path, files | group("sys/fs/cgroup", str(2 * GB), 3 * GB))
    assert free_memory(root) == 0


@pytest.mark.parametrize("mounted", ["whole", "its own", "its own, renamed"])
def test_a_group_of_version_1(tmp_path: Path, mounted: str):
    """In a container its group may be the top of what is mounted, also where its name is that of the machine."""
    line = {"whole": V1, "its own": V1.replace(" / ", " /docker/abc "), "its own, renamed": V1}[mounted]
    folder = "sys/fs/cgroup/memory" + ("/docker/abc" if mounted == "whole" else "")
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n",
        "proc/self/mountinfo": line + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        f"{folder}/memory.limit_in_bytes": f"{12 * GB}\n",
        f"{folder}/memory.usage_in_bytes": f"{5 * GB}\n",
        f"{folder}/memory.stat": f"cache {GB}\ninactive_file 5\ntotal_inactive_file {GB}\ntotal_active_file {GB}\n",
    }
    if mounted == "whole":
        files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
        files["sys/fs/cgroup/memory/memory.usage_in_bytes"] = f"{20 * GB}\n"
    root = system(tmp_path, files)
    assert close(free_memory(root), 9)
    assert close(memory_limit(root), 12)


@pytest.mark.parametrize(("space", "data", "free", "most"), [
    (str(14 * GB), "unlimited", 8, 14),
    ("unlimited", str(5 * GB), 3, 5),
    (str(14 * GB), str(4 * GB), 2, 4),
    (str(GB), "unlimited", 0, 1),
])  # fmt: skip
def test_limits_of_the_process(tmp_path: Path, space: str, data: str, free: int, most: int):
    root = system(tmp_path, {"proc/self/limits": limits(space, data)})
    assert close(free_memory(root), free)
    assert close(memory_limit(root), most)


def test_a_system_that_says_nothing(tmp_path: Path):
    assert free_memory(tmp_path) == 2**31
    assert memory_limit(tmp_path) >= 2**31


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="the system does not say")
def test_this_process_under_a_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = free_memory()
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024 + 2**29, hard))
    try:
        free = free_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert 2**28 < free <= 2**29
    assert free < before


def test_packing_takes_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch):
    layers = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)).eval()
    size = layers[0].weight.nbytes  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    monkeypatch.setattr(linear, "_pays", lambda weight: True)
    for free, expected in ((4 * size, 2), (3 * size, 1), (size, 0)):
        monkeypatch.setattr(linear, "free_memory", lambda free=free: free)
        with torch.no_grad():
            assert linear.pack_for_inference(layers) == expected
        linear.unpack(layers)
