"""Devices, strategy and precision of a config, and the memory that is there."""

from __future__ import annotations

import os
import resource
from copy import copy
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...components.memory import memory_limit
from ...configs.bounds import count_devices, device_problem
from ..distributed.precision import precision_name
from .figures import GB
from .ledger import Kind

_CONTEXT = {1: 0.6, 2: 1.0}  # GB that CUDA (and NCCL, on several devices) keeps on each GPU


class Setting:
    """Devices, strategy and precision of a config."""

    def __init__(self, config: DictConfig) -> None:
        trainer = config.trainer
        gpu = str(trainer.get("accelerator", "auto")) in ("gpu", "cuda") or (
            str(trainer.get("accelerator", "auto")) == "auto" and torch.cuda.is_available()
        )
        self.kind: Kind = "cuda" if gpu else "cpu"
        devices = trainer.get("devices", 1)
        if problem := device_problem(devices, "gpu" if gpu else "cpu"):
            raise UserError(f"trainer.devices: {problem}")
        self.devices = count_devices(devices, torch.cuda.device_count() if gpu else 1) * int(
            trainer.get("num_nodes") or 1
        )
        self.strategy = _strategy(trainer.get("strategy", "auto"), self.devices)
        self.options = trainer.get("strategy") if OmegaConf.is_config(trainer.get("strategy")) else {}
        self.precision = precision_name(trainer.get("precision"))
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        whole = {
            "bf16-true": torch.bfloat16,
            "16-true": torch.float16,
            "64-true": torch.float64,
        }
        self.autocast = mixed.get(self.precision)
        self.dtype = whole.get(self.precision)
        self.accumulate = int(trainer.get("accumulate_grad_batches") or 1)

    @property
    def sharded(self) -> bool:
        return self.strategy in ("fsdp", "fsdp2")

    def over(self, strategy: str, devices: int) -> Setting:
        """The same on other devices."""
        other = copy(self)
        other.strategy, other.devices, other.options = strategy, devices, {}
        return other


def _strategy(node: Any, devices: int) -> str:
    name = str(node.get("_target_", "")).rpartition(".")[2] if OmegaConf.is_config(node) else str(node)
    low = name.lower()
    if low.startswith(("fsdp2", "modelparallel")):
        return "fsdp2"
    if low.startswith("fsdp"):
        return "fsdp"
    return "ddp" if low.startswith("ddp") or devices > 1 else "one device"


def base_memory(setting: Setting) -> dict[str, int]:
    """What a process takes before it has a model."""
    if setting.kind == "cuda":
        return {"CUDA context": int(_CONTEXT[min(setting.devices, 2)] * GB)}
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def memory_here(kind: Kind) -> int | None:
    """Bytes of the GPU that is here, or that this process may have on this machine."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return memory_limit()


def pieces(setting: Setting) -> int:
    """Over how many devices the weights are cut."""
    return setting.devices if setting.sharded else 1
