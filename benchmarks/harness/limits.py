"""How much of what the machine can do a run reaches.

The matrix products of one run are recorded, by shape. Each of them can be no faster than that product alone, in the
faster of the two libraries that torch has for it (the plain product, and oneDNN's over a packed weight), and no faster
than its operands are read at the bandwidth of this machine: for many rows the first is the limit, for the few rows of a
decoding step the second. Both are measured here, in the same process with the same threads. The share of the limit is
the time of all products at their limits over the time of the run.

Letters: B products of one shape in a batch, N rows, I inner width, O columns.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

_LEAST_READ, _MOST_READ = 2**20, 2**29  # bytes of the buffer whose reading is timed
_BLOCK = 256  # rows of attention that are timed at once
_LEAST_SECONDS, _LEAST_RUNS, _MOST_RUNS = 0.003, 3, 50


@dataclass(frozen=True)
class Product:
    """(B, N, I) times (B, I, O)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns

    @property
    def elements(self) -> int:
        """Of both operands."""
        return self.batch * self.inner * (self.rows + self.columns)


@dataclass(frozen=True)
class Limit:
    """What a run can take at least.

    Attributes:
        flops: of the run, as torch.utils.flop_counter counts them.
        bytes: of the operands of its products.
        seconds: at the limit of each product.
        memory: the share of these seconds in which the limit is reading, not arithmetic.
        flops_per_second: of all products alone.
        bytes_per_second: of reading a buffer as large as what one step reads.
    """

    flops: int
    bytes: int
    seconds: float
    memory: float
    flops_per_second: float
    bytes_per_second: float

    def share(self, seconds: float) -> float:
        """Of the limit, for a run that took so many seconds."""
        return self.seconds / seconds

    def as_dict(self, seconds: float) -> dict[str, float]:
        return {**asdict(self), "share": self.share(seconds)}


def limit_of(run: Callable[[], Any], dtype: torch.dtype, steps: int = 1) -> Limit | None:
    """Record the products of a run and measure their limits on this machine's CPU.

    Args:
        dtype: of weights and inputs.
        steps: how many times the run goes over its weights; what is read in one step is assumed to stay in the caches
            as far as it fits.

    Returns:
        None where a run multiplies nothing.
    """
    products, flops = products_of(run)
    if not products:
        return None
    size = dtype.itemsize
    total = size * sum(product.elements * count for product, count in products.items())
    bandwidth = read_bandwidth(total // max(steps, 1))
    seconds = {product: product_seconds(product, dtype) for product in products}
    return combine(products, flops, size, bandwidth, seconds)


def combine(
    products: Counter[Product], flops: int, size: int, bandwidth: float, seconds: dict[Product, float]
) -> Limit:
    """The limit of all products together.

    Args:
        flops: of the run; those that are in no product are taken to go as fast as those that are.
        size: bytes of an element.
        bandwidth: bytes a second.
        seconds: product -> of one alone.
    """
    arithmetic = reading = 0.0
    for product, count in products.items():
        read = product.elements * size / bandwidth
        if read > seconds[product]:
            reading += count * read
        else:
            arithmetic += count * seconds[product]
    counted = sum(product.flops * count for product, count in products.items())
    alone = sum(seconds[product] * count for product, count in products.items())
    arithmetic += max(flops - counted, 0) / counted * alone
    return Limit(
        flops=flops,
        bytes=size * sum(product.elements * count for product, count in products.items()),
        seconds=arithmetic + reading,
        memory=reading / (arithmetic + reading),
        flops_per_second=counted / alone,
        bytes_per_second=bandwidth,
    )


def products_of(run: Callable[[], Any]) -> tuple[Counter[Product], int]:
    """The matrix products of a run, forward and backward; and the FLOPs of the whole run."""
    with _Recorder() as recorder:
        run()
    return recorder.products, recorder.flops


class _Recorder(TorchDispatchMode):
    """Looks at the shapes of every operation. Not FlopCounterMode itself: its hooks on modules want gradients, and
    operations of inference mode have none."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in _KINDS and packet not in flop_registry:
            with self:  # inference mode hands over what is made of other operations
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if packet in _KINDS:
            shapes = tree_map(lambda value: value.shape if isinstance(value, torch.Tensor) else value, (args, kwargs))
            out_shape = out.shape if isinstance(out, torch.Tensor) else None
            products = _KINDS[packet](*shapes[0], **shapes[1], out_shape=out_shape)
            # One input channel a group: a filter, of which no matrix product comes. Only its FLOPs are counted.
            self.products.update(product for product in products if min(product.inner, product.columns) > 1)
            self.flops += sum(product.flops for product in products)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def _packed(x: Any, _weight: Any, *_: Any, out_shape: Any, **__: Any) -> list[Product]:
    return [Product(1, math.prod(x[:-1]), x[-1], out_shape[-1])]


def _convolution(
    x: Any,
    weight: Any,
    _bias: Any,
    _s: Any,
    _p: Any,
    _d: Any,
    transposed: bool,
    _o: Any,
    groups: int,
    *,
    out_shape: Any,
) -> list[Product]:
    kernel = math.prod(weight[2:])
    if transposed:  # weight (I, O / groups, kernel): each input step gives all its outputs
        return [Product(groups, x[0] * math.prod(x[2:]), weight[0] // groups, weight[1] * kernel)]
    return [Product(groups, out_shape[0] * math.prod(out_shape[2:]), weight[1] * kernel, weight[0] // groups)]


def _convolution_backward(
    grad: Any, x: Any, weight: Any, _b: Any, s: Any, p: Any, d: Any, transposed: bool, o: Any, groups: int, mask: Any,
    **_: Any,
) -> list[Product]:  # fmt: skip
    (forward,) = _convolution(x, weight, None, s, p, d, transposed, o, groups, out_shape=grad)
    for_x = Product(forward.batch, forward.rows, forward.columns, forward.inner)
    for_weight = Product(forward.batch, forward.inner, forward.rows, forward.columns)
    return [product for product, wanted in zip((for_x, for_weight), mask) if wanted]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> list[Product]:
    (*batch, rows, width), steps = query, key[-2]
    heads = math.prod(batch)
    return [Product(heads, rows, width, steps), Product(heads, rows, steps, value[-1])]


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> list[Product]:
    (*batch, rows, width), steps = query, key[-2]
    heads = math.prod(batch)
    to_scores, to_query, to_keys = (
        Product(heads, rows, width, steps),
        Product(heads, rows, steps, width),
        Product(heads, steps, rows, width),
    )
    return [to_scores, to_scores, to_query, to_keys, to_keys]  # the scores again, as the kernel computes them


_KINDS: dict[Any, Callable[..., list[Product]]] = {
    torch.ops.aten.mm: lambda a, b, **_: [Product(1, a[0], a[1], b[1])],
    torch.ops.aten.addmm: lambda _, a, b, **__: [Product(1, a[0], a[1], b[1])],
    torch.ops.aten.bmm: lambda a, b, **_: [Product(a[0], a[1], a[2], b[2])],
    torch.ops.aten.baddbmm: lambda _, a, b, **__: [Product(a[0], a[1], a[2], b[2])],
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
if torch.backends.mkldnn.is_available():
    _KINDS[torch.ops.mkldnn._linear_pointwise] = _packed
"""Operation -> its products, from the shapes of its arguments."""


def product_seconds(product: Product, dtype: torch.dtype) -> float:
    """Seconds of one product alone, the best of a few in the faster library."""
    x = torch.full((product.batch, product.rows, product.inner), 0.5, dtype=dtype)
    # As linear layers keep them, columns first, or the product would not be the one that is run.
    weight = torch.full((product.batch, product.columns, product.inner), 0.5, dtype=dtype)
    ways: list[Callable[[], Any]] = []
    with torch.inference_mode():
        if product.batch > 1:
            ways.append(lambda: torch.bmm(x, weight.transpose(1, 2)))
            part = min(product.rows, _BLOCK)
            if part < product.rows:
                # Fused attention goes over its rows in blocks and writes no scores: one whole product is no limit.
                times = product.rows / part
                return min(_best_seconds(ways[0]), times * _best_seconds(lambda: _in_blocks(x[:, :part], weight)))
        else:
            ways.append(lambda: torch.nn.functional.linear(x[0], weight[0]))
            if torch.backends.mkldnn.is_available() and dtype in (torch.float32, torch.bfloat16):
                packed = torch.ops.mkldnn._reorder_linear_weight(weight[0])
                ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x[0], packed, None, "none", [], ""))
        return min(_best_seconds(way) for way in ways)


def _in_blocks(x: torch.Tensor, weight: torch.Tensor) -> None:
    for first in range(0, weight.shape[1], 2 * _BLOCK):
        torch.bmm(x, weight[:, first : first + 2 * _BLOCK].transpose(1, 2))


def read_bandwidth(size: int) -> float:
    """Bytes a second of reading about `size` bytes again and again: the better of a sum and a matrix-vector product."""
    rows = max(min(size, _MOST_READ), _LEAST_READ) // (4 * 1024)
    buffer, vector = torch.full((rows, 1024), 0.5), torch.full((1024,), 0.5)
    with torch.inference_mode():
        return buffer.nbytes / min(_best_seconds(buffer.sum), _best_seconds(lambda: torch.mv(buffer, vector)))


def _best_seconds(run: Callable[[], Any]) -> float:
    run()
    best, spent, runs = math.inf, 0.0, 0
    while runs < _LEAST_RUNS or (spent < _LEAST_SECONDS and runs < _MOST_RUNS):
        start = time.perf_counter()
        run()
        taken = time.perf_counter() - start
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return best
