"""Between config.json and nodes: files that may be there, values that must be, values and parts no layout has."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ... import components
from ..errors import UserError
from ..layers.activations import ACTIVATIONS
from .family import Nodes
from .files import read_json

_BESIDE = ("frontend", "tokenizer", "task")  # roles whose files stand beside the weights, in every layout
LEFT_OUT = {
    "unit_extractor": "it made the units to train on; the run keeps it, and transformers has no place for it",
}
"""Role -> why an export leaves it out: what only training needs."""


def read_json_if(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON object of a folder; empty where there is no such file."""
    return read_json(folder / name) if folder is not None and (folder / name).exists() else {}


def value(settings: dict[str, Any], key: str) -> Any:
    """A setting that must be there.

    Raises:
        UserError: it is missing.
    """
    if settings.get(key) is None:
        raise UserError(f"config.json of a {settings.get('model_type')} model has no {key}: fetch the whole file")
    return settings[key]


def refuse_unless(settings: dict[str, Any], key: str, expected: Any, *same: Any) -> None:
    """Refuse a setting that voxzoo's part has only one value for; a missing one is fine.

    Args:
        same: other names of that value.

    Raises:
        UserError: it has another value.
    """
    if key in settings and settings[key] not in (expected, *same):
        raise UserError(f"{key}={settings[key]!r}: only {expected!r} is published, and only that can be converted")


def activation(settings: dict[str, Any], key: str, default: str) -> str:
    """The activation that a setting names.

    Raises:
        UserError: it is none that voxzoo's parts have.
    """
    name = settings.get(key, default)
    if name not in ACTIVATIONS:
        raise UserError(f"{key}={name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return name


def fbank(folder: Path | None) -> dict[str, Any]:
    """The front end of SeamlessM4T and w2v-BERT 2.0, from preprocessor_config.json where there is one."""
    found = read_json_if(folder, "preprocessor_config.json")
    bins, stack = found.get("num_mel_bins", found.get("feature_size", 80)), found.get("stride", 2)
    return {
        "_target_": "voxzoo.components.Fbank",
        "sample_rate": found.get("sampling_rate", 16000),
        "num_mel_bins": bins,
        "stack": stack,
        "standardise": True,
        "output_dim": bins * stack,
    }


def write_fbank(nodes: Nodes, folder: Path) -> None:
    """preprocessor_config.json of a front end that `fbank` reads, where there is one."""
    frontend = nodes.get("frontend") or {}
    if not frontend.get("_target_"):
        return
    bins = frontend.get("num_mel_bins", 80)
    content = {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": bins,
        "num_mel_bins": bins,
        "stride": frontend.get("stack", 2),
        "sampling_rate": frontend.get("sample_rate", 16000),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    write_json(folder / "preprocessor_config.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def parts_of(nodes: Nodes, layout: str, roles: Iterable[str]) -> Nodes:
    """The nodes that are parts, each with every argument of its class: what a config left out is there. A `NoAdaptor`
    between equal widths holds nothing and is none, and what is left out (`LEFT_OUT`) is none either.

    Args:
        nodes: role -> config node.
        layout: model type, for the message.
        roles: those that the layout has weights for.

    Raises:
        UserError: a part that the layout has no place for.
    """
    found = {role: with_defaults(node) for role, node in nodes.items() if node.get("_target_")}
    adaptor = found.get("adaptor", {})
    if _name(adaptor) == "NoAdaptor" and adaptor.get("input_dim") == adaptor.get("output_dim"):
        del found["adaptor"]
    places = [*roles]
    others = [f"{_name(node)} as {role}" for role, node in found.items() if role not in (*places, *_BESIDE, *LEFT_OUT)]
    if others:
        raise UserError(
            f"the {layout} layout holds {', '.join(places)} and no other part; this model has {', '.join(others)}"
        )
    return {role: node for role, node in found.items() if role not in LEFT_OUT}


def encoder_alone(nodes: Nodes, layout: str, places: Iterable[str]) -> tuple[Nodes, dict[str, str]]:
    """`Family.kept` of a layout that holds a speech encoder: what was composed around it stays behind."""
    others = [
        role
        for role, node in nodes.items()
        if node.get("_target_") and role not in (*places, *LEFT_OUT, "frontend", "task")
    ]
    why = f"a {layout} model has none; the run keeps it"
    return {role: node for role, node in nodes.items() if role not in others}, dict.fromkeys(others, why)


def expect(nodes: Nodes, role: str, target: str, **fixed: Any) -> None:
    """Refuse a missing part, another class, or another value where the layout has only one."""
    if role not in nodes:
        raise UserError(f"{role}: the published layout has a {target} there; this model has no {role}")
    if _name(nodes[role]) != target:
        raise UserError(f"{role}: the published layout has a {target} there; got {_name(nodes[role])}")
    for key, expected in fixed.items():
        if nodes[role].get(key, expected) != expected:
            raise UserError(f"{role}.{key}={nodes[role][key]!r}: the published layout has only {expected!r}")


def _name(node: dict[str, Any]) -> str:
    return str(node.get("_target_") or "").rpartition(".")[2]


def with_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """A node with every argument of its class: what it leaves out is there."""
    part = getattr(components, _name(node), None)
    if part is None:
        return dict(node)
    signature = inspect.signature(part).parameters
    given = {name: entry.default for name, entry in signature.items() if entry.default is not entry.empty}
    return {**given, **node}
