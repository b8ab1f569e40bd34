"""What a simulated step holds: each storage from the operation that makes it to its death, and FLOPs.

Letters: B batch, T frames, S subwords, V vocabulary.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

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


class Fake(FakeTensorMode):
    """Does not look for GPUs each time that it is entered: no tensor is ever on one.

    Attributes:
        told: the device that its tensors name, where it is another than the CPU.
    """

    avoid_device_init = False  # pyright: ignore
    told: torch.device | None = None


@dataclass(frozen=True)
class Span:
    """What happened between two moments: by how much totals changed, and how far beyond those at its start they rose:
    activations alone (`most`), and together with gradients."""

    live: int
    gradients: int
    casts: int
    flops: int
    most: int
    most_together: int


class Repeat:
    """Layers that are left out since they are alike, as storages see it.

    Attributes:
        copies: how many storages one of these stands for, itself included.
        passed: whether the backward pass is within their stack. What dies there dies once: the layers that are left out
            follow (`Ledger.repeat`). What dies elsewhere dies in all of them.
        died: bytes that died within.
    """

    def __init__(self, copies: int) -> None:
        self.copies, self.passed, self.died = copies, False, 0


class Ledger(TorchDispatchMode):
    """Follows the storages that operations make; a storage counts from its operation to its death."""

    def __init__(self, fake: Fake, kind: Kind) -> None:
        super().__init__()
        self.fake, self.round = fake, _ROUND[kind]
        self.live = self.gradients = self.casts = 0
        self.most = self.most_together = 0
        self.flops = 0
        self._entries: dict[int, _Entry] = {}
        self._known: dict[int, bool] = {}  # storages from before -> whether they are parameters
        self._open: dict[_Start, None] = {}
        self._made = 0  # entries so far

    def know(self, tensors: Iterable[Tensor], parameters: bool = False) -> None:
        """Storages that are there already and are not counted."""
        self._known.update((storage_of(tensor), parameters) for tensor in tensors)

    def is_gradient(self, tensor: Tensor) -> None:
        """A storage turns out to be the gradient of a parameter."""
        entry = self._entries.get(storage_of(tensor))
        if entry is not None and not entry.gradient:
            entry.gradient = True
            self.live -= entry.size
            self.gradients += entry.size
            self._reach(self.live)

    def enter_gradients(self, tensors: Iterable[Tensor]) -> None:
        """Gradients of parameters that no operation made."""
        for tensor in tensors:
            self._enter(tensor, cast=False)
            self._reach(self.live)
            self.is_gradient(tensor)

    # Layers that are alike

    def begin(self) -> _Start:
        """A moment, for `end`."""
        start = _Start(self.live, self.gradients, self.casts, self.flops, self._made, self.live)
        start.most_together = self.live + self.gradients
        self._open[start] = None
        return start

    def end(self, start: _Start) -> Span:
        """What happened since."""
        del self._open[start]
        return Span(
            self.live - start.live,
            self.gradients - start.gradients,
            self.casts - start.casts,
            self.flops - start.flops,
            start.most - start.live,
            start.most_together - start.live - start.gradients,
        )

    def repeat(self, span: Span, times: int) -> None:
        """Let a span happen again so often."""
        last = times - 1
        for first in (0, last):  # totals move evenly: one of the ends is the fullest
            live, gradients = self.live + first * span.live, self.gradients + first * span.gradients
            self._reach(live + span.most, live + gradients + span.most_together)
        self.live += times * span.live
        self.gradients += times * span.gradients
        self.casts += times * span.casts
        self.flops += times * span.flops

    def kept(self, since: _Start, until: _Start) -> list[_Entry]:
        """Entries made between two moments that are still there."""
        return [entry for entry in self._entries.values() if since.made <= entry.number < until.made]

    def _reach(self, held: int, together: int | None = None) -> None:
        together = held + self.gradients if together is None else together
        for one in (self, *self._open):
            one.most = max(one.most, held)
            one.most_together = max(one.most_together, together)

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
            cast = packet is torch.ops.aten._to_copy and self._known.get(storage_of(args[0]), False)
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor):
                    self._enter(x, cast)
            self._reach(self.live + _scratch(packet, args, out, self.round == _ROUND["cpu"]))
        self.fake.told = told
        return out

    def _enter(self, x: Tensor, cast: bool) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._entries or key in self._known:
            return
        size = -(-storage.nbytes() // self.round) * self.round
        self._entries[key] = _Entry(size, self._made, cast)
        self._made += 1
        self.live += size
        if cast:
            self.casts += size
        weakref.finalize(storage, self._strike, key)

    def _strike(self, key: int) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        size, repeat = entry.size, entry.repeat
        if repeat is not None and repeat.passed:
            repeat.died += size
        elif repeat is not None:
            size *= repeat.copies
        if entry.gradient:
            self.gradients -= size
        else:
            self.live -= size
        if entry.cast:
            self.casts -= size


@dataclass(eq=False)
class _Start:
    """Totals at a moment, and the most since."""

    live: int
    gradients: int
    casts: int
    flops: int
    made: int
    most: int
    most_together: int = 0


@dataclass
class _Entry:
    size: int
    number: int  # in the order of their making
    cast: bool = False
    gradient: bool = False
    repeat: Repeat | None = None


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


def storage_of(x: Any) -> int:
    return x.untyped_storage()._cdata
