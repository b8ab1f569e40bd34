"""Devices by name, and the kernels that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...components.errors import UserError


def choose_kernels() -> None:
    """Leave attention on GPUs to the flash and memory-efficient kernels. cuDNN's, which PyTorch prefers on the newest
    ones in half precision, makes a plan for each shape it meets, and batches of speech nearly always have a new one."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: there is none here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def device_of_trainer(trainer: Mapping[str, Any]) -> torch.device:
    """Where the trainer's settings put a task of one process; GPUs are listed in `devices` by their numbers."""
    if trainer.get("accelerator", "auto") == "cpu":
        return torch.device("cpu")
    device, listed = pick_device("auto"), trainer.get("devices")
    return torch.device(device.type, int(listed[0])) if device.type != "cpu" and isinstance(listed, list) else device
