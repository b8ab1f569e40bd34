"""SeamlessM4T v1 (`SeamlessM4TModel` and its classes for single tasks), and what v2 shares with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UserError
from ..layers.unit_vocabulary import OFFSET
from . import transformer
from .code_hifi_gan import vocoder_rules
from .conformer import adaptor_rules, encoder_rules
from .family import Family, Nodes
from .files import Weights
from .generation import longest_of, search_node
from .keymap import KeyMap, Rule
from .settings import (
    activation,
    expect,
    fbank,
    parts_of,
    read_json_if,
    refuse_unless,
    value,
    with_defaults,
    write_fbank,
    write_json,
)
from .tokenizers import export_tokenizer_files, generation_entries, tokenizer_node

Fields = dict[str, str]
"""Constructor argument -> key of config.json."""

_ENCODER: Fields = {
    "input_dim": "feature_projection_input_dim",
    "dim": "hidden_size",
    "num_layers": "speech_encoder_layers",
    "num_heads": "speech_encoder_attention_heads",
    "ffn_dim": "speech_encoder_intermediate_size",
    "kernel_size": "conv_depthwise_kernel_size",
}
_ADAPTOR: Fields = {
    "input_dim": "hidden_size",
    "output_dim": "hidden_size",
    "kernel_size": "adaptor_kernel_size",
    "stride": "adaptor_stride",
    "num_layers": "num_adapter_layers",
    "num_heads": "speech_encoder_attention_heads",
    "ffn_dim": "speech_encoder_intermediate_size",
}
_TEXT: Fields = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_heads": "decoder_attention_heads",
    "ffn_dim": "decoder_ffn_dim",
    "num_decoder_layers": "decoder_layers",
    "activation": "activation_function",
    "tie_output": "tie_word_embeddings",
    "scale_embeddings": "scale_embedding",
    "pad_id": "pad_token_id",
}
_TEXT_ENCODER: Fields = {
    "num_heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_dim",
    "num_encoder_layers": "encoder_layers",
}
_T2U: Fields = {
    "input_dim": "hidden_size",
    "num_units": "unit_hifi_gan_vocab_size",
    "dim": "hidden_size",
    "num_encoder_layers": "t2u_encoder_layers",
    "num_decoder_layers": "t2u_decoder_layers",
    "vocab_size": "t2u_vocab_size",
    "activation": "activation_function",
}
_T2U_BOTH: Fields = {"num_heads": "attention_heads", "ffn_dim": "ffn_dim"}
_VOCODER: Fields = {
    "num_units": "unit_hifi_gan_vocab_size",
    "unit_dim": "unit_embed_dim",
    "num_langs": "vocoder_num_langs",
    "lang_dim": "lang_embed_dim",
    "num_speakers": "vocoder_num_spkrs",
    "speaker_dim": "spkr_embed_dim",
    "channels": "upsample_initial_channel",
    "upsample_rates": "upsample_rates",
    "upsample_kernels": "upsample_kernel_sizes",
    "resblock_kernels": "resblock_kernel_sizes",
    "resblock_dilations": "resblock_dilation_sizes",
    "slope": "leaky_relu_slope",
    "duration_kernel": "variance_predictor_kernel_size",
    "dropout": "var_pred_dropout",
    "sample_rate": "sampling_rate",
}
_PARTS = {"speech_encoder": "speech_encoder.", "adaptor": "speech_encoder.adapter.", "t2u": "t2u_model.",
          "vocoder": "vocoder."}  # fmt: skip


UNIT_MATRICES = ("t2u_model.model.decoder.embed_tokens.weight", "t2u_model.lm_head.weight")
"""Embedding and output layer of the second pass."""


class SeamlessM4T(Family):
    """v1. Classes for single tasks lack parts: what is built follows from the keys that the weights have."""

    model_types = ("seamless_m4t",)
    name: ClassVar[str] = "SeamlessM4T"
    version: ClassVar[int] = 1
    positions: ClassVar[dict[Any, str]] = {"relative": "relative", None: "none", "none": "none"}
    t2u_eos: ClassVar[str] = "keep"
    unread_keys: ClassVar[tuple[str, ...]] = ()
    """Published matrices that nothing reads, where they are not one with another."""

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        self.refuse(settings)
        generation = read_json_if(folder, "generation_config.json")
        keys = _keys(folder)
        has = {role: keys is None or any(key.startswith(prefix) for key in keys) for role, prefix in _PARTS.items()}
        has_encoder = keys is None or any(key.startswith("text_encoder.layers.") for key in keys)
        nodes: Nodes = {}
        if has["speech_encoder"]:
            nodes["frontend"] = self.frontend(settings, folder)
        nodes["tokenizer"] = tokenizer_node(folder, settings)
        if has["speech_encoder"]:
            nodes["speech_encoder"] = self.speech_encoder(settings)
            nodes["adaptor"] = self.adaptor(settings)
        nodes["text_seq2seq"] = self.text(settings, has_encoder)
        if has["t2u"]:
            nodes["t2u"] = {**self.t2u(settings, generation), **self.t2u_output(settings, folder)}
        if has["vocoder"]:
            nodes["vocoder"] = self.vocoder(settings)
        nodes["task"] = self.task(settings, generation, nodes)
        return {role: node for role, node in nodes.items() if node}

    def refuse(self, settings: dict[str, Any]) -> None:
        """Refuse what no part has."""
        position = settings.get("position_embeddings_type", next(iter(self.positions)))
        if position not in self.positions:
            raise UserError(f"position_embeddings_type={position!r}: expected one of {[*self.positions]}")
        for key, expected in (
            ("layer_norm_eps", 1e-5),
            ("add_adapter", True),
            ("eos_token_id", 3),
            ("decoder_start_token_id", 3),
            ("t2u_bos_token_id", 0),
            ("t2u_pad_token_id", 1),
            ("t2u_eos_token_id", 2),
            ("t2u_decoder_start_token_id", 2),
            ("vocoder_offset", 4),
        ):
            refuse_unless(settings, key, expected)
        refuse_unless(settings, "speech_encoder_hidden_act", "swish", "silu")
        activation(settings, "activation_function", "relu")
        layerdrop = settings.get("decoder_layerdrop", 0.05)
        if settings.get("encoder_layerdrop", layerdrop) != layerdrop:
            raise UserError(
                f"encoder_layerdrop={settings['encoder_layerdrop']} and decoder_layerdrop={layerdrop}: expected to be "
                "equal, as in all published models"
            )
        kernel, stride = settings.get("adaptor_kernel_size", 8), settings.get("adaptor_stride", 8)
        if kernel // 2 != stride // 2:
            raise UserError(
                f"adaptor_kernel_size={kernel}, adaptor_stride={stride}: transformers pads by half the stride and "
                "counts lengths by half the kernel; only where both are the same can the model be converted"
            )

    def frontend(self, settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        node = fbank(folder)
        if node["output_dim"] == value(settings, "feature_projection_input_dim"):
            return node
        if folder is not None and (folder / "preprocessor_config.json").exists():
            raise UserError(
                f"{folder}/preprocessor_config.json gives {node['output_dim']} features a step, but config.json says "
                f"feature_projection_input_dim={settings['feature_projection_input_dim']}"
            )
        return {}

    def speech_encoder(self, settings: dict[str, Any]) -> dict[str, Any]:
        dropout = settings.get("speech_encoder_dropout", 0.0)
        return {
            "_target_": "voxzoo.components.ConformerEncoder",
            **read(settings, _ENCODER),
            "position": self.positions[settings.get("position_embeddings_type", next(iter(self.positions)))],
            **self.convolution(settings),
            **({"padding_in_norm": True} if self.version == 1 else {}),
            "final_norm": True,
            "intermediate_ffn": True,
            # Dropped twice there: behind the projection, and again before the first block.
            "input_dropout": 1 - (1 - dropout) ** 2,
            "dropout": dropout,
            "attention_dropout": dropout,
            "activation_dropout": dropout,
            "conv_dropout": dropout,
            "layer_drop": settings.get("speech_encoder_layerdrop", 0.1),
        }

    def convolution(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What tells v1's encoder from v2's."""
        return {"causal_conv": False, "conv_norm": "batch"}

    def adaptor(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {
            "_target_": "voxzoo.components.ConformerAdaptor",
            **read(settings, _ADAPTOR),
            "dropout": settings.get("adaptor_dropout", 0.1),
            "attention_dropout": settings.get("speech_encoder_dropout", 0.0),
            "ffn_inner_dropout": None,
            "final_norm": True,
            "leak_padding": True,
        }

    def text(self, settings: dict[str, Any], has_encoder: bool) -> dict[str, Any]:
        node = read(settings, _TEXT)
        if has_encoder:
            for ours, theirs in _TEXT_ENCODER.items():
                found = value(settings, theirs)
                if node.setdefault(ours, found) != found:
                    raise UserError(f"{theirs}={found}: expected {node[ours]}, as the decoder has it")
        return {
            "_target_": "voxzoo.components.TransformerSeq2Seq",
            **node,
            "num_encoder_layers": node.get("num_encoder_layers", 0),
            **dropouts(settings),
            "tie_embeddings": True,
            "position_start": node["pad_id"] + 1,
        }

    def t2u(self, settings: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
        refuse_unless(settings, "scale_embedding", True)
        first, languages = _languages(generation, "t2u_lang_code_to_id")
        longest = settings.get("t2u_max_new_tokens", 1024)
        return {
            "_target_": "voxzoo.components.AutoregressiveT2U",
            **read(settings, _T2U),
            **_both(settings),
            "num_languages": len(languages),
            "first_language_id": first if languages else None,
            "default_language": languages.index("eng") if "eng" in languages else None,
            "label_smoothing": 0.0,
            "score": "generated",
            **dropouts(settings),
            "beam_size": search_node(
                {"num_beams": settings.get("t2u_num_beams", generation.get("num_beams"))},
                score="generated",
                longest=longest,
                prompt=0,
            )["beam_size"],
            "min_length": 0,
            "max_length": longest,
            "max_length_a": 0.0,
            "max_length_b": longest,
            "early_stopping": False,
            "force_eos": False,
            "eos_step": True,
        }

    def t2u_output(self, settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        """Whether the second pass has an output layer of its own, which one switch allows for both passes: what two
        equal matrices are is one here."""
        return {"tie_output": value(settings, "tie_word_embeddings") or not _two_matrices(folder, *UNIT_MATRICES)}

    def vocoder(self, settings: dict[str, Any]) -> dict[str, Any]:
        if self.version == 1:
            # Its second convolution is padded for this one, whatever the config says.
            refuse_unless(settings, "variance_predictor_kernel_size", 3)
        return {
            "_target_": "voxzoo.components.CodeHiFiGAN",
            **read(settings, _VOCODER),
            "default_speaker": 0,
            "predict_durations": "always",
            "published_lengths": True,
        }

    def task(self, settings: dict[str, Any], generation: dict[str, Any], nodes: Nodes) -> dict[str, Any]:
        common = {"label_smoothing": 0.0, "loss_on_lang_token": True, "search": _search(settings, generation)}
        speaks = "t2u" in nodes and "vocoder" in nodes
        if "speech_encoder" not in nodes and not speaks:
            return {"_target_": "voxzoo.tasks.TextToText", **common}
        common["ctc_weight"] = 0.0
        if not speaks:
            return {"_target_": "voxzoo.tasks.SpeechToText", **common}
        return {
            "_target_": "voxzoo.tasks.SpeechToSpeechUnitY",
            **common,
            "t2u_input": "all",
            "t2u_eos": self.t2u_eos,
            "t2u_languages": self.t2u_languages(generation),
            "vocoder_languages": _languages(generation, "vocoder_lang_code_to_id")[1],
            "speaker": None,
        }

    def t2u_languages(self, generation: dict[str, Any]) -> list[str]:
        return _languages(generation, "t2u_lang_code_to_id")[1]

    def key_map(self, nodes: Nodes) -> KeyMap:
        tie = nodes["text_seq2seq"].get("tie_output", True)
        embeddings = ("shared.weight", "text_decoder.embed_tokens.weight", "text_encoder.embed_tokens.weight")
        rules = [
            *adaptor_rules("speech_encoder."),
            *encoder_rules("speech_encoder.", "batch" if self.version == 1 else "layer"),
            *transformer.encoder_rules("text_seq2seq.encoder.", "text_encoder.", "m4t"),
            *transformer.decoder_rules("text_seq2seq.decoder.", "text_decoder.", "m4t"),
            *transformer.embedding_rules("text_seq2seq.decoder.", *embeddings, output="lm_head.weight", tie_output=tie),
            *self.t2u_rules(nodes, tie),
            *vocoder_rules("vocoder."),
        ]
        # Tables of positions, in files of older versions.
        left = [r".*embed_(char_)?positions\.weights", *map(re.escape, self.unread_keys)]
        # The aligner of UnitY2 makes durations to train on; published weights have none.
        only_ours = [r"t2u\.aligner\..*"]
        return KeyMap(rules, left, only_ours=only_ours) if tie else _Untied(rules, left, only_ours=only_ours)

    def t2u_rules(self, nodes: Nodes, tie: bool) -> list[Rule]:
        """Of the second pass. `tie`: whether the text's output layer is its embedding."""
        embedding, output = UNIT_MATRICES
        tie = (nodes.get("t2u") or {}).get("tie_output", True)
        return [
            *transformer.encoder_rules("t2u.encoder.", "t2u_model.model.encoder.", "m4t"),
            *transformer.decoder_rules("t2u.decoder.", "t2u_model.model.decoder.", "m4t"),
            *transformer.embedding_rules("t2u.decoder.", embedding, output=output, tie_output=tie),
        ]

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        """See `Family.settings`. What differs between implementations over the same weights (`compat`) has no place in
        the layout: transformers has its own value for it (`fidelity.compare`)."""
        nodes = parts_of(nodes, self.name, ("text_seq2seq", *_PARTS))
        fixed = {"key_bias": True, "max_positions": None, "tie_embeddings": True, "pad_id": 0}
        expect(nodes, "text_seq2seq", "TransformerSeq2Seq", **fixed)
        settings: dict[str, Any] = {}
        text = nodes["text_seq2seq"]
        write(settings, nodes, "text_seq2seq", _TEXT)
        if text["num_encoder_layers"]:
            write(settings, nodes, "text_seq2seq", _TEXT_ENCODER)
        settings.update(
            dropout=text["dropout"],
            attention_dropout=text["attention_dropout"],
            activation_dropout=text["activation_dropout"],
            encoder_layerdrop=text["layerdrop"],
            decoder_layerdrop=text["layerdrop"],
        )
        if "speech_encoder" in nodes:
            self._speech_settings(settings, nodes)
        if "t2u" in nodes:
            self.t2u_settings(settings, nodes)
        if "vocoder" in nodes:
            expect(nodes, "vocoder", "CodeHiFiGAN", final_slope=0.01)
            write(settings, nodes, "vocoder", _VOCODER)
        settings["architectures"] = [self._architecture(nodes)]
        return settings

    def _speech_settings(self, settings: dict[str, Any], nodes: Nodes) -> None:
        fixed = {key: found for key, found in self.convolution({}).items() if key in ("causal_conv", "conv_norm")}
        if self.version == 1:
            fixed["chunk_size"] = None
        expect(nodes, "speech_encoder", "ConformerEncoder", final_norm=True, intermediate_ffn=True, **fixed)
        expect(nodes, "adaptor", "ConformerAdaptor", final_norm=True)
        encoder, adaptor = nodes["speech_encoder"], nodes["adaptor"]
        write(settings, nodes, "speech_encoder", _ENCODER)
        write(settings, nodes, "adaptor", _ADAPTOR)
        names = {ours: theirs for theirs, ours in self.positions.items()}
        if encoder["position"] not in names:
            raise UserError(f"speech_encoder.position={encoder['position']}: {self.name} has {', '.join(names)}")
        settings.update(
            position_embeddings_type=names[encoder["position"]],
            speech_encoder_dropout=encoder["dropout"],
            speech_encoder_layerdrop=encoder["layer_drop"],
            adaptor_dropout=adaptor["dropout"],
            add_adapter=True,
            **self.encoder_settings(encoder),
        )

    def kept(self, nodes: Nodes, came_from: bool) -> tuple[Nodes, dict[str, str]]:
        """Of the classes, only the one that speaks has both encoders: without a second pass the text encoder stays
        behind."""
        text = nodes.get("text_seq2seq") or {}
        both = "speech_encoder" in nodes and with_defaults(text).get("num_encoder_layers", 0)
        if not both or ("t2u" in nodes and "vocoder" in nodes):
            return nodes, {}
        why = f"{self.name}ForSpeechToText has no text encoder; the run keeps it"
        return {**nodes, "text_seq2seq": {**text, "num_encoder_layers": 0}}, {"text_seq2seq.encoder": why}

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        write_fbank(nodes, folder)

    def export_tokenizer(self, tokenizer: Any, nodes: Nodes, folder: Path) -> None:
        """Also writes generation_config.json (languages, and the characters of v2)."""
        export_tokenizer_files(tokenizer, folder)
        longest = (nodes.get("task", {}).get("search") or {}).get("max_length", 256)
        generation = {
            **generation_entries(tokenizer),
            **_generation(nodes),
            "pad_token_id": tokenizer.pad_id,
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "decoder_start_token_id": tokenizer.eos_id,
            "max_new_tokens": longest,
        }
        write_json(folder / "generation_config.json", generation)

    def encoder_settings(self, encoder: dict[str, Any]) -> dict[str, Any]:
        """What only one version's encoder has."""
        return {}

    def t2u_settings(self, settings: dict[str, Any], nodes: Nodes) -> None:
        """Put in what the second pass says."""
        expect(nodes, "t2u", "AutoregressiveT2U")
        t2u = nodes["t2u"]
        if not t2u["tie_output"]:  # one switch for both; the other way round both copies of one matrix are written
            write(settings, nodes, "t2u", {"tie_output": "tie_word_embeddings"})
        if t2u["vocab_size"] is None:
            first = t2u["first_language_id"] or t2u["num_units"] + OFFSET
            t2u["vocab_size"] = first + t2u["num_languages"]
        write(settings, nodes, "t2u", _T2U)
        for side in ("encoder", "decoder"):
            write(settings, nodes, "t2u", {ours: f"t2u_{side}_{theirs}" for ours, theirs in _T2U_BOTH.items()})
        settings["t2u_max_new_tokens"] = nodes["t2u"]["max_length"]

    def _architecture(self, nodes: Nodes) -> str:
        """The class of transformers with these parts."""
        reads, writes = "speech_encoder" in nodes, "t2u" in nodes and "vocoder" in nodes
        has_encoder = nodes["text_seq2seq"]["num_encoder_layers"] > 0
        if not (reads or has_encoder):
            raise UserError(f"a {self.name} model needs a speech_encoder or a text encoder")
        if reads and has_encoder:
            return f"{self.name}Model"
        return f"{self.name}For{'Speech' if reads else 'Text'}To{'Speech' if writes else 'Text'}"


def write(settings: dict[str, Any], nodes: Nodes, role: str, fields: Fields) -> None:
    """Put the values of a node where config.json has them; parts that share a key must agree."""
    for ours, theirs in fields.items():
        found = nodes[role][ours]
        if settings.setdefault(theirs, found) != found:
            raise UserError(
                f"{role}.{ours}={found!r}: another part has {settings[theirs]!r}, and the published layout has one "
                f"{theirs} for both"
            )


def _generation(nodes: Nodes) -> dict[str, Any]:
    """What generation_config.json says of the voices: ids of the languages of second pass and vocoder."""
    task, t2u = nodes.get("task", {}), nodes.get("t2u", {})
    voices = list(task.get("vocoder_languages") or ())
    if not voices:
        return {}
    # v2's second pass has no languages, but transformers wants to find them.
    first = t2u.get("first_language_id") or t2u.get("num_units", 0) + OFFSET
    units = list(task.get("t2u_languages") or voices)
    return {
        "t2u_lang_code_to_id": {lang: first + place for place, lang in enumerate(units)},
        "vocoder_lang_code_to_id": {lang: place for place, lang in enumerate(voices)},
    }


class _Untied(KeyMap):
    """A model whose output layer is a matrix of its own. transformers then takes no two matrices for one: each copy of
    the embeddings is written."""

    def save(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        written = super().save(ours)
        units, output = UNIT_MATRICES
        # One switch ties both output layers; where the second pass has one matrix here, both names get it.
        if units in written:
            written.setdefault(output, written[units])
        elif output in written:
            written[units] = written[output]
        if "shared.weight" in written:
            written["text_decoder.embed_tokens.weight"] = written["shared.weight"]
            if any(key.startswith("text_encoder.") for key in written):
                written["text_encoder.embed_tokens.weight"] = written["shared.weight"]
        return written


def _keys(folder: Path | None) -> set[str] | None:
    """Keys of the weights in a folder; None where there are none (a config alone)."""
    try:
        return None if folder is None else set(Weights(folder))
    except UserError:  # said when the weights are read
        return None


def _two_matrices(folder: Path | None, one: str, other: str) -> bool:
    """Whether a folder has both matrices and they differ."""
    keys = _keys(folder) or ()
    if folder is None or one not in keys or other not in keys:
        return False
    weights = Weights(folder)
    return not torch.equal(weights[one], weights[other])


def read(settings: dict[str, Any], fields: Fields) -> dict[str, Any]:
    return {ours: value(settings, theirs) for ours, theirs in fields.items()}


def _both(settings: dict[str, Any]) -> dict[str, Any]:
    """What encoder and decoder of the second pass have in common here."""
    found = {}
    for ours, theirs in _T2U_BOTH.items():
        found[ours] = value(settings, f"t2u_encoder_{theirs}")
        refuse_unless(settings, f"t2u_decoder_{theirs}", found[ours])
    return found


def dropouts(settings: dict[str, Any]) -> dict[str, Any]:
    inner = settings.get("activation_dropout", 0.0)
    return {
        "dropout": settings.get("dropout", 0.1),
        "attention_dropout": settings.get("attention_dropout", 0.1),
        "activation_dropout": inner,
        "ffn_dropout": inner,
        "layerdrop": settings.get("decoder_layerdrop", 0.05),
    }


def _languages(generation: dict[str, Any], key: str) -> tuple[int, list[str]]:
    """First id and languages in the order of their ids."""
    table = {lang: int(number) for lang, number in (generation.get(key) or {}).items()}
    languages = sorted(table, key=lambda lang: table[lang])
    first = min(table.values(), default=0)
    if [table[lang] for lang in languages] != [*range(first, first + len(table))]:
        raise UserError(f"generation_config.json: the ids in {key} have gaps; expected one after the other")
    return first, languages


def _search(settings: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Options under which `components.search` finds what transformers' `generate` finds."""
    found = {"max_new_tokens": settings.get("max_new_tokens"), **generation}
    return search_node(found, score="generated", longest=longest_of(found, 256), prompt=2)


FAMILY = SeamlessM4T()
