"""One training step without memory or arithmetic: what it would allocate, when it would free it, and its FLOPs.

A step runs on fake tensors (`torch._subclasses.fake_tensor`): forward, backward and every custom function as they are,
but no data. Each storage is entered in a ledger when an operation makes it and struck out when it dies, so that
transient tensors count as long as they live. `torch.distributed._tools.MemTracker` does the same for modules; it keeps
snapshots of every module at every operation, which on 24 layers takes minutes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from ...components.layers.alike import counted_once
from ...components.types import Batch
from ..distributed.gradients import parameter_groups
from ..task import Task
from .ledger import Fake, Kind, Ledger, storage_of
from .repeats import Repeats, Unlike


@dataclass
class Footprint:
    """What a step takes on one device, in bytes, beside parameters, gradients and optimizer states.

    Attributes:
        activations: most bytes at once of what forward and backward pass make, gradients of parameters left out as soon
            as they are there.
        peak: most bytes at once of these and the gradients together.
        forward: bytes that wait for the backward pass.
        casts: of these, copies of parameters in lower precision.
        flops: of forward and backward pass.
    """

    activations: int = 0
    peak: int = 0
    forward: int = 0
    casts: int = 0
    flops: int = 0


_IS_META = torch.Tensor.is_meta.__get__  # pyright: ignore[reportAttributeAccessIssue]
_IS_CUDA = torch.Tensor.is_cuda.__get__  # pyright: ignore[reportAttributeAccessIssue]
# What autocast on a GPU takes to float32 and on a CPU leaves.
_TO_FLOAT = {F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax,
             Tensor.log_softmax, torch.cdist}  # fmt: skip


class _Pretend(TorchFunctionMode):
    """Fake tensors live on the CPU, where the autograd engine runs without a GPU; to the model they are where the plan
    is for, and without values, as the meta device is."""

    def __init__(self, fake: Fake, kind: Kind) -> None:
        super().__init__()
        self.fake, self.kind = fake, kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _IS_META:
            return isinstance(args[0], FakeTensor)
        if self.kind == "cpu":
            return func(*args, **kwargs)
        if func == _IS_CUDA:
            return isinstance(args[0], FakeTensor)
        # A model that leaves autocast for a while names the device it sees.
        cast = torch.is_autocast_enabled("cuda")
        if cast != torch.is_autocast_enabled("cpu"):
            torch.set_autocast_enabled("cpu", cast)
        if func is F.scaled_dot_product_attention:
            return _attention(cast, *args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if cast and func in _TO_FLOAT and args[0].dtype == torch.bfloat16:
            args = (args[0].float(), *args[1:])
        there = [_is_gpu(x) for x in args]
        if any(there) or _is_gpu(kwargs.get("device")):
            args = tuple("cpu" if is_gpu else x for x, is_gpu in zip(args, there, strict=True))
            if _is_gpu(kwargs.get("device")):
                kwargs = {**kwargs, "device": "cpu"}
            return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_gpu(x: Any) -> bool:
    return (isinstance(x, torch.device) and x.type == "cuda") or (isinstance(x, str) and x.startswith("cuda"))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As on a GPU: the kernel that keeps one byte per entry."""
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _attention(
    cast: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """The kernel that a GPU takes: flash without a mask in half precision, else the memory-efficient one, whose bias is
    padded to whole vectors."""
    if cast:
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    if attn_mask is None and query.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.to(query.dtype)
        beyond = -attn_mask.shape[-1] % 8
        if beyond:
            attn_mask = F.pad(attn_mask, (0, beyond))[..., : key.shape[2]]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keep, dropout_p, is_causal
    )[0]


@contextmanager
def _autocast(kind: Kind, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast of a device that may not be here."""
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        if dtype is None or kind == "cpu":
            yield
            return
        with torch.autocast("cpu", dtype=dtype):
            yield


_device: Any = FakeTensor.device.fget  # pyright: ignore[reportAttributeAccessIssue]


def _told_device(tensor: FakeTensor) -> torch.device:
    told = getattr(tensor.fake_mode, "told", None)
    return told if told is not None and not tensor.fake_mode.in_kernel_invocation else _device(tensor)


@contextmanager
def _as_if_there(fake: Fake, kind: Kind) -> Iterator[None]:
    """To the model, tensors are on the device that is planned for. Autocast asks whether there is a GPU, also that of
    recomputed layers."""
    if kind == "cpu":
        yield
        return
    fake.told = torch.device(kind, 0)
    try:
        with _as_if_on_gpu():
            yield
    finally:
        fake.told = None


@contextmanager
def _as_if_on_gpu() -> Iterator[None]:
    with (
        patch.object(FakeTensor, "device", property(_told_device)),
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
    ):
        yield


def make_fake(task: nn.Module, dtype: torch.dtype | None = None) -> Fake:
    """Replace the meta parameters and buffers of a task by fake ones, tied ones still tied; `dtype`: of parameters."""
    fake = Fake(allow_non_fake_inputs=True)
    made: dict[int, Any] = {}

    def convert(old: Tensor) -> Any:
        if id(old) not in made:
            learnt = isinstance(old, nn.Parameter)
            if not old.is_floating_point():  # tables and counters, which steer what happens
                new: Any = torch.zeros(old.shape, dtype=old.dtype, device="cpu")
            else:
                new = _empty(fake, old.shape, dtype if learnt and dtype else old.dtype)
            if learnt:  # as `nn.Parameter` does with tensors of another class
                new.requires_grad_(old.requires_grad)._is_param = True
            made[id(old)] = new
            made[-id(old)] = old  # alive, so that no other tensor gets its id
        return made[id(old)]

    for module in task.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and old.is_meta:
                    table[name] = convert(old)
    return fake


def _empty(fake: Fake, shape: torch.Size, dtype: torch.dtype) -> FakeTensor:
    """A fake tensor, not by an operation: that takes half a millisecond, and a large model has thousands of them."""
    return FakeTensor(fake, torch.empty(shape, dtype=dtype, device="meta"), torch.device("cpu"))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors inside a batch."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for item in fields(value) for tensor in tensors_of(getattr(value, item.name))]
    return []


def simulate(
    task: Task,
    fake: Fake,
    batch: Batch,
    kind: Kind,
    *,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
    whole: bool = False,
) -> Footprint:
    """Forward and backward pass of a batch, as in the second step of a run: gradients of the first one wait until the
    backward pass begins (Lightning empties them behind the forward pass).

    Args:
        task: with fake parameters, in training mode.
        batch: fake data, real lengths.
        autocast: dtype of mixed precision.
        accumulate: gradients of an earlier batch stay while this one's are made.
        whole: run every layer, also those that are like others (`repeats`); what comes out is the same.
    """
    try:
        return _simulate(task, fake, batch, kind, autocast, accumulate, whole)
    except Unlike:
        return _simulate(task, fake, batch, kind, autocast, accumulate, whole=True)


def _simulate(
    task: Task, fake: Fake, batch: Batch, kind: Kind, autocast: torch.dtype | None, accumulate: bool, whole: bool
) -> Footprint:
    ledger = Ledger(fake, kind)
    stacks = None if whole else Repeats(ledger, task)
    ledger.know(task.parameters(), parameters=True)
    ledger.know(task.buffers())
    ledger.know(tensors_of(batch))
    trainable = [p for p in task.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(lambda p: ledger.is_gradient(p.grad)) for p in trainable]
    found = Footprint()
    collects = gc.isenabled()
    gc.disable()  # what dies when must not depend on what ran before
    try:
        before = [_empty(fake, p.shape, p.dtype) for p in trainable]  # gradients of the step before
        ledger.enter_gradients(before)
        with _as_if_there(fake, kind), ledger, _Pretend(fake, kind), counted_once(ledger, stacks):
            if accumulate:
                for p, gradient in zip(trainable, before, strict=True):
                    p.grad = gradient
            with _autocast(kind, autocast):
                losses, _ = task.measure(batch)
                total = task.weighted(losses)
            del losses
            found.forward, found.casts = ledger.live, ledger.casts
            before.clear()
            # `total.backward()` is a function that the mode sees, and would run outside of it.
            start = torch.ones_like(total)
            _engine_run_backward((total,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)
            del total
        found.activations, found.peak, found.flops = ledger.most, ledger.most_together, ledger.flops
    finally:
        if collects:
            gc.enable()
        for handle in handles:
            handle.remove()
        for p in trainable:
            p.grad = None
    return found


@dataclass
class OptimizerFootprint:
    """What an optimizer takes, in bytes.

    Attributes:
        states: what it keeps.
        step: most bytes at once, beyond that, while it steps.
    """

    states: int = 0
    step: int = 0


def simulate_optimizer(
    make_optimizer: Callable[..., torch.optim.Optimizer], task: nn.Module, kind: Kind
) -> OptimizerFootprint:
    """The first step of an optimizer over the trainable parameters of a task, on the meta device."""
    settings = dict(getattr(make_optimizer, "keywords", {}))
    fused = bool(settings.pop("fused", False))  # one kernel, for a real device alone
    if isinstance(make_optimizer, partial):
        make_optimizer = partial(make_optimizer.func, *make_optimizer.args, **settings)
    groups = parameter_groups(task)
    ledger = Ledger(Fake(), kind)
    twins = [[nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta")) for p in g["params"]] for g in groups]
    for group, parameters in zip(groups, twins, strict=True):
        group["params"] = parameters
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            ledger.know([parameter, parameter.grad])
    optimizer = make_optimizer(groups)
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None:
            group["foreach"] = kind == "cuda" and not fused
    with ledger:
        optimizer.step()
    kept = {storage_of(x): x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)}
    states = sum(x.untyped_storage().nbytes() for x in kept.values())
    return OptimizerFootprint(states, 0 if fused else max(ledger.most - states, 0))
