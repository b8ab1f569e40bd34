"""Adapters of PEFT (adapter_config.json, adapter_model.safetensors) as LoRA of a published model, and back.

PEFT names the modules of transformers; theirs are joined where a projection is fused here. Letters: r rank, I input, O
output width.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, few
from ..layers.lora import LoRA, LoRALinear, adapt, adapted_layers, block_names
from ..whole import whole_folder
from .family import Compat
from .files import Weights, published_folder, read_json, write_weights
from .published import PublishedModel, family_of, from_transformers, nodes_of
from .settings import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False,), "modules_to_save": ([],), "rank_pattern": ({},),
    "alpha_pattern": ({},), "lora_bias": (False,), "fan_in_fan_out": (False,), "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
}  # fmt: skip


_Found = defaultdict[str, dict[int, tuple[Tensor, Tensor]]]
"""Linear layer -> block of its rows -> A (r, I) and B (O, r)."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter of PEFT, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def from_peft(
    source: str | Path,
    base: str | Path | None = None,
    *,
    compat: Compat = "transformers",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
) -> PublishedModel:
    """The model that an adapter belongs to, with its LoRA (`PublishedModel.lora`); in evaluation mode.

    Args:
        source: a folder with adapter_config.json and adapter_model.safetensors.
        base: folder or hub name of the model; None: what adapter_config.json says.
        compat, dtype, tokenizer: as in `from_transformers`.

    Raises:
        UserError: an adapter of another kind than LoRA on linear layers, or one that does not fit the model.
    """
    folder = Path(source)
    config = read_json(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if config.get(key) is not None and config[key] not in plain:
            raise UserError(f"{folder / CONFIG}: {key}={config[key]!r}: expected {plain[0]!r} or nothing")
    where = base or config.get("base_model_name_or_path")
    if not where:
        raise UserError(f"{folder / CONFIG} names no model that it belongs to: give it, --base FOLDER")
    try:
        published_folder(where)
    except UserError as error:
        hint = "" if base else f" ({CONFIG} says that it belongs to {where}: give its folder, --base FOLDER)"
        raise UserError(f"{error}{hint}") from None
    model = from_transformers(where, compat=compat, dtype=dtype, tokenizer=tokenizer)
    _take(model, _pairs(folder), config, folder)
    return model


def _pairs(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Module of transformers -> its A (r, I) and B (O, r)."""
    found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    others = []
    weights = Weights(folder, single=WEIGHTS)
    for key in weights:
        match = _KEY.fullmatch(key)
        if match is None:
            others.append(key)
            continue
        value = weights[key]
        found[match[1]][match[2]] = value.squeeze(-1) if value.dim() == 3 else value
    if others or not found:
        said = f"{len(others)} keys that are no LoRA of a linear layer: {few(others)}" if others else "no LoRA in it"
        raise UserError(f"{folder / WEIGHTS}: {said}")
    return found


def _take(
    model: PublishedModel, pairs: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], folder: Path
) -> None:
    """Adapt the parts of a model, in place."""
    keys = family_of(model.model_type, str(folder)).key_map(model.nodes)
    rank, alpha = int(config.get("r") or 8), float(config.get("lora_alpha") or 8)
    layers: defaultdict[str, _Found] = defaultdict(lambda: defaultdict(dict))
    unknown = []
    for module, pair in pairs.items():
        place = keys.find(f"{module}.weight")
        if place is None or place[1] == "tied" or place[0].partition(".")[0] not in model.parts():
            unknown.append(module)
            continue
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            shapes = {kind: tuple(value.shape) for kind, value in sorted(pair.items())}
            raise UserError(f"{folder / WEIGHTS}: {module} has {shapes}; expected A and B of rank {rank} ({CONFIG}: r)")
        role, _, layer = place[0].removesuffix(".weight").partition(".")
        layers[role][layer][place[2]] = (pair["A"], pair["B"])
    if unknown:
        raise UserError(
            f"{folder / WEIGHTS}: {len(unknown)} layers that a {model.model_type} model does not have here, or "
            f"that share their matrix: {few(unknown)}"
        )
    for role, found in layers.items():
        part = model.parts()[role]
        names = block_names(part)
        absent = [layer for layer in found if (layer, 0) not in names]
        if absent:
            raise UserError(f"{folder / WEIGHTS}: {few([f'{role}.{name}' for name in absent])}: no linear layer here")
        wanted = [names[layer, block] for layer, blocks in sorted(found.items()) for block in sorted(blocks)]
        settings = {
            "targets": _patterns(wanted, list(names.values())),
            "rank": rank,
            "alpha": alpha,
            "dropout": float(config.get("lora_dropout") or 0.0),
            "rank_stabilized": bool(config.get("use_rslora")),
        }
        adapt(part, LoRA(**settings), where=f"lora.{role}")
        for layer, blocks in found.items():
            _fill(part, layer, blocks, f"{folder / WEIGHTS}: {role}.{layer}")
        model.lora[role] = settings
    model.eval()


@torch.no_grad()
def _fill(part: nn.Module, layer: str, blocks: Mapping[int, tuple[Tensor, Tensor]], where: str) -> None:
    module = part.get_submodule(layer)
    assert isinstance(module, LoRALinear)
    a = torch.cat([blocks[block][0] for block in sorted(blocks)])
    b = torch.cat([blocks[block][1] for block in sorted(blocks)])
    for name, value, own in (("A", a, module.lora_a), ("B", b, module.lora_b)):
        if value.shape != own.shape:
            raise UserError(f"{where}: {name} is {tuple(value.shape)}, expected {tuple(own.shape)}: of another model")
        own.copy_(value)


def _patterns(wanted: list[str], names: list[str]) -> dict[str, str]:
    """Patterns of `LoRA.targets` that mean these layers and no other: with `*` for a number where that is so."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\d+", "*", name)].append(name)
    chosen = set(wanted)
    found: list[str] = []
    for pattern, members in groups.items():
        inside = [name for name in members if name in chosen]
        found += [pattern] if len(inside) == len(members) else inside
    return {f"t{number}": pattern for number, pattern in enumerate(found)}


@torch.no_grad()
def to_peft(task: Any, path: str | Path, base: str, settings: Mapping[str, LoRA], model_type: str) -> Path:
    """Write the LoRA of a task that is not merged, as PEFT reads it.

    Args:
        task: with `parts()` and a resolved `config`.
        path: a folder that does not exist yet or is empty.
        base: folder or hub name of the model that it belongs to.
        settings: role -> how the part is adapted.
        model_type: layout of that model.

    Raises:
        UserError: no LoRA, layers that the layout does not have, or weights beside it that were trained too.
    """
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another folder, nothing is overwritten")
    frozen = {str(role) for role, held in (task.config.get("freeze") or {}).items() if held}
    moved = [
        role for role, part in task.parts().items() if role not in settings and role not in frozen and _learns(part)
    ]
    moved += [role for role, one in settings.items() if not one.freeze_base]
    if not settings or moved:
        why = f"{', '.join(moved)} learned as a whole" if settings else "there is no LoRA in this run"
        raise UserError(f"--adapter: {why}: an adapter alone would not be this model; export it without --adapter")
    keys = family_of(model_type, "export").key_map(nodes_of(task))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for role, one in settings.items():
        for name, layer in adapted_layers(task.parts()[role]).items():
            names, how = keys.names(f"{role}.{name}.weight")
            count = len(layer.adapted)
            for block, a, b in zip(layer.adapted, layer.lora_a.chunk(count), layer.lora_b.chunk(count), strict=True):
                module = names[block].removesuffix(".weight")
                ranks[module], alphas[module] = one.rank, one.alpha
                for kind, value in (("A", a), ("B", b)):
                    written = value.unsqueeze(-1) if how == "squeeze" else value
                    tensors[f"base_model.model.{module}.lora_{kind}.weight"] = written.detach()
    first = next(iter(settings.values()))
    if {one.rank_stabilized for one in settings.values()} != {first.rank_stabilized}:
        raise UserError("--adapter: rank_stabilized differs between parts; PEFT has one for all")
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.rank_stabilized,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != first.rank},
        "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != first.alpha},
    }
    with whole_folder(target) as part_folder:
        write_json(part_folder / CONFIG, content)
        write_weights(part_folder, tensors, single=WEIGHTS)
    return target


def _learns(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())
