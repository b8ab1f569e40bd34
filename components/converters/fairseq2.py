"""The original checkpoints of SeamlessM4T (large v1, large v2, medium): one file of tensors, a vocoder in another.

The published files carry the names of fairseq, those that the original code saves the names of fairseq2. Both are
renamed to those of transformers, and the key map of that layout does the rest.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from ..errors import UserError, few
from .code_hifi_gan import SPEAKERS
from .compat import apply_compat
from .family import Nodes
from .files import SETTINGS_CLASSES, read_pickle
from .published import PublishedModel, add_parts, build_part, family_of, fill_parts
from .seamless_m4t import SeamlessM4T

_ROWS = 256102
"""Text ids of the large models."""
_FAIRSEQ_CONTROLS = [1, 3, 0, 2]
"""Rows of fairseq (bos, pad, eos, unk) in the order of the tokenizer (pad, unk, bos, eos)."""
_UNIT_ROWS, _FIRST_UNIT_LANGUAGE = 10082, 10043
UNIT_LANGUAGES = sorted([*SPEAKERS[1], "kan", "tam"])
"""Languages of the second pass, in the order of their tokens."""
# Languages of the large models in the order of their ids, and three controls of the training data.
_NAMES = (
    "afr amh arb ary arz asm azj bel ben bos bul cat ceb ces ckb cmn cmn_Hant cym dan deu ell eng est eus fin fra fuv "
    "gaz gle glg guj heb hin hrv hun hye ibo ind isl ita jav jpn kan kat kaz khk khm kir kor lao lit lug luo lvs mai "
    "mal mar mkd mlt mni mya nld nno nob npi nya ory pan pbt pes pol por ron rus sat slk slv sna snd som spa srp swe "
    "swh tam tel tgk tgl tha tur ukr urd uzn vie yor yue zsm zul <MINED_DATA> <MMT_BT_DATA> <SMT_BT_DATA>"
)
LANGUAGES = tuple(_NAMES.split())

Renames = list[tuple[re.Pattern[str], str]]


def _renames(*groups: tuple[str, Mapping[str, str]]) -> Renames:
    """(prefix, names): in keys that begin with the prefix the first name becomes the second. All apply, in order."""
    return [(re.compile(f"^({prefix}){old}"), rf"\g<1>{new}") for prefix, names in groups for old, new in names.items()]


_SPEECH = r"speech_encoder\.(?:encoder|adapter)\.layers\.\d+\."
_TEXT = r"(?:text_|t2u_model\.model\.)(?:en|de)coder\.layers\.\d+\."

_FAIRSEQ2 = _renames(
    (
        "",
        {
            r"speech_encoder_frontend\.post_extract_layer_norm\.": "speech_encoder.feature_projection.layer_norm.",
            r"speech_encoder_frontend\.model_dim_proj\.": "speech_encoder.feature_projection.projection.",
            r"speech_encoder\.inner\.layers\.": "speech_encoder.encoder.layers.",
            # The original's inner norm stands behind the Conformer, its outer one behind the adaptor.
            r"speech_encoder\.inner_layer_norm\.": "speech_encoder.encoder.layer_norm.",
            r"speech_encoder\.layer_norm\.": "speech_encoder.inner_layer_norm.",
            r"speech_encoder\.proj1\.": "speech_encoder.intermediate_ffn.intermediate_dense.",
            r"speech_encoder\.proj2\.": "speech_encoder.intermediate_ffn.output_dense.",
            r"speech_encoder\.adaptor_layers\.": "speech_encoder.adapter.layers.",
            r"text_encoder_frontend\.embed\.": "text_encoder.embed_tokens.",
            r"text_decoder_frontend\.embed\.": "text_decoder.embed_tokens.",
            r"final_proj\.": "lm_head.",
            r"t2u_model\.final_proj\.": "t2u_model.lm_head.",
            r"t2u_model\.decoder_frontend\.embed\.": "t2u_model.model.decoder.embed_tokens.",
            r"t2u_model\.decoder_frontend\.variance_adaptor\.": "t2u_model.model.decoder.",
            r"t2u_model\.decoder_frontend\.": "t2u_model.model.decoder.",
            r"t2u_model\.encoder\.": "t2u_model.model.encoder.",
            r"t2u_model\.decoder\.": "t2u_model.model.decoder.",
            r"t2u_model\.model\.decoder\.duration_predictor\.conv1\.0\.": (
                "t2u_model.model.decoder.duration_predictor.conv1."
            ),
            r"t2u_model\.model\.decoder\.duration_predictor\.conv2\.0\.": (
                "t2u_model.model.decoder.duration_predictor.conv2."
            ),
        },
    ),
    (
        _SPEECH,
        {
            r"self_attn\.output_proj\.": "self_attn.linear_out.",
            r"self_attn\.([qkv])_proj\.": r"self_attn.linear_\g<2>.",
            r"self_attn\.sdpa\.([uv])_bias": r"self_attn.pos_bias_\g<2>",
            r"self_attn\.sdpa\.r_proj\.": "self_attn.linear_pos.",
            r"self_attn\.sdpa\.rel_k_embed\.": "self_attn.distance_embedding.",
            r"(ffn[12]?)\.inner_proj\.": r"\g<2>.intermediate_dense.",
            r"(ffn[12]?)\.output_proj\.": r"\g<2>.output_dense.",
            r"conv_layer_norm\.": "conv_module.layer_norm.",
            r"conv\.layer_norm\.": "conv_module.depthwise_layer_norm.",
            r"conv\.": "conv_module.",
            r"layer_norm\.": "final_layer_norm.",
        },
    ),
    (
        _TEXT,
        {
            r"(self_attn|encoder_decoder_attn)\.output_proj\.": r"\g<2>.out_proj.",
            r"encoder_decoder_attn": "cross_attention",
            r"ffn\.inner_proj\.": "ffn.fc1.",
            r"ffn\.output_proj\.": "ffn.fc2.",
            r"conv1d\.conv": "conv",
            r"conv1d_layer_norm\.": "conv_layer_norm.",
        },
    ),
)

_FAIRSEQ = _renames(
    (
        "",
        {
            r"encoder\.w2v_encoder\.w2v_model\.layer_norm\.": "speech_encoder.feature_projection.layer_norm.",
            r"encoder\.w2v_encoder\.w2v_model\.post_extract_proj\.": "speech_encoder.feature_projection.projection.",
            r"encoder\.w2v_encoder\.w2v_model\.encoder\.": "speech_encoder.encoder.",
            r"encoder\.adaptor\.proj\.0\.": "speech_encoder.intermediate_ffn.intermediate_dense.",
            r"encoder\.adaptor\.proj\.2\.": "speech_encoder.intermediate_ffn.output_dense.",
            r"encoder\.adaptor\.out_ln\.": "speech_encoder.inner_layer_norm.",
            r"encoder\.adaptor\.layers\.": "speech_encoder.adapter.layers.",
            r"target_letter_decoder\.output_projection\.": "lm_head.",
            r"target_letter_decoder\.": "text_decoder.",
            r"synthesizer_encoder\.": "t2u_model.model.encoder.",
            r"decoder\.output_projection\.": "t2u_model.lm_head.",
            r"decoder\.embed_tokens_text\.": "t2u_model.model.decoder.embed_char.",
            r"decoder\.embed_tokens_unit\.": "t2u_model.model.decoder.embed_tokens.",
            r"decoder\.var_adaptor\.duration_predictor\.(conv\d)\.0\.": (
                r"t2u_model.model.decoder.duration_predictor.\g<2>."
            ),
            r"decoder\.var_adaptor\.": "t2u_model.model.decoder.",
            r"decoder\.dec_pos_emb_alpha": "t2u_model.model.decoder.pos_emb_alpha",
            r"decoder\.char_upsampler\.pos_emb_alpha": "t2u_model.model.decoder.pos_emb_alpha_char",
            r"decoder\.": "t2u_model.model.decoder.",
        },
    ),
    (
        r"speech_encoder\.encoder\.layers\.\d+\.",
        {
            r"(ffn[12])\.layer_norm\.": r"\g<2>_layer_norm.",
            r"(ffn[12])\.w_1\.": r"\g<2>.intermediate_dense.",
            r"(ffn[12])\.w_2\.": r"\g<2>.output_dense.",
            r"self_attn\.rel_k_embedding\.": "self_attn.distance_embedding.",
            r"conv_module\.layer_norm2\.": "conv_module.depthwise_layer_norm.",
        },
    ),
    (
        r"speech_encoder\.adapter\.layers\.\d+\.",
        {
            r"residual_pool\.1\.": "residual_conv.",
            r"attn_pool\.1\.": "self_attn_conv.",
            r"fc1\.": "ffn.intermediate_dense.",
            r"fc2\.": "ffn.output_dense.",
            r"final_layer_norm\.": "ffn_layer_norm.",
        },
    ),
    (
        _SPEECH,
        {r"self_attn\.out_proj\.": "self_attn.linear_out.", r"self_attn\.([qkv])_proj\.": r"self_attn.linear_\g<2>."},
    ),
    (
        _TEXT,
        {
            r"encoder_attn": "cross_attention",
            r"(fc[12])\.": r"ffn.\g<2>.",
            r"final_layer_norm\.": "ffn_layer_norm.",
            r"layer_norm\.": "self_attn_layer_norm.",
            r"ffn\.ffn\.0\.": "conv1.",
            r"ffn\.ffn\.2\.": "conv2.",
            r"ffn\.layer_norm\.": "conv_layer_norm.",
        },
    ),
)

_VOCODER = _renames(
    (
        "",
        {
            r"code_generator\.": "",
            r"dict\.": "unit_embedding.",
            r"lang\.": "language_embedding.",
            r"spkr\.": "speaker_embedding.",
            r"dur_predictor\.(conv\d)\.0\.": r"dur_predictor.\g<2>.",
            r"ups\.": "hifi_gan.upsampler.",
            r"(conv_pre|conv_post|resblocks)\.": r"hifi_gan.\g<2>.",
            r"": "vocoder.",
        },
    )
)
# What `torch` calls gain and direction of weight normalisation, before and since its parametrisations.
_GAIN = {"weight_g": "weight_v", "parametrizations.weight.original0": "parametrizations.weight.original1"}

# What training left behind: counters, tables of positions, the masked frame of pre-training, the aligner of units and
# characters with its embeddings.
_LEFT = re.compile(
    r".*\.version|.*\._float_tensor|.*pos_encoder\..*|encoder\.w2v_encoder\.w2v_model\.mask_emb"
    r"|decoder\.char_upsampler\.embed_tokens_char\.weight|decoder\.alignment_encoder\..*"
    r"|decoder_target_letter_decoder\.proj\..*"
)


def from_fairseq2(
    path: str | Path,
    vocoder_path: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    char_tokenizer: str | Path | None = None,
    languages: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> PublishedModel:
    """Read an original SeamlessM4T checkpoint, with `compat: fairseq2` in all switches; in evaluation mode.

    Sizes are read off the tensors; what tensors do not show (heads of 64, the vocoder's rates and dilations) is as
    published. The embeddings of the output layer and of both text stacks are one matrix; a file in which fine-tuning
    drew them apart gives an untied output layer.

    Args:
        path: `multitask_unity_large.pt`, `seamlessM4T_v2_large.pt` or what fine-tuning with the original code saved.
        vocoder_path: `vocoder_36langs.pt` (v1), `vocoder_v2.pt`; None: no vocoder.
        tokenizer: its SentencePiece model; None: `tokenizer.model` beside `path`, if there.
        char_tokenizer: the SentencePiece model of v2's characters; None: `spm_char_lang38_tc.model` beside `path`. A
            published v2 file cannot be read without: its characters stand in another order.
        languages: tokens behind the pieces, as of `SentencePieceTokenizer`; None: the 98 languages and three controls
            of the large models.
        settings: keys of transformers' config.json that say otherwise what tensors do not show.
        dtype: of the parameters.

    Raises:
        UserError: no such file, a pickle of more than tensors and settings, keys without a place or parts without
            weights; one line that names file and keys.
    """
    file, overrides = Path(path), dict(settings or {})
    state, names = _read(file)
    fairseq = any(key.startswith("target_letter_decoder.") for key in names.values())
    version = 2 if any("distance_embedding" in key for key in state) else 1
    characters = _characters(char_tokenizer, file) if version == 2 else None
    if fairseq:
        _from_fairseq(state, characters, overrides.get("vocab_size"), file)
    if vocoder_path is not None:
        voice, voice_names = _read_vocoder(Path(vocoder_path))
        state.update(voice)
        names.update(voice_names)
    model_type = "seamless_m4t" if version == 1 else "seamless_m4t_v2"
    family = family_of(model_type, str(file))
    assert isinstance(family, SeamlessM4T)
    nodes = _nodes(family, {**_settings(state, version, file), **overrides}, state)
    nodes = fairseq2_nodes(nodes, version)
    model = PublishedModel(model_type, nodes, {})
    built = _tokenizer(tokenizer, file, characters, languages, int(nodes["text_seq2seq"]["vocab_size"]))
    if built is not None:
        nodes["tokenizer"], model.tokenizer = built
    add_parts(model, file)
    fill_parts(model, family, state, file, dtype, names)
    return model.eval()


def fairseq2_nodes(nodes: Nodes, version: int) -> Nodes:
    """Nodes of the transformers layout (`Family.nodes`) with the switches of the original implementation (`compat`),
    its voices, and without the chunks of attention of v2."""
    voices = _speakers(nodes, version)
    if voices:
        nodes = {**nodes, "vocoder": {**nodes["vocoder"], **voices}}
    nodes = apply_compat(nodes, "fairseq2")
    if version == 2 and "speech_encoder" in nodes:
        nodes["speech_encoder"].update(chunk_size=None, left_chunks=None)
    return nodes


def _speakers(nodes: Nodes, version: int) -> dict[str, Any]:
    """The published voices, where the tables have their sizes."""
    vocoder = nodes.get("vocoder", {})
    if vocoder.get("num_langs") != len(SPEAKERS[version]) or vocoder.get("num_speakers", 0) < 75:
        return {}
    return {
        "speakers": {lang: list(of) for lang, of in SPEAKERS[version].items()},
        "default_language": [*SPEAKERS[version]].index("eng"),
        "default_speaker": "first_of_language",
    }


def _nodes(family: SeamlessM4T, settings: dict[str, Any], state: Mapping[str, Tensor]) -> Nodes:
    """Nodes of the parts that the file has."""
    generation: dict[str, Any] = {}
    if settings.get("t2u_vocab_size") == _UNIT_ROWS:
        ids = {lang: number for number, lang in enumerate(UNIT_LANGUAGES, start=_FIRST_UNIT_LANGUAGE)}
        generation["t2u_lang_code_to_id"] = ids
    if settings["vocoder_num_langs"] == len(SPEAKERS[family.version]):
        generation["vocoder_lang_code_to_id"] = {lang: i for i, lang in enumerate(SPEAKERS[family.version])}
    nodes = family.nodes(settings)
    has_encoder = "text_encoder.layer_norm.weight" in state
    nodes["text_seq2seq"] = family.text(settings, has_encoder)
    if not _same(state.get("lm_head.weight"), state.get("text_decoder.embed_tokens.weight")):
        nodes["text_seq2seq"]["tie_output"] = False
    for role, prefix in (("t2u", "t2u_model."), ("vocoder", "vocoder.")):
        if not any(key.startswith(prefix) for key in state):
            nodes.pop(role, None)
    if "t2u" in nodes:
        nodes["t2u"] = family.t2u(settings, generation)
    nodes["task"] = family.task(settings, generation, nodes)
    return nodes


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a model by their names in transformers, and those names -> the file's."""
    content = _pickle(path)
    tensors = content.get("model", content)
    # Fine-tuning wraps the model: its names may begin with one or two wrappers.
    plain = {re.sub(r"^(?:module\.)?(?:model\.)*", "", str(key)): str(key) for key in tensors}
    table = _FAIRSEQ if any(key.startswith("target_letter_decoder.") for key in plain) else _FAIRSEQ2
    if "final_proj.weight" not in plain and "target_letter_decoder.output_projection.weight" not in plain:
        raise UserError(
            f"{path}: no SeamlessM4T checkpoint: it has neither final_proj.weight (fairseq2) nor "
            f"target_letter_decoder.output_projection.weight (fairseq); it holds {few(list(plain), 3)}"
        )
    names = {_rename(key, table): key for key in plain if not _LEFT.fullmatch(key)}
    return {key: tensors[plain[name]] for key, name in names.items()}, names


def _read_vocoder(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `_read`, of a vocoder's file, with weight normalisation folded in."""
    content = _pickle(path)
    tensors = content.get("generator", content.get("model", content))
    folded: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for key, value in tensors.items():
        gain = next((ending for ending in _GAIN if key.endswith(f".{ending}")), None)
        if any(key.endswith(f".{direction}") for direction in _GAIN.values()):
            continue
        new = key
        if gain is not None:
            stem = key.removesuffix(gain)
            direction = tensors.get(stem + _GAIN[gain])
            if direction is None:
                raise UserError(f"{path}: {key} has no {stem}{_GAIN[gain]} beside it")
            value, new = fold(value, direction), f"{stem}weight"
        new = _rename(new, _VOCODER)
        folded[new], names[new] = value, key
    if "vocoder.unit_embedding.weight" not in folded:
        raise UserError(f"{path}: no unit vocoder: it has no code_generator.dict.weight")
    return folded, names


def fold(gain: Tensor, direction: Tensor) -> Tensor:
    """Weight normalisation as one weight: g v / |v|, the norm over all axes but the first (Salimans and Kingma 2016).

    The first axis of a transposed convolution is that of its input.
    """
    v = direction.float()
    return (v * (gain.float() / torch.norm_except_dim(v, 2, 0))).to(direction.dtype)


def _from_fairseq(state: dict[str, Tensor], characters: list[str] | None, rows: int | None, path: Path) -> None:
    """Bring the rows of a fairseq file into the order of the tokenizers."""
    table = state["lm_head.weight"]
    wanted = rows or (_ROWS if table.shape[0] == _ROWS + 1 else table.shape[0])
    if table.shape[0] == wanted + 1:  # a token that fairseq added by mistake to the vocabulary of NLLB-100
        table = table[:-1]
    table = table.clone()
    table[: len(_FAIRSEQ_CONTROLS)] = table[_FAIRSEQ_CONTROLS]
    # The file has this matrix up to three times, that of units twice: the original takes those of the output layers.
    for key in ("lm_head.weight", "text_decoder.embed_tokens.weight", "text_encoder.embed_tokens.weight"):
        if key in state:
            state[key] = table
    unit = "t2u_model.model.decoder.embed_tokens.weight"
    if unit in state:
        state[unit] = state["t2u_model.lm_head.weight"]
    spelling = "t2u_model.model.decoder.embed_char.weight"
    if spelling not in state:
        return
    if characters is None:
        raise UserError(
            f"{path}: its characters stand in the order of fairseq's dictionary: give char_tokenizer, the "
            f"SentencePiece model of characters ({_CHARACTERS})"
        )
    if state[spelling].shape[0] < len(characters):
        raise UserError(f"{path}: has {state[spelling].shape[0]} characters, char_tokenizer {len(characters)}")
    # fairseq's dictionary is sorted behind its four controls.
    place = {name: row for row, name in enumerate(sorted(characters[4:]), start=4)}
    order = torch.tensor([*range(4), *(place[name] for name in characters[4:])])
    moved = state[spelling].clone()
    moved[: len(order)] = moved[order]
    state[spelling] = moved


_CHARACTERS = "spm_char_lang38_tc.model"


def _characters(path: str | Path | None, model: Path) -> list[str] | None:
    """Characters of a SentencePiece model by id: pad, unk, bos, eos, then its pieces; None where there is none."""
    chosen = model.parent / _CHARACTERS if path is None else Path(path)
    if path is None and not chosen.exists():
        return None
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(chosen))  # pyright: ignore[reportCallIssue]
    except (OSError, RuntimeError) as error:
        raise UserError(f"char_tokenizer={chosen}: no SentencePiece model ({error})") from None
    return ["<pad>", *(pieces.id_to_piece(number) for number in range(pieces.get_piece_size()))]


def _tokenizer(
    path: str | Path | None, model: Path, characters: list[str] | None, languages: Sequence[str] | None, rows: int
) -> tuple[dict[str, Any], Any] | None:
    """Config node and tokenizer, or None where there is no file of it."""
    chosen = model.parent / "tokenizer.model" if path is None else Path(path)
    if path is None and not chosen.exists():
        return None
    if languages is None and rows != _ROWS:
        raise UserError(f"{model}: has {rows} text ids, so it is not large: give its `languages`, in order")
    node: dict[str, Any] = {
        "_target_": "voxzoo.components.SentencePieceTokenizer",
        "model": str(chosen.absolute()),
        "languages": [*(LANGUAGES if languages is None else languages)],
        "vocab_size": rows,
        "layout": "seamless_m4t",
        "normaliser": "sentencepiece",
        "train": False,
    }
    tokenizer = build_part("tokenizer", node, model)
    if characters is not None:
        # The vocabulary goes with the tokenizer's bytes; the file is needed no longer than here.
        texts = {str(number): text for number, text in enumerate(tokenizer.pieces()) if text}
        table = {"char_to_id": {name: number for number, name in enumerate(characters)}, "id_to_text": texts}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "characters.json"
            file.write_text(json.dumps(table), encoding="utf-8")
            tokenizer = build_part("tokenizer", {**node, "characters": str(file)}, model)
    return node, tokenizer


def _settings(state: Mapping[str, Tensor], version: int, path: Path) -> dict[str, Any]:
    """transformers' config.json of these tensors."""

    def size(key: str, axis: int = 0, default: int | None = None) -> int:
        if key in state:
            return state[key].shape[axis]
        if default is None:
            raise UserError(f"{path}: has no {key} under any of its names; it is not a whole SeamlessM4T model")
        return default

    def layers(prefix: str) -> int:
        found = (re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", key) for key in state)
        return max((int(match.group(1)) + 1 for match in found if match), default=0)

    dim = size("lm_head.weight", 1)
    first = "speech_encoder.encoder.layers.0."
    heads = max(dim // 64, 1)
    settings: dict[str, Any] = {
        "model_type": "seamless_m4t" if version == 1 else "seamless_m4t_v2",
        "hidden_size": dim,
        "vocab_size": size("lm_head.weight"),
        "pad_token_id": 0,
        "activation_function": "relu",
        "tie_word_embeddings": True,
        "scale_embedding": True,
        "feature_projection_input_dim": size("speech_encoder.feature_projection.projection.weight", 1),
        "speech_encoder_layers": layers("speech_encoder.encoder."),
        "speech_encoder_intermediate_size": size(f"{first}ffn1.intermediate_dense.weight"),
        "conv_depthwise_kernel_size": size(f"{first}conv_module.depthwise_conv.weight", -1),
        "adaptor_kernel_size": size("speech_encoder.adapter.layers.0.residual_conv.weight", -1),
        "adaptor_stride": size("speech_encoder.adapter.layers.0.residual_conv.weight", -1),
        "num_adapter_layers": layers("speech_encoder.adapter."),
        "sampling_rate": 16000,
        "variance_predictor_kernel_size": size("vocoder.dur_predictor.conv1.weight", -1, 3),
        "var_pred_dropout": 0.5,
        "leaky_relu_slope": 0.1,
        **_vocoder_settings(state),
    }
    for side in ("encoder", "decoder"):
        settings[f"{side}_layers"] = layers(f"text_{side}.")
        settings[f"{side}_attention_heads"] = settings[f"t2u_{side}_attention_heads"] = heads
        inner = size("text_decoder.layers.0.ffn.fc1.weight")
        settings[f"{side}_ffn_dim"] = size(f"text_{side}.layers.0.ffn.fc1.weight", default=inner)
        settings[f"t2u_{side}_layers"] = layers(f"t2u_model.model.{side}.")
        settings[f"t2u_{side}_ffn_dim"] = size("t2u_model.model.encoder.layers.0.ffn.fc1.weight", default=dim)
    settings["t2u_vocab_size"] = size("t2u_model.lm_head.weight", default=_UNIT_ROWS)
    if version == 1:
        settings["speech_encoder_attention_heads"] = size(f"{first}self_attn.pos_bias_u")
        settings["position_embeddings_type"] = "relative"
        return settings
    distances, width = state[f"{first}self_attn.distance_embedding.weight"].shape
    predictor = "t2u_model.model.decoder.duration_predictor.conv1.weight"
    return {
        **settings,
        "speech_encoder_attention_heads": dim // width,
        "position_embeddings_type": "relative_key",
        "left_max_position_embeddings": distances - 9,
        "right_max_position_embeddings": 8,
        "speech_encoder_chunk_size": 20000,
        "speech_encoder_left_chunk_num": 128,
        "char_vocab_size": size("t2u_model.model.decoder.embed_char.weight", default=1),
        "t2u_variance_predictor_embed_dim": dim,
        "t2u_variance_predictor_hidden_dim": size(predictor, default=256),
        "t2u_variance_predictor_kernel_size": size(predictor, -1, 3),
    }


def _vocoder_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    def shape(key: str, default: Sequence[int]) -> Sequence[int]:
        return state[f"vocoder.{key}"].shape if f"vocoder.{key}" in state else default

    stages = _numbered(state, "vocoder.hifi_gan.upsampler.{}.weight")
    blocks = _numbered(state, "vocoder.hifi_gan.resblocks.{}.convs1.0.weight")
    units, unit_dim = shape("unit_embedding.weight", (10000, 1280))
    langs, lang_dim = shape("language_embedding.weight", (36, 256))
    speakers, speaker_dim = shape("speaker_embedding.weight", (200, 256))
    kernels = [block.shape[-1] for block in blocks[: len(blocks) // max(len(stages), 1)]]
    return {
        "unit_hifi_gan_vocab_size": units,
        "unit_embed_dim": unit_dim,
        "vocoder_num_langs": langs,
        "lang_embed_dim": lang_dim,
        "vocoder_num_spkrs": speakers,
        "spkr_embed_dim": speaker_dim,
        "upsample_initial_channel": shape("hifi_gan.conv_pre.weight", (512,))[0],
        "upsample_rates": [5, 4, 4, 2, 2],
        "upsample_kernel_sizes": [stage.shape[-1] for stage in stages] or [11, 8, 8, 4, 4],
        "resblock_kernel_sizes": kernels or [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5] for _ in kernels or range(3)],
    }


def _numbered(state: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    found = []
    while pattern.format(len(found)) in state:
        found.append(state[pattern.format(len(found))])
    return found


def _rename(key: str, table: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in table:
        key = pattern.sub(new, key)
    return key


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or other is None or one is other or torch.equal(one, other)


def _pickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint of the original SeamlessM4T code (.pt)")
    # Published files hold the settings of the training beside the tensors.
    return read_pickle(path, settings=SETTINGS_CLASSES)
