"""How a run keeps its numbers: what `trainer.precision` means where Lightning's own way would lose some."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR_ALIAS_CONVERSION
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ...components.errors import UserError
from ...components.layers.precision import is_slow_on_cpu
from ...components.types import Batch


class BFloat16(HalfPrecision):
    """Weights, gradients and optimizer states in bfloat16 (`trainer.precision=bf16-true`).

    Parts are built and initialised in float32 and then cast, so a run begins with the rounded weights of one in
    float32. Of a batch only what the first part reads is cast. Lightning's plugin would also make bfloat16 the dtype of
    every tensor that a step creates, and cast buffers: a count of 257 tokens would be 256, running statistics would
    stop to move, and centroids would have three digits.
    """

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        return cast_parameters(module, self._desired_input_dtype)

    def tensor_init_context(self) -> AbstractContextManager:
        return nullcontext()

    def forward_context(self) -> Any:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        if not isinstance(data, Batch) or data.speech is None:
            return data
        return replace(data, speech=data.speech.to(self._desired_input_dtype))


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the parameters, in place; buffers (statistics, filters, windows, centroids) are float32 or stay it."""
    buffers = [(inner, dict(inner._buffers)) for inner in module.modules()]
    for inner, _ in buffers:
        inner._buffers.clear()
    module.to(dtype=dtype)
    for inner, kept in buffers:
        inner._buffers.update({name: _at_least_float32(value) for name, value in kept.items()})
    return module


def _at_least_float32(value: torch.Tensor | None) -> torch.Tensor | None:
    return value.float() if value is not None and value.dtype in (torch.bfloat16, torch.float16) else value


WHOLE = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Names of precisions in which all parameters are kept in one dtype."""


def precision_name(name: Any) -> str:
    """`trainer.precision` by its full name: Lightning takes short ones, and numbers."""
    return _PRECISION_INPUT_STR_ALIAS_CONVERSION.get(str(name), str(name or "32-true"))


def precision_settings(name: Any) -> dict[str, Any]:
    """Arguments of the Trainer that stand for `trainer.precision`.

    Raises:
        UserError: a precision that gradients of summed losses overflow.
    """
    name = precision_name(name)
    if name == "16-true":
        raise UserError(
            "trainer.precision=16-true: float16 ends at 65504, which gradients of a whole batch pass; "
            "expected bf16-true, bf16-mixed, 16-mixed (scaled) or 32-true"
        )
    if name == "bf16-true":
        return {"precision": None, "plugins": [BFloat16()]}
    if name == "16-mixed" and torch.cuda.is_available():
        return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cuda", gradient_scaler(GradScaler))]}
    return {"plugins": []}


def faults_of_precision(config: DictConfig) -> list[tuple[str, str]]:
    """(key, message) of a precision that cannot be trained in."""
    try:
        precision_settings(OmegaConf.select(config, "trainer.precision"))
    except UserError as error:
        return [("trainer.precision", str(error).removeprefix("trainer.precision="))]
    return []


def gradient_scaler(kind: Callable[..., Any]) -> Any:
    """A scaler of float16 gradients for losses that are sums over a batch: these are as large as means that were scaled
    by the number of tokens already. It grows from there, where others fall from 65536."""
    return kind(init_scale=1.0)


def slow_line(precision: Any, kind: str, key: str) -> str | None:
    """What to say of a precision that is many times slower than float32 on the CPU here; None where it is not.

    Args:
        precision: a name as `trainer.precision` takes it, or a dtype.
        kind: of the device: `cpu`, `cuda`.
        key: what sets it, up to the name: `trainer.precision=`, `--precision `.
    """
    names = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, **WHOLE}
    dtype = precision if isinstance(precision, torch.dtype) else names.get(precision_name(precision))
    if kind != "cpu" or dtype is None or not is_slow_on_cpu(dtype):
        return None
    name = str(dtype).removeprefix("torch.")
    wanted = "AVX-512 or AMX" if dtype == torch.bfloat16 else "AVX-512 FP16 or AMX"
    return (
        f"{name} is slow on this CPU, which lacks {wanted}: measured, 2 to 16 times the time of float32; "
        f"set {key}32-true"
    )
