"""One training step without memory or arithmetic: what it would allocate, when it would free it, and its FLOPs.

A step runs on fake tensors (`torch._subclasses.fake_tensor`): forward, backward and every custom function as they are,
but no data. Each storage is entered in a ledger when an operation makes it and struck out when it dies, so that
transient tensors count as long as they live. `torch.distributed._tools.MemTracker` does the same for modules; it keeps
snapshots of every module at every operation, which on 24 layers takes minutes.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ...components.layers.alike import counted_once
from ...components.types import Batch
from ..distributed.gradients import parameter_groups
from ..task import Task

Kind = Literal["cpu", "cuda"]
_ROUND = {"cpu": 64, "cuda": 512}  # bytes: what the allocators round a tensor up to
_SMALL = 2**16  # elements: counters and masks up to here are real on the CPU, for code that looks into them
_REAL = {"arange", "zeros", "ones", "full", "scalar_tensor", "lift_fresh"}


def _cpu_attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward_flops(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


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


class _Fake(FakeTensorMode):
    """Does not look for GPUs each time that it is entered: no tensor is ever on one.

    Attributes:
        told: the device that its tensors name, where it is another than the CPU.
    """

    avoid_device_init = False  # pyright: ignore
    told: torch.device | None = None


class Ledger(TorchDispatchMode):
    """Follows the storages that operations make; a storage counts from its operation to its death."""

    def __init__(self, fake: _Fake, kind: Kind) -> None:
        super().__init__()
        self.fake, self.round = fake, _ROUND[kind]
        self.live = self.gradients = self.casts = 0
        self.most = self.most_together = 0
        self.flops = 0
        self._entries: dict[int, _Entry] = {}
        self._known: dict[int, bool] = {}  # storages from before -> whether they are parameters

    def know(self, tensors: Iterable[Tensor], parameters: bool = False) -> None:
        """Storages that are there already and are not counted."""
        self._known.update((_storage(tensor), parameters) for tensor in tensors)

    def is_gradient(self, tensor: Tensor) -> None:
        """A storage turns out to be the gradient of a parameter."""
        entry = self._entries.get(_storage(tensor))
        if entry is not None and not entry.gradient:
            entry.gradient = True
            self.live -= entry.size
            self.gradients += entry.size
            self.most_together = max(self.most_together, self.live + self.gradients)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two thirds of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        packet = func._overloadpacket
        told, self.fake.told = self.fake.told, None
        with torch._C.DisableTorchFunction():
            if packet is torch.ops.aten.index:  # how many steps a mask keeps is known
                args = (args[0], [place for x in args[1] for place in _places(x)])
            if packet is torch.ops.aten.rand and not args[0]:  # a coin for a layer: none is dropped
                func, packet = torch.ops.aten.ones.default, torch.ops.aten.ones
            if packet is torch.ops.aten._ctc_loss:  # its sizes are data
                out = _ctc_states(self.fake, *args)
            elif packet is torch.ops.aten._ctc_loss_backward:
                out = self.fake.dispatch(torch.ops.aten.empty_like.default, types, args[1:2], {})
            elif FakeTensor in types or not _stays_real(packet, args, kwargs):
                out = self.fake.dispatch(func, types, args, kwargs)  # entering the mode looks for GPUs each time
            else:
                out = func(*args, **kwargs)
            if packet in _FLOPS:
                self.flops += _FLOPS[packet](*args, **kwargs, out_val=out)
            cast = packet is torch.ops.aten._to_copy and self._known.get(_storage(args[0]), False)
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor):
                    self._enter(x, cast)
            held = self.live + _scratch(packet, args, out, self.round == _ROUND["cpu"])
            self.most = max(self.most, held)
            self.most_together = max(self.most_together, held + self.gradients)
        self.fake.told = told
        return out

    def _enter(self, x: Tensor, cast: bool) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._entries or key in self._known:
            return
        size = -(-storage.nbytes() // self.round) * self.round
        self._entries[key] = _Entry(size, cast)
        self.live += size
        if cast:
            self.casts += size
        weakref.finalize(storage, self._strike, key)

    def _strike(self, key: int) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.gradient:
            self.gradients -= entry.size
        else:
            self.live -= entry.size
        if entry.cast:
            self.casts -= entry.size


@dataclass
class _Entry:
    size: int
    cast: bool = False
    gradient: bool = False


def _scratch(packet: Any, args: Any, out: Any, cpu: bool) -> int:
    """Bytes that a kernel takes for itself while it runs. A convolution on a CPU: oneDNN wants channels in blocks, and
    copies. The gradient of CTC: as many states backwards as forwards."""
    if packet is torch.ops.aten._ctc_loss_backward:
        return args[6].nbytes
    if cpu and packet is torch.ops.aten.convolution:
        return args[0].nbytes + out.nbytes
    if cpu and packet is torch.ops.aten.convolution_backward:
        return args[0].nbytes + 2 * args[1].nbytes
    return 0


def _ctc_states(
    fake: FakeTensorMode, log_probs: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, *_: Any
) -> tuple[Tensor, Tensor]:
    """(T, B, V) log-probabilities -> (B,) losses and (B, T, 2 S + 1) states of the longest target."""
    batch, longest = log_probs.shape[1], int(torch.as_tensor(target_lengths).max())
    with fake:
        losses = torch.empty(batch, dtype=log_probs.dtype, device="cpu")
        states = torch.empty(batch, log_probs.shape[0], 2 * longest + 1, dtype=log_probs.dtype, device="cpu")
    return losses, states


def _stays_real(packet: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation without fake inputs is carried out: what indices and masks are computed from."""
    if any(isinstance(x, Tensor) for x in pytree.arg_tree_leaves(*args, **kwargs)):
        return True
    sizes = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return packet.__name__ in _REAL and math.prod(sizes) <= _SMALL


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """A real mask as the places that it keeps."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)


def _storage(x: Any) -> int:
    return x.untyped_storage()._cdata


_IS_META = torch.Tensor.is_meta.__get__  # pyright: ignore[reportAttributeAccessIssue]
_IS_CUDA = torch.Tensor.is_cuda.__get__  # pyright: ignore[reportAttributeAccessIssue]
# What autocast on a GPU takes to float32 and on a CPU leaves.
_TO_FLOAT = {F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax,
             Tensor.log_softmax, torch.cdist}  # fmt: skip


class _Pretend(TorchFunctionMode):
    """Fake tensors live on the CPU, where the autograd engine runs without a GPU; to the model they are where the plan
    is for, and without values, as the meta device is."""

    def __init__(self, fake: _Fake, kind: Kind) -> None:
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
def _as_if_there(fake: _Fake, kind: Kind) -> Iterator[None]:
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


def make_fake(task: nn.Module, dtype: torch.dtype | None = None) -> _Fake:
    """Replace the meta parameters and buffers of a task by fake ones, tied ones still tied; `dtype`: of parameters."""
    fake = _Fake(allow_non_fake_inputs=True)
    made: dict[int, Any] = {}

    def convert(old: Tensor) -> Any:
        if id(old) not in made:
            learnt = isinstance(old, nn.Parameter)
            if not old.is_floating_point():  # tables and counters, which steer what happens
                new = torch.zeros(old.shape, dtype=old.dtype, device="cpu")
            else:
                with fake:
                    new = torch.empty(old.shape, dtype=dtype if learnt and dtype else old.dtype, device="cpu")
            made[id(old)] = nn.Parameter(new, old.requires_grad) if learnt else new
            made[-id(old)] = old  # alive, so that no other tensor gets its id
        return made[id(old)]

    for module in task.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and old.is_meta:
                    table[name] = convert(old)
    return fake


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors inside a batch."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for item in fields(value) for tensor in tensors_of(getattr(value, item.name))]
    return []


def simulate(
    task: Task,
    fake: _Fake,
    batch: Batch,
    kind: Kind,
    *,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
) -> Footprint:
    """Forward and backward pass of a batch, as in the second step of a run: gradients of the first one wait until the
    backward pass begins (Lightning empties them behind the forward pass).

    Args:
        task: with fake parameters, in training mode.
        batch: fake data, real lengths.
        autocast: dtype of mixed precision.
        accumulate: gradients of an earlier batch stay while this one's are made.
    """
    ledger = Ledger(fake, kind)
    ledger.know(task.parameters(), parameters=True)
    ledger.know(task.buffers())
    ledger.know(tensors_of(batch))
    trainable = [p for p in task.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(lambda p: ledger.is_gradient(p.grad)) for p in trainable]
    found = Footprint()
    collects = gc.isenabled()
    gc.disable()  # what dies when must not depend on what ran before
    try:
        with _as_if_there(fake, kind), ledger, _Pretend(fake, kind), counted_once(ledger):
            before = [torch.empty_like(p) for p in trainable]  # gradients of the step before
            for gradient in before:
                ledger.is_gradient(gradient)
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
    ledger = Ledger(_Fake(), kind)
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
    kept = {_storage(x): x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)}
    states = sum(x.untyped_storage().nbytes() for x in kept.values())
    return OptimizerFootprint(states, 0 if fused else max(ledger.most - states, 0))
