"""How much memory a run takes: the most by which this process grew.

Bytes throughout.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def peak_growth(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes by which memory grew at most while `run` ran: the allocator's on a GPU, else resident memory."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform == "linux":
        # What is freed goes back at once, now and while it runs: neither holes in the heap nor what an earlier run left
        # there is counted.
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
        try:
            return _resident_growth(run)
        finally:
            # Back to where glibc's own adjustment ends, or to what this process was started with.
            libc.mallopt(_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", 32 * 1024 * 1024)))
    return _resident_growth(run)


def _resident_growth(run: Callable[[], Any]) -> int:
    before = resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts again
    except OSError:
        with _Sampler() as sampler:
            run()
        return max(sampler.most - before, 0)
    run()
    return max(resident("VmHWM") - before, 0)


def resident(name: str) -> int:
    """Bytes of resident memory out of /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class _Sampler(threading.Thread):
    """Reads resident memory every millisecond: where the kernel does not let the high-water mark be reset."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._done = threading.Event()

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.001):
            self.most = max(self.most, resident("VmRSS"))
