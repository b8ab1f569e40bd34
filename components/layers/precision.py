"""Half precision: autocast, asked for by kind of device (some kinds, such as meta, have none), and whether the CPU here
is made for it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def autocast_dtype(kind: str) -> torch.dtype | None:
    """What autocast makes of float32 on a kind of device now; None where it is off or there is none."""
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(kind: str) -> AbstractContextManager:
    """A context in which nothing is cast."""
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


@contextmanager
def full_float32(kind: str) -> Iterator[None]:
    """A context in which float32 is float32: nothing is cast, and no convolution or product drops digits (TF32)."""
    with without_autocast(kind):
        if kind != "cuda":
            yield
            return
        # CUDA's convolutions drop digits unless they are told not to.
        kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


@torch.compiler.assume_constant_result  # torch.compile cannot look into it
def _has_autocast(kind: str) -> bool:
    return torch.amp.autocast_mode.is_autocast_available(kind)


_SUPPORTED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether products of this dtype take many times as long as in float32 on the CPU here: oneDNN has none for it
    (bfloat16 wants AVX-512 or AMX), and torch's own go number by number."""
    if dtype not in _SUPPORTED or not torch.backends.mkldnn.is_available():
        return False
    # What torch was told to use counts too (ATEN_CPU_CAPABILITY).
    if platform.machine().lower() in ("x86_64", "amd64") and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return True
    supported = getattr(torch.ops.mkldnn, _SUPPORTED[dtype], None)
    return supported is not None and not supported()
