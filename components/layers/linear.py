"""Linear layers in oneDNN's own layout, for inference on a CPU.

`F.linear` in float32 goes to MKL, which reads the weight as it stands. oneDNN's kernel over a weight that was reordered
once is a few times as fast for the few rows of a decoding step, and up to twice for many rows, depending on the
processor; for a row or two the plain way may be the faster one, and is taken then. The layout costs memory: a packed
weight is a second copy, and the first stays, since it is the parameter.

Letters: N rows, I input width, O output width (the vocabulary, for an output layer).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..memory import free_memory
from .lora import LoRALinear
from .precision import autocast_dtype

# Rows of the two trials: a step of decoding, and a short utterance. The second only while it takes milliseconds.
_FEW, _MANY, _MOST_PRODUCTS = 8, 256, 2**31
# Where one row is faster the plain way, so are two and three: a product with them is one over the weight as it stands.
_FEWER = 4
# Bytes that a trial of few rows reads in turn: a step reads each weight once, and finds none of them near a core.
_FAR = 2**24
# Packed at neither number of rows slower than this, and at one of them faster than that.
_NOT_SLOWER, _FASTER = 0.95, 1.15
# oneDNN's names of activations it can do on the way out.
_FUSED = {F.relu: ("relu", ""), F.gelu: ("gelu", "none"), F.silu: ("swish", "")}
# Gradients from what went in. That of ReLU reads what came out, which a linear layer behind it keeps anyway.
_BACKWARD = {F.gelu: torch.ops.aten.gelu_backward, F.silu: torch.ops.aten.silu_backward}
_IN_PLACE = {F.relu: torch.relu_, F.gelu: torch.ops.aten.gelu_, F.silu: partial(F.silu, inplace=True)}


@dataclass(frozen=True)
class _Packed:
    """A weight in oneDNN's layout, and what tells whether it is still that of the parameter."""

    data: Tensor
    source: Tensor
    version: int
    address: int
    least: int = 1
    """Rows from which it is the faster way."""

    @classmethod
    def of(cls, weight: Tensor, least: int = 1) -> _Packed:
        return cls(_reordered(weight), weight, weight._version, weight.data_ptr(), least)

    def is_of(self, weight: Tensor) -> bool:
        return weight is self.source and weight._version == self.version and weight.data_ptr() == self.address

    def fits(self, weight: Tensor, x: Tensor) -> bool:
        return (
            self.is_of(weight)
            and x.dtype == weight.dtype
            and x.dim() > 1
            and x.numel() > 0
            and (self.least == 1 or x.numel() >= self.least * weight.shape[1])
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def __call__(self, x: Tensor, bias: Tensor | None, activation: str = "none", algorithm: str = "") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.data, bias, activation, [], algorithm)


class _Packable(nn.Module):
    """What a layer with a packed weight adds to its class. The packed weight is in no state dict and no pickle."""

    weight: Tensor
    _packed: _Packed | None = None

    def train(self, mode: bool = True):
        if mode:
            _restore(self)
        return nn.Module.train(self, mode)  # not super(): the class may have just changed

    def _apply(self, *args: Any, **kwargs: Any):
        _restore(self)  # another device or dtype
        return self._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


class PackedLinear(_Packable, nn.Linear):
    """`nn.Linear` that multiplies by its packed weight where there is nothing to differentiate."""

    def forward(self, input: Tensor) -> Tensor:
        return _product(self, input)


class PackedEmbedding(_Packable, nn.Embedding):
    """`nn.Embedding` whose matrix is an output layer too, see `project`."""


_PACKED = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}


def project(layer: nn.Linear | nn.Embedding, x: Tensor) -> Tensor:
    """(..., I) times the `weight` (O, I) of a linear layer or embedding, plus its bias -> (..., O)."""
    if isinstance(layer, LoRALinear):
        return layer(x)
    return _product(layer, x) if isinstance(layer, _Packable) else _plain(layer, x)


def activated(layer: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """`activation(layer(x))` for an elementwise activation: in one pass where the layer is packed, and without a second
    tensor where nothing needs the first."""
    if isinstance(layer, PackedLinear) and activation in _FUSED and not _hooked(layer):
        return _product(layer, x, activation)
    y = layer(x)
    if type(layer) is nn.Linear and not _hooked(layer) and not torch.is_grad_enabled():
        return _IN_PLACE.get(activation, activation)(y)
    return activation(y)


def after(activation: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(activation(x))`. For the backward pass it keeps x and computes the activation again, where the usual way
    keeps both: half the memory of a wide feed-forward layer for one cheap pass."""
    plain = type(layer) is nn.Linear and not _hooked(layer)
    if (
        not plain
        or activation not in _BACKWARD
        or not (torch.is_grad_enabled() and x.requires_grad)
        or autocast_dtype(x.device.type) is not None
    ):
        return layer(activation(x))
    assert isinstance(layer, nn.Linear)
    return _After.apply(x, layer.weight, layer.bias, activation)


def _hooked(layer: nn.Module) -> bool:
    """Whether someone listens to the calls of a layer: then it is called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class _After(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.activation = activation
        return F.linear(activation(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        by_weight = grad.t() @ ctx.activation(x).reshape(-1, x.shape[-1]) if for_weight else None
        by_x = _BACKWARD[ctx.activation]((grad @ weight).view_as(x), x) if for_x else None
        return by_x, by_weight, grad.sum(0) if for_bias else None, None


def _plain(layer: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, getattr(layer, "bias", None))  # pyright: ignore[reportArgumentType]


def _product(layer: _Packable, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    packed = layer._packed
    if packed is None or not packed.fits(layer.weight, x):
        y = _plain(layer, x)
        return y if activation is None else activation(y)
    bias: Any = getattr(layer, "bias", None)
    return packed(x, bias) if activation is None else packed(x, bias, *_FUSED[activation])


def pack_for_inference(module: nn.Module, memory: int | None = None) -> int:
    """Give the linear and tied output layers of a module a packed weight wherever that is faster on this machine.

    Each distinct shape is timed once on the way in, with the threads that torch has now. Only layers on the CPU, in
    evaluation mode. Results stay the same to rounding. `train()`, `to()` and a changed weight take a layer back to the
    plain way; `unpack` does so for all. Writing through `weight.data` goes unnoticed: unpack first.

    Args:
        module: a part, a task or any module. An embedding that a module also uses as output layer is found by that
            module's `tied_output`.
        memory: bytes that may be spent on packed weights; None: half of what this process may still take
            (`memory.free_memory`).

    Returns:
        The number of packed layers; 0 where it does not pay or torch cannot do it.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    for layer in module.modules():  # what was packed before may stand for weights that are gone
        if isinstance(layer, _Packable) and (layer._packed is None or not layer._packed.is_of(layer.weight)):
            _restore(layer)
    left = free_memory() // 2 if memory is None else memory
    faster: dict[Any, int | None] = {}
    count = 0
    # The largest gain more: of output layers a step of decoding reads every row.
    for layer in sorted(_layers(module), key=lambda layer: -layer.weight.numel()):  # pyright: ignore[reportCallIssue]
        weight: Any = layer.weight
        size = weight.numel() * weight.element_size()
        if size > left:
            continue
        kind = (*weight.shape, weight.dtype)
        if kind not in faster:
            faster[kind] = _pays(weight)
        least = faster[kind]
        if not least:
            continue
        layer.__class__ = _PACKED[type(layer)]  # pyright: ignore[reportAttributeAccessIssue]
        layer.__dict__["_packed"] = _Packed.of(weight, least)
        left -= size
        count += 1
    return count


def unpack(module: nn.Module) -> int:
    """Take all packed weights away again; returns their number."""
    found = [layer for layer in module.modules() if isinstance(layer, _Packable)]
    for layer in found:
        _restore(layer)
    return len(found)


def _restore(layer: nn.Module) -> None:
    layer.__dict__.pop("_packed", None)
    plain = nn.Linear if isinstance(layer, nn.Linear) else nn.Embedding
    layer.__class__ = plain  # pyright: ignore[reportAttributeAccessIssue]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Layers that may be packed, each once."""
    seen: set[int] = set()
    for part in module.modules():
        for layer in (part, getattr(part, "tied_output", None)):
            if type(layer) not in _PACKED or (isinstance(layer, nn.Embedding) and layer is part):
                continue
            assert isinstance(layer, nn.Module)
            weight: Any = layer.weight
            if id(layer) in seen or layer.training or weight.device.type != "cpu" or weight.is_inference():
                continue
            if weight.dtype in (torch.float32, torch.bfloat16) and weight.numel() > 0:
                seen.add(id(layer))
                yield layer


def _reordered(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def _pays(weight: Tensor) -> int | None:
    """The fewest rows from which a product with a packed weight of this kind is faster here; None: of no number. The
    operators are not of torch's public interface: one that lacks them, or gives something else, packs nothing."""
    with torch.no_grad():
        try:
            size = weight.numel() * weight.element_size()
            turns = [weight, *(weight.clone() for _ in range(min(_FAR // size, 32)))]
            packed = [_Packed.of(one) for one in turns]
            few = _gain(turns, packed, _FEW)
            many = few if weight.numel() * _MANY > _MOST_PRODUCTS else _gain(turns[:1], packed[:1], _MANY)
            if min(few, many) < _NOT_SLOWER or max(few, many) < _FASTER:
                return None
            return 1 if _gain(turns, packed, 1) >= 1 else _FEWER
        except (RuntimeError, AttributeError, NotImplementedError):
            return None


def _gain(weights: Sequence[Tensor], packed: Sequence[_Packed], rows: int) -> float:
    """By how much products of so many rows are faster packed, one weight after the other; 0 where they give something
    else."""
    weight = weights[0]
    x = torch.linspace(-1, 1, rows * weight.shape[1]).view(rows, -1).to(weight.dtype)
    plain, ours = F.linear(x, weight), packed[0](x, None)
    scale = plain.abs().max().float().item() + 1e-12
    limit = 1e-4 if weight.dtype == torch.float32 else 5e-2
    if not (plain - ours).abs().max().float().item() <= limit * scale:
        return 0.0
    return _seconds(lambda: [F.linear(x, one) for one in weights]) / _seconds(lambda: [one(x, None) for one in packed])


def _seconds(run: Callable[[], Any]) -> float:
    """The best of a few runs that together take some milliseconds."""
    best, spent, count = float("inf"), 0.0, 0
    while count < 3 or (spent < 0.003 and count < 50):
        start = time.perf_counter()
        run()
        taken = time.perf_counter() - start
        best, spent, count = min(best, taken), spent + taken, count + 1
    return best
