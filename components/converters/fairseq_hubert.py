"""Checkpoints of fairseq's HuBERT and wav2vec 2.0 (`hubert_base_ls960.pt`, mHuBERT, XLS-R) as speech encoders.

The tensors are those of transformers under other names, so they are read through its layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, few
from .family import Nodes
from .files import SETTINGS_CLASSES, read_pickle
from .published import PublishedModel, add_parts, family_of, fill_parts

# Published names, in order: a key is changed by each that fits.
_RENAMES = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
        (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^mask_emb$", "masked_spec_embed"),
        (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
        (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
        (r"\.self_attn_layer_norm\.", ".layer_norm."),
        (r"\.self_attn\.", ".attention."),
        (r"\.fc1\.", ".feed_forward.intermediate_dense."),
        (r"\.fc2\.", ".feed_forward.output_dense."),
    )
)
# What pre-training and recognition put around the encoder.
_LEFT = re.compile(r"(final_proj|quantizer|project_q|target_glu)\..*|label_embs_concat|(proj|w2v_encoder\.proj)\..*")
_WRAPPERS = re.compile(r"^(?:module\.)?(?:encoder\.)?(?:w2v_encoder\.)?w2v_model\.|^(?:module\.)?(?:w2v_model|model)\.")
_MARK = "post_extract_proj.weight"
_KERNELS, _STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # of the published sizes: no tensor shows them


def is_fairseq_encoder(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of such a checkpoint, by their names."""
    names = {_WRAPPERS.sub("", str(key)) for key in tensors}
    return _MARK in names and "encoder.pos_conv.0.weight_v" in names


def from_fairseq_encoder(path: str | Path, *, dtype: torch.dtype = torch.float32) -> PublishedModel:
    """Read `hubert_base_ls960.pt`, `mhubert_base_vp_en_es_fr_it3.pt` or their like; in evaluation mode.

    Sizes are read off the tensors. Heads, strides and whether samples are normalised are those that the file's settings
    say, where they are plain values, and else those of the published models. As in the original code the first norm of
    base models sees padding (`leak_padding: norm`).

    Raises:
        UserError: no such file, a pickle of more than tensors and settings, or tensors of another model.
    """
    file = Path(path)
    content = read_pickle(file, settings=SETTINGS_CLASSES)
    tensors = content.get("model", content)
    if not isinstance(tensors, Mapping) or not is_fairseq_encoder(tensors):
        found = few([str(key) for key in tensors], 4) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise UserError(f"{file}: no HuBERT or wav2vec 2.0 of fairseq: it has no {_MARK}; it holds {found}")
    names: dict[str, str] = {}
    left = []
    for key, value in tensors.items():
        plain = _WRAPPERS.sub("", str(key))
        if _LEFT.fullmatch(plain) or not isinstance(value, Tensor):
            left.append(str(key))
            continue
        for old, new in _RENAMES:
            plain = old.sub(new, plain)
        names[plain] = str(key)
    state = {plain: tensors[key] for plain, key in names.items()}
    kind = "wav2vec2" if any(re.search(r"(^|\.)(quantizer|project_q)\.", key) for key in left) else "hubert"
    family = family_of(kind, str(file))
    settings = _settings(state, kind, _said(content), file)
    nodes: Nodes = family.nodes(settings)
    nodes["frontend"]["normalise"] = settings["do_normalize"]
    nodes["speech_encoder"]["leak_padding"] = "norm" if settings["feat_extract_norm"] == "group" else "none"
    model = PublishedModel(kind, nodes, {})
    add_parts(model, file)
    fill_parts(model, family, state, file, dtype, names)
    model.left += left
    return model.eval()


def _said(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings of the file: those of the model, and `normalize` of the task."""
    said = content.get("cfg") if isinstance(content.get("cfg"), Mapping) else {}
    assert isinstance(said, Mapping)
    groups = [said.get(name) for name in ("model", "task")]
    return {str(key): value for group in groups if isinstance(group, Mapping) for key, value in group.items()}


def _settings(state: Mapping[str, Tensor], kind: str, said: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """config.json of transformers for such tensors.

    Raises:
        UserError: convolutions whose strides nobody says, or tensors that are missing.
    """
    try:
        convs = []
        while (weight := state.get(f"feature_extractor.conv_layers.{len(convs)}.conv.weight")) is not None:
            convs.append(weight)
        layers = {int(found[1]) for key in state if (found := re.match(r"encoder\.layers\.(\d+)\.", key))}
        dim = state["feature_projection.projection.weight"].shape[0]
        inner = state["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0]
        position = state["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    except KeyError as error:
        raise UserError(f"{file}: {error.args[0]} is missing, by its name in transformers") from None
    by_layer = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    kernels = [weight.shape[2] for weight in convs]
    strides = _strides(said.get("conv_feature_layers")) or (_STRIDES if kernels == _KERNELS else None)
    if strides is None or len(strides) != len(convs):
        raise UserError(
            f"{file}: convolutions of {kernels} taps, whose strides no tensor shows; expected {_KERNELS}, as "
            "published, or conv_feature_layers among the settings of the file"
        )
    heads = said.get("encoder_attention_heads") or _HEADS.get(dim, dim // 64)
    norm_first = said.get("layer_norm_first")
    return {
        "model_type": kind,
        "hidden_size": dim,
        "num_hidden_layers": len(layers),
        "num_attention_heads": int(heads),
        "intermediate_size": inner,
        "conv_dim": [weight.shape[0] for weight in convs],
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in state,
        "feat_extract_norm": "layer" if by_layer else "group",
        "do_stable_layer_norm": by_layer if norm_first is None else bool(norm_first),
        "num_conv_pos_embeddings": position.shape[2],
        "num_conv_pos_embedding_groups": dim // position.shape[1],
        "do_normalize": bool(said.get("normalize", by_layer)),
        "layerdrop": 0.05,
        # The vector is there; whether to mask is for the one who trains to say.
        "mask_time_prob": 0.65 if "masked_spec_embed" in state else 0.0,
        "apply_spec_augment": False,
    }


def _strides(layers: Any) -> list[int] | None:
    """Strides of `[(512,10,5)] + [(512,3,2)] * 4`, as fairseq writes them; it is read, never evaluated."""
    if not isinstance(layers, str):
        return None
    found: list[int] = []
    for part in re.split(r"\+", layers.replace(" ", "")):
        match = re.fullmatch(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d+))?", part)
        if match is None or int(match[2] or 1) > 64:
            return None
        found += [int(stride) for stride in re.findall(r",(\d+)\)", match[1])] * int(match[2] or 1)
    return found
