"""Autocast, asked for by kind of device: some kinds (meta) have none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(kind: str) -> torch.dtype | None:
    """What autocast makes of float32 on a kind of device now; None where it is off or there is none."""
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(kind: str) -> AbstractContextManager:
    """A context in which nothing is cast."""
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


@torch.compiler.assume_constant_result  # torch.compile cannot look into it
def _has_autocast(kind: str) -> bool:
    return torch.amp.autocast_mode.is_autocast_available(kind)
