"""EnCodec, in the layout of transformers (`EncodecModel`) and in that of the `encodec` package (one `.th` file)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, few
from .family import Family, Nodes
from .files import read_pickle
from .keymap import KeyMap, same
from .published import PublishedModel, build_part, refuse_gaps
from .settings import expect, parts_of, refuse_unless, value

_NORMS = {"weight": "weight_norm", "time_group": "time_group_norm"}
_FIXED = {"trim_right_ratio": 1.0}
_SAME = {
    "sampling_rate": "sample_rate",
    "audio_channels": "channels",
    "hidden_size": "dim",
    "num_filters": "num_filters",
    "num_residual_layers": "num_residual_layers",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "num_lstm_layers": "num_lstm_layers",
    "use_causal_conv": "causal",
    "pad_mode": "pad_mode",
    "use_conv_shortcut": "conv_shortcut",
    "normalize": "normalise",
    "codebook_size": "codebook_size",
}
"""Key of config.json -> ours."""
_PACKAGE = [
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.conv\.(conv|norm)\.", r".\1."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.convtr\.norm\.", ".norm."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
]
"""Keys of the package -> those of transformers."""


class Encodec(Family):
    model_types = ("encodec",)

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        for key, fixed in _FIXED.items():
            refuse_unless(settings, key, fixed)
        codec: dict[str, Any] = {"_target_": "voxzoo.components.EnCodec"}
        codec |= {ours: value(settings, theirs) for theirs, ours in _SAME.items() if theirs in settings}
        if settings.get("codebook_dim") not in (None, settings.get("hidden_size", 128)):
            raise UserError(
                f"codebook_dim={settings['codebook_dim']}: only that of the latents (hidden_size="
                f"{settings.get('hidden_size', 128)}) is published, and only that can be converted"
            )
        norm = settings.get("norm_type", "weight_norm")
        names = {theirs: ours for ours, theirs in _NORMS.items()}
        if norm not in names:
            raise UserError(f"norm_type={norm!r}: expected one of {', '.join(names)}")
        ratios = list(settings.get("upsampling_ratios", (8, 5, 4, 2)))
        rate = math.ceil(codec.get("sample_rate", 24000) / math.prod(ratios))
        bits = rate * math.ceil(math.log2(codec.get("codebook_size", 1024)))
        widest = settings.get("target_bandwidths", (24.0,))[-1]
        chunked = settings.get("chunk_length_s") is not None
        return {
            "codec": {
                **codec,
                "norm": names[norm],
                "ratios": ratios,
                "num_codebooks": int(1000 * widest // bits),
                "chunk_seconds": settings.get("chunk_length_s"),
                "overlap": settings.get("overlap") or 0.0 if chunked else 0.01,
            }
        }

    def key_map(self, nodes: Nodes) -> KeyMap:
        rules = [
            same("codec.encoder.~", "encoder.~"),
            same("codec.decoder.~", "decoder.~"),
            same("codec.quantizer.books.*.~", "quantizer.layers.*.codebook.~"),
        ]
        return KeyMap(rules, rename=_PACKAGE)

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        nodes = parts_of({role: node for role, node in nodes.items() if role != "discriminator"}, "encodec", ("codec",))
        expect(nodes, "codec", "EnCodec")
        codec = nodes["codec"]
        size = codec["codebook_size"]
        if size & (size - 1):
            raise UserError(f"codec.codebook_size={size}: the published layout has powers of two alone")
        rate = math.ceil(codec["sample_rate"] / math.prod(codec["ratios"]))
        return {
            "architectures": ["EncodecModel"],
            **{theirs: codec[ours] for theirs, ours in _SAME.items()},
            **_FIXED,
            "norm_type": _NORMS[codec["norm"]],
            "upsampling_ratios": list(codec["ratios"]),
            "codebook_dim": codec["dim"],
            "chunk_length_s": codec["chunk_seconds"],
            "overlap": None if codec["chunk_seconds"] is None else codec["overlap"],
            "target_bandwidths": _bandwidths(codec["num_codebooks"], rate * int(math.log2(size))),
        }

    def kept(self, nodes: Nodes, came_from: bool) -> tuple[Nodes, dict[str, str]]:
        there = nodes.get("discriminator", {}).get("_target_")
        left = {role: node for role, node in nodes.items() if role != "discriminator"}
        return left, {"discriminator": "only training needs it"} if there else {}

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        from .settings import write_json

        codec = parts_of(nodes, "encodec", ("codec",))["codec"]
        content = {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "feature_size": codec["channels"],
            "sampling_rate": codec["sample_rate"],
            "chunk_length_s": codec["chunk_seconds"],
            "overlap": None if codec["chunk_seconds"] is None else codec["overlap"],
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
        }
        write_json(folder / "preprocessor_config.json", content)


def _bandwidths(num_codebooks: int, bits: int) -> list[float]:
    """kbps of 2, 4, 8 ... codebooks up to all of them, from which transformers counts these again."""
    counts = [count for count in (2**power for power in range(1, 12)) if count < num_codebooks]
    return [count * bits / 1000 for count in (*counts, num_codebooks)]


def is_encodec_package(source: str | Path) -> bool:
    """Whether a file is named as the `encodec` package names its weights."""
    return Path(source).suffix == ".th" and Path(source).is_file()


def from_encodec(source: str | Path, dtype: torch.dtype = torch.float32) -> PublishedModel:
    """Read a file of the `encodec` package (`encodec_24khz-....th`): a codec, in evaluation mode.

    Sizes follow from the tensors. What they do not say follows from their names: weight norm is the causal model for
    24 kHz, group norm the one for 48 kHz with chunks.

    Raises:
        UserError: no such file, other tensors than the package's, or damaged ones.
    """
    path = Path(source)
    content = read_pickle(path)
    content = content.get("best_state", content) if isinstance(content.get("best_state"), dict) else content
    tensors = {key: each for key, each in content.items() if isinstance(each, Tensor)}
    nodes = _sizes(tensors, path)
    model = PublishedModel("encodec", nodes, {})
    with torch.device("meta"):
        model.add_module("codec", build_part("codec", nodes["codec"], path))
    expected = {key: each.shape for key, each in model.state_dict().items()}
    loaded = FAMILY.key_map(nodes).load(tensors, expected)
    refuse_gaps(loaded, path)
    model.load_state_dict({key: each.to(dtype) for key, each in loaded.state.items()}, assign=True)
    model.left = loaded.left
    return model.eval()


def to_encodec(codec: Any, path: str | Path) -> Path:
    """Write the weights of an `EnCodec` as the `encodec` package saves them: tensors by its names, one `.th` file."""
    state = {f"codec.{key}": each for key, each in codec.state_dict().items()}
    theirs = FAMILY.key_map({}).save(state)
    transposed = {
        f"decoder.layers.{number}."
        for number, layer in enumerate(codec.decoder.layers)
        if type(layer).__name__ == "TransposedConv"
    }
    torch.save({_package_name(key, transposed): each.detach().cpu() for key, each in theirs.items()}, path)
    return Path(path)


def _package_name(key: str, transposed: set[str]) -> str:
    """Key of transformers -> that of the package."""
    book = re.fullmatch(r"quantizer\.layers\.(\d+)\.codebook\.(.*)", key)
    if book:
        return f"quantizer.vq.layers.{book[1]}._codebook.{book[2]}"
    which = "convtr" if any(key.startswith(prefix) for prefix in transposed) else "conv"
    key = re.sub(r"\.(conv|norm)\.(?!.*\.(?:conv|norm)\.)", rf".{which}.\1.", key)
    key = key.replace(".convtr.conv.", ".convtr.convtr.")
    key = key.replace(".parametrizations.weight.original0", ".weight_g")
    key = key.replace(".parametrizations.weight.original1", ".weight_v")
    return re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", key)


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> Nodes:
    """The codec's node, from the shapes of its tensors."""
    weighted = "encoder.model.0.conv.conv.weight_v" in tensors
    last = "weight_v" if weighted else "weight"

    def kernel(key: str) -> Tensor:
        if f"{key}.{last}" not in tensors:
            raise UserError(
                f"{path}: not written by the encodec package, which has {key}.{last}; there: {few([*tensors], 3)}"
            )
        return tensors[f"{key}.{last}"]

    first, end = kernel("encoder.model.0.conv.conv"), kernel("decoder.model.0.conv.conv")
    stages = sorted(
        int(found[1])
        for key in tensors
        if (found := re.fullmatch(rf"decoder\.model\.(\d+)\.convtr\.convtr\.{last}", key))
    )
    books = {
        int(found[1])
        for key in tensors
        if (found := re.fullmatch(r"quantizer\.vq\.layers\.(\d+)\._codebook\.embed", key))
    }
    if not stages or not books:
        raise UserError(f"{path}: holds no transposed convolutions and codebooks as the encodec package names them")
    ratios = [kernel(f"decoder.model.{number}.convtr.convtr").shape[2] // 2 for number in stages]
    lstm = sum(bool(re.fullmatch(r"encoder\.model\.\d+\.lstm\.weight_ih_l\d+", key)) for key in tensors)
    kind = (
        {"sample_rate": 24000, "causal": True, "norm": "weight"}
        if weighted
        else {
            "sample_rate": 48000, "causal": False, "norm": "time_group", "normalise": True, "chunk_seconds": 1.0,
            "overlap": 0.01,
        }
    )  # fmt: skip
    codec = {
        "_target_": "voxzoo.components.EnCodec",
        "channels": first.shape[1],
        "num_filters": first.shape[0],
        "kernel_size": first.shape[2],
        "dim": end.shape[1],
        "ratios": ratios,
        "num_codebooks": len(books),
        "codebook_size": len(tensors[f"quantizer.vq.layers.{min(books)}._codebook.embed"]),
        "num_residual_layers": (stages[1] - stages[0] - 2 if len(stages) > 1 else 1),
        "num_lstm_layers": lstm,
        **kind,
    }
    return {"codec": codec}


FAMILY = Encodec()
