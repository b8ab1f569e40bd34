"""Low-rank adaptation: linear layers that learn W + scale x B A while W stands still (LoRA, Hu et al. 2021, arXiv
2106.09685, section 4.1).

Names in checkpoints stay: an adapted layer keeps its `weight` and has `lora_a` and `lora_b` beside it, so that weights
without LoRA fit in, and what is merged fits anywhere.

Letters: I input width, O output width, r rank, n adapted blocks of rows.
"""

from __future__ import annotations

import difflib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, few
from .dropout import dropout

_NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """How the linear layers of a part are adapted.

    Args:
        targets: name -> pattern, with `*`, `?` and `[...]` as in file names (`*` also matches dots), over the names of
            the part's linear layers, such as `layers.*.attention.q`. The rows of query, key and value in a fused
            projection `qkv` or `kv` go by `q`, `k` and `v` beside it, each with matrices of its own; `qkv` is all
            three. A null pattern is left out.
        rank: r.
        alpha: what B A is scaled by is alpha / r.
        dropout: on the input of A, while training. The layer's own product sees the whole input. An output layer whose
            matrix the loss multiplies by has none.
        rank_stabilized: alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732, section 3).
        freeze_base: no gradient for anything else in the part.
    """

    targets: Mapping[str, str | None]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilized: bool = False
    freeze_base: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1; got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0; got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


class LoRALinear(nn.Linear):
    """`nn.Linear` with a low-rank term: x W^T + b + scale x (x A^T) B^T. Made by `adapt`, never built.

    Attributes:
        lora_a: (n x r, I), A of each adapted block one below the other.
        lora_b: (n x O / blocks, r), B of each.
        scale: what B A is multiplied by.
        lora_dropout: on the input of A, while training.
        blocks: into how many equal blocks the O rows fall.
        adapted: which of them are adapted, in order.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float
    lora_dropout: float
    blocks: int
    adapted: tuple[int, ...]

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O); a given `bias` (O,) takes the place of the layer's own."""
        y = F.linear(input, self.weight, self.bias if bias is None else bias)
        low = F.linear(dropout(input, self.lora_dropout, self.training), self.lora_a)
        return y.add_(F.linear(low, _spread(self.lora_b, self.adapted, self.blocks)), alpha=self.scale)

    def merged(self) -> Tensor:
        """(O, I): W + scale x B A, with gradients."""
        return _merged(self.weight, self.lora_a, self.lora_b, self.adapted, self.blocks, self.scale)

    def extra_repr(self) -> str:
        part = "" if self.blocks == 1 else f", blocks={self.adapted} of {self.blocks}"
        return f"{super().extra_repr()}, rank={self.lora_b.shape[1]}, scale={self.scale:g}{part}"


def matrix_of(layer: nn.Linear | nn.Embedding) -> Tensor:
    """(O, I) what a layer multiplies by, for those that read the matrix instead of calling the layer."""
    return layer.merged() if isinstance(layer, LoRALinear) else layer.weight


def _spread(b: Tensor, adapted: tuple[int, ...], blocks: int) -> Tensor:
    """(n x O / blocks, r) -> (O, n x r): B of each adapted block in its own rows and columns, zero elsewhere."""
    if blocks == 1:
        return b
    count = len(adapted)
    parts = b.unflatten(0, (count, -1))
    whole = parts.new_zeros(blocks, parts.shape[1], count, parts.shape[2])
    for place, block in enumerate(adapted):
        whole[block, :, place] = parts[place]
    return whole.flatten(2).flatten(0, 1)


def _merged(weight: Tensor, a: Tensor, b: Tensor, adapted: tuple[int, ...], blocks: int, scale: float) -> Tensor:
    # In float32: half precision would round the small product before it meets the large weight.
    product = _spread(b, adapted, blocks).float() @ a.float()
    return torch.add(weight.float(), product, alpha=scale).to(weight.dtype)


# Which layers


@dataclass(frozen=True)
class _Place:
    """A linear layer by its full name, and which of its equal blocks of rows are meant."""

    layer: str
    chosen: tuple[int, ...]
    blocks: int


def _places(part: nn.Module) -> dict[str, _Place]:
    """What a pattern can name: every linear layer, and the blocks of fused projections (`fused` of their module)."""
    found: dict[str, _Place] = {}
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear) and name not in found:
            found[name] = _Place(name, (0,), 1)
        prefix = f"{name}." if name else ""
        for projection, blocks in getattr(module, "fused", {}).items():
            child = getattr(module, projection, None)
            if child is None:
                continue
            # A projection is a linear layer or has one inside (`KeylessBias`).
            inside = next(inner for inner, layer in child.named_modules() if isinstance(layer, nn.Linear))
            layer = f"{prefix}{projection}" + (f".{inside}" if inside else "")
            whole = _Place(layer, tuple(range(len(blocks))), len(blocks))
            found[f"{prefix}{projection}"] = found[layer] = whole
            for number, block in enumerate(blocks):
                found[f"{prefix}{block}"] = _Place(layer, (number,), len(blocks))
    return found


def block_names(part: nn.Module) -> dict[tuple[str, int], str]:
    """(linear layer, block of its rows) -> the name that a pattern has to match to mean that alone."""
    found = {}
    for name, place in _places(part).items():
        if len(place.chosen) == 1:
            found[place.layer, place.chosen[0]] = name
    return found


def find_layers(part: nn.Module, targets: Mapping[str, str | None], where: str = "lora") -> dict[str, _Place]:
    """Name of each linear layer that the patterns name -> the blocks of it.

    Args:
        where: begins the messages: the config key of the settings.

    Raises:
        UserError: no pattern, or one that names no linear layer.
    """
    places = _places(part)
    chosen: dict[str, set[int]] = {}
    blocks: dict[str, int] = {}
    patterns = {name: pattern for name, pattern in targets.items() if pattern is not None}
    if not patterns:
        raise UserError(f"{where}.targets: no pattern; linear layers here: {_listed(places)}")
    for name, pattern in patterns.items():
        matched = [place for key, place in places.items() if fnmatchcase(key, pattern)]
        if not matched:
            raise UserError(f"{where}.targets.{name}={pattern}: {_why_none(part, pattern, places)}")
        for place in matched:
            chosen.setdefault(place.layer, set()).update(place.chosen)
            blocks[place.layer] = place.blocks
    return {layer: _Place(layer, tuple(sorted(chosen[layer])), blocks[layer]) for layer in sorted(chosen)}


def _why_none(part: nn.Module, pattern: str, places: Mapping[str, _Place]) -> str:
    others = [(name, module) for name, module in part.named_modules() if name and fnmatchcase(name, pattern)]
    if others:
        name, module = others[0]
        return f"{name} is a {type(module).__name__}, LoRA is for linear layers; here: {_listed(places)}"
    kinds = _kinds(places)
    near = difflib.get_close_matches(re.sub(r"\d+", "*", pattern), kinds, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no layer of {type(part).__name__} has such a name{hint} Linear layers: {few(kinds, 30)}"


def _kinds(names: Iterator[str] | Mapping[str, Any]) -> list[str]:
    """Names with `*` for numbers, each once."""
    return list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in names))


def _listed(places: Mapping[str, _Place]) -> str:
    return few(_kinds(places), 30)


# Into a part and out of it


def adapt(part: nn.Module, settings: LoRA, *, seed: int = 0, where: str = "lora") -> list[str]:
    """Give the linear layers that the patterns name their LoRA matrices, in place. The part computes what it did: B is
    zero. A is uniform within 1 / sqrt(I), drawn for each layer from the seed and its name, whatever else is adapted.

    Layers that do not learn (their task took them out of training) are left as they are.

    Returns:
        Names of the adapted layers.

    Raises:
        UserError: a pattern that names no linear layer, layers that do not learn or that have LoRA or share their
            weight already.
    """
    found = find_layers(part, settings.targets, where)
    layers = {name: part.get_submodule(name) for name in found}
    uses = Counter(id(parameter) for _, parameter in part.named_parameters(remove_duplicate=False))
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            raise UserError(f"{where}: {name} is a {type(layer).__name__} already; merge or unpack it first")
        if uses[id(layer.weight)] > 1:
            raise UserError(f"{where}: {name} shares its weight with another layer, so it cannot be adapted alone")
    learning = [name for name, layer in layers.items() if layer.weight.requires_grad]  # pyright: ignore[reportAttributeAccessIssue]
    if not learning:
        raise UserError(f"{where}: the task does not train {few(list(layers), 3)}; name other layers, or none")
    if settings.freeze_base:
        part.requires_grad_(False)
    for name in learning:
        layer = layers[name]
        assert isinstance(layer, nn.Linear)
        _adapt(layer, found[name], settings, zlib.crc32(f"{seed} {where}.{name}".encode()))
    return learning


def _adapt(layer: nn.Linear, place: _Place, settings: LoRA, seed: int) -> None:
    weight, count = layer.weight, len(place.chosen)
    a = weight.new_empty(count * settings.rank, weight.shape[1])
    if not a.is_meta:
        drawn = torch.empty(a.shape, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=torch.Generator().manual_seed(seed))
        a.copy_(drawn)
    layer.lora_a = nn.Parameter(a)
    layer.lora_b = nn.Parameter(weight.new_zeros(weight.shape[0] // place.blocks * count, settings.rank))
    layer.scale, layer.lora_dropout = settings.scale, settings.dropout  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    layer.blocks, layer.adapted = place.blocks, place.chosen  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    layer.__class__ = LoRALinear


def adapted_layers(module: nn.Module) -> dict[str, LoRALinear]:
    """Name -> layer with LoRA."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoRALinear)}


@torch.no_grad()
def merge(module: nn.Module) -> int:
    """Put scale x B A into the weights and take LoRA away, in place; returns the number of layers. The same results to
    rounding, at the price of plain layers."""
    layers = adapted_layers(module)
    for layer in layers.values():
        layer.weight.copy_(layer.merged())
        for name in (*_NAMES, "scale", "lora_dropout", "blocks", "adapted"):
            delattr(layer, name)
        layer.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    return len(layers)


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that the module would have after `merge`; the module stays as it is."""
    state = dict(module.state_dict())
    for name, layer in adapted_layers(module).items():
        state[f"{name}.weight"] = layer.merged()
    return {key: value for key, value in state.items() if not is_lora(key)}


@torch.no_grad()
def merge_weights(weights: Mapping[str, Tensor], part: nn.Module, settings: LoRA) -> dict[str, Tensor]:
    """The weights of a part that was adapted by these settings, without its LoRA tensors.

    Args:
        weights: its state dict.
        part: one of the same architecture, adapted or not: says which rows the patterns mean.
    """
    plain = {key: value for key, value in weights.items() if not is_lora(key)}
    for name, place in find_layers(part, settings.targets).items():
        a, b = (weights.get(f"{name}.{kind}") for kind in _NAMES)
        weight = plain.get(f"{name}.weight")
        if a is not None and b is not None and weight is not None:
            plain[f"{name}.weight"] = _merged(weight, a, b, place.chosen, place.blocks, settings.scale)
    return plain


def is_lora(key: str) -> bool:
    """Whether a key of a state dict is that of a LoRA tensor."""
    return key.rpartition(".")[2] in _NAMES


def same_layers(part: nn.Module, settings: LoRA) -> bool:
    """Whether a part is adapted as these settings say: the same rows of the same layers, rank and scale."""
    places = find_layers(part, settings.targets)
    own = adapted_layers(part)
    return own.keys() <= places.keys() and all(
        (layer.adapted, layer.lora_b.shape[1], layer.scale) == (places[name].chosen, settings.rank, settings.scale)
        for name, layer in own.items()
    )


def hold_statistics(module: nn.Module) -> None:
    """Put layers with running statistics (batch norm) into evaluation mode: they stand still as their weights do."""
    for layer in module.modules():
        if "running_mean" in layer._buffers:
            layer.eval()
