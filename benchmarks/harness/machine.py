"""The machine that a number belongs to: its processor, the instructions in use, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ISAS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # packed linear layers, convolutions; also the oneDNN inside CTranslate2
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # plain matrix products
        "CT2_FORCE_CPU_ISA": "AVX2",  # CTranslate2's own kernels
    }
}
"""Instructions -> the environment in which a processor that has more uses no more: another kind of machine on this one.
Read when a library is loaded, and so only good for a new process."""

_SET = "VOXZOO_BENCHMARKS_ISA"
_PACKAGES = ("torch", "transformers", "ctranslate2", "voxzoo")


def elsewhere(isa: str, module: str, words: Sequence[str]) -> int:
    """Run `python -m MODULE WORDS...` with the processor kept to `isa`; its exit status."""
    environment = {**os.environ, **ISAS[isa], _SET: isa}
    return subprocess.run([sys.executable, "-m", module, *words], env=environment).returncode


def without_isa(words: Sequence[str]) -> list[str]:
    """A command line without `--isa X`, for the process that has it already."""
    left, words = [], iter(words)
    for word in words:
        if word == "--isa":
            next(words, None)
        elif not word.startswith("--isa="):
            left.append(word)
    return left


def versions() -> dict[str, str | None]:
    """Package -> version; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """The name of the CPU, as the system gives it; family and model where it has no number, as on virtual machines."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    found: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    name = found.get("model name", "")
    if name and not re.search(r"\d", name) and "cpu family" in found:
        name += f" (family {found['cpu family']}, model {found.get('model', '?')})"
    return name or platform.processor()


def machine(threads: int, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """What makes two runs comparable: runs with the same value of this are of one kind.

    `isa` is what the processor was kept to (`--isa`), None where it was left alone; `capability` what torch then uses.
    """
    import torch

    return {
        "cpu": processor(),
        "isa": os.environ.get(_SET),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "dtype": dtype,
    }


def commit() -> str | None:
    """The commit of the checkout, with `+` where files differ from it; None outside a repository."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=10", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
