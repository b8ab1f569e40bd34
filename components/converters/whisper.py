"""Whisper (`WhisperForConditionalGeneration`): speech encoder, text decoder, byte-level BPE and log-mel front end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tokenizer.whisper import VOCABULARY, token_ids
from .family import Family, Nodes
from .generation import generation_content, longest_of, search_node
from .keymap import KeyMap, same, stack, within
from .settings import expect, parts_of, read_json_if, refuse_unless, value, write_json
from .transformer import decoder_rules, embedding_rules, encoder_rules

_ENCODER, _DECODER = "speech_encoder.transformer.layers.*.", "text_seq2seq.decoder.layers.*."
_KEYLESS = [
    stack("product.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight"),
    stack("bias", "q_proj.bias", "v_proj.bias"),
]
_KEYLESS_MEMORY = [stack("product.weight", "k_proj.weight", "v_proj.weight"), same("bias", "v_proj.bias")]
_TIMESTAMPS = 1501  # from 0 to 30 seconds, in steps of 0.02
_STEPS = 50  # of the encoder in a second: two frames of 10 ms each
_MULTILINGUAL = 51865  # rows of the smallest multilingual vocabulary; the English-only one has a row less


class Whisper(Family):
    model_types = ("whisper",)

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        refuse_unless(settings, "activation_function", "gelu")
        refuse_unless(settings, "scale_embedding", False)
        refuse_unless(settings, "tie_word_embeddings", True)
        dim, vocab_size = value(settings, "d_model"), value(settings, "vocab_size")
        positions = settings.get("max_target_positions", 448)
        generation = {**settings, **read_json_if(folder, "generation_config.json")}
        dropouts = {key: settings.get(key) or 0.0 for key in ("dropout", "attention_dropout", "activation_dropout")}
        multilingual = generation.get("is_multilingual", vocab_size >= _MULTILINGUAL)
        nodes: Nodes = {
            "frontend": _frontend(settings, read_json_if(folder, "preprocessor_config.json")),
            "speech_encoder": {
                "_target_": "voxzoo.components.WhisperEncoder",
                "input_dim": value(settings, "num_mel_bins"),
                "dim": dim,
                "num_layers": value(settings, "encoder_layers"),
                "num_heads": value(settings, "encoder_attention_heads"),
                "ffn_dim": value(settings, "encoder_ffn_dim"),
                **dropouts,
                "layer_drop": settings.get("encoder_layerdrop") or 0.0,
                "max_positions": settings.get("max_source_positions", 1500),
            },
            "adaptor": {"_target_": "voxzoo.components.NoAdaptor", "input_dim": dim, "output_dim": dim},
            "text_seq2seq": {
                "_target_": "voxzoo.components.TransformerSeq2Seq",
                "vocab_size": vocab_size,
                "dim": dim,
                "num_heads": value(settings, "decoder_attention_heads"),
                "ffn_dim": value(settings, "decoder_ffn_dim"),
                "num_encoder_layers": 0,
                "num_decoder_layers": value(settings, "decoder_layers"),
                **dropouts,
                "activation": "gelu",
                "layerdrop": settings.get("decoder_layerdrop") or 0.0,
                "scale_embeddings": False,
                "pad_id": value({"pad_token_id": 50256, **settings}, "pad_token_id"),
                "max_positions": positions,
                "key_bias": False,
            },
            "task": {
                "_target_": "voxzoo.tasks.SpeechToText",
                "ctc_weight": 0.0,
                "label_smoothing": 0.0,
                "loss_on_lang_token": True,
                "search": _search(generation, positions, 4 if multilingual else 2),
            },
        }
        names = ("tokenizer.json", VOCABULARY)
        path = next((folder / name for name in names if folder is not None and (folder / name).exists()), None)
        if path is not None:
            _refuse_others(path, generation, vocab_size)
            nodes["tokenizer"] = {
                "_target_": "voxzoo.components.WhisperTokenizer",
                "model": str(path),
                "vocab_size": vocab_size,
                "languages": [],
                "multilingual": bool(multilingual),
            }
        return nodes

    def key_map(self, nodes: Nodes) -> KeyMap:
        ours, theirs = "text_seq2seq.decoder.", "model.decoder."
        # Before the rules that all Transformers share: keys have no bias here.
        keyless = [
            rule
            for layer, side in ((_ENCODER, "model.encoder.layers.*."), (_DECODER, f"{theirs}layers.*."))
            for rule in within(f"{layer}self_attention.qkv.", f"{side}self_attn.", _KEYLESS)
        ]
        rules = [
            *keyless,
            *within(f"{_DECODER}memory_attention.kv.", f"{theirs}layers.*.encoder_attn.", _KEYLESS_MEMORY),
            same("speech_encoder.conv1.~", "model.encoder.conv1.~"),
            same("speech_encoder.conv2.~", "model.encoder.conv2.~"),
            same("speech_encoder.positions", "model.encoder.embed_positions.weight"),
            *encoder_rules("speech_encoder.transformer.", "model.encoder.", "m2m"),
            *embedding_rules(ours, f"{theirs}embed_tokens.weight", output="proj_out.weight"),
            same(f"{ours}embed.positions.weight", f"{theirs}embed_positions.weight"),
            *decoder_rules(ours, theirs, "m2m"),
        ]
        return KeyMap(rules, rename=[(r"^(encoder|decoder)\.", r"model.\1.")])  # WhisperModel has no prefix

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        nodes = parts_of(nodes, "whisper", ("speech_encoder", "text_seq2seq"))
        fixed = {"num_encoder_layers": 0, "activation": "gelu", "scale_embeddings": False, "key_bias": False,
                 "tie_output": True}  # fmt: skip
        expect(nodes, "speech_encoder", "WhisperEncoder")
        expect(nodes, "text_seq2seq", "TransformerSeq2Seq", **fixed)
        encoder, decoder = nodes["speech_encoder"], nodes["text_seq2seq"]
        if encoder["dim"] != decoder["dim"]:
            raise UserError(
                f"speech_encoder.dim={encoder['dim']}, text_seq2seq.dim={decoder['dim']}: the whisper layout has one "
                "width for both"
            )
        if decoder["max_positions"] is None:
            raise UserError("text_seq2seq.max_positions=None: the whisper layout has a table of positions (448)")
        return {
            "architectures": ["WhisperForConditionalGeneration"],
            "num_mel_bins": encoder["input_dim"],
            "d_model": decoder["dim"],
            "encoder_layers": encoder["num_layers"],
            "encoder_attention_heads": encoder["num_heads"],
            "encoder_ffn_dim": encoder["ffn_dim"],
            "max_source_positions": encoder["max_positions"],
            "vocab_size": decoder["vocab_size"],
            "decoder_layers": decoder["num_decoder_layers"],
            "decoder_attention_heads": decoder["num_heads"],
            "decoder_ffn_dim": decoder["ffn_dim"],
            "max_target_positions": decoder["max_positions"],
            "pad_token_id": decoder["pad_id"],
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
        }

    def special_ids(self, tokenizer: Any, nodes: Nodes) -> dict[str, Any]:
        if tokenizer is None:
            return {}
        ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
        return {**ids, "decoder_start_token_id": tokenizer.bos_id}

    def notes(self, nodes: Nodes) -> list[str]:
        if nodes.get("frontend", {}).get("pad_seconds", 30.0) is not None:
            return []
        return [
            f"frontend.pad_seconds=null: this model reads clips as long as they are, but transformers fills each one "
            f"up to {_seconds(nodes):g} s with silence, which the model was not trained on: expect other texts there"
        ]

    def export_tokenizer(self, tokenizer: Any, nodes: Nodes, folder: Path) -> None:
        """tokenizer.json, and the files that say what it is and how to generate."""
        (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
        end = "<|endoftext|>"
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "WhisperTokenizer", **{f"{role}_token": end for role in ("bos", "eos", "pad", "unk")}},
        )
        searched = generation_content(nodes)
        del searched["max_new_tokens"]  # `max_length` is all that its decoder has positions for
        generation = {
            **self.special_ids(tokenizer, nodes),
            "pad_token_id": tokenizer.pad_id,
            "max_length": nodes["text_seq2seq"].get("max_positions"),
            **searched,
            "is_multilingual": tokenizer.multilingual,
            "return_timestamps": False,
            **tokenizer.generation_ids(),
        }
        write_json(folder / "generation_config.json", {key: v for key, v in generation.items() if v not in (None, [])})

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        if not (nodes.get("frontend") or {}).get("_target_"):
            return
        preprocessor = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": nodes["speech_encoder"].get("input_dim", 80),
            "sampling_rate": 16000,
            "n_fft": 400,
            "hop_length": 160,
            "chunk_length": round(_seconds(nodes)),
        }
        write_json(folder / "preprocessor_config.json", preprocessor)


def _seconds(nodes: Nodes) -> float:
    """What transformers fills clips up to: what the front end does, or else what the encoder has positions for."""
    found = nodes.get("frontend", {}).get("pad_seconds", 30.0)
    return found or nodes["speech_encoder"].get("max_positions", 1500) / _STEPS


def _refuse_others(path: Path, generation: dict[str, Any], vocab_size: int) -> None:
    """Refuse the tokenizer of another Whisper: with a language more or less, all controls have other ids."""
    ids = token_ids(path)
    told = {
        "<|notimestamps|>": generation.get("no_timestamps_token_id"),
        **(generation.get("lang_to_id") or {}),
        **{f"<|{task}|>": number for task, number in (generation.get("task_to_id") or {}).items()},
    }
    for token, number in told.items():
        if number is not None and ids.get(token) != number:
            raise UserError(
                f"{path}: {token} is {ids.get(token, 'no token')} there, but generation_config.json says {number}: the "
                "files are of different models"
            )
    rows = max(ids.values(), default=-1) + 1
    # Older files leave out the timestamps, which come last.
    spare = 0 if "<|0.00|>" in ids else _TIMESTAMPS
    if not rows <= vocab_size <= rows + spare:
        raise UserError(
            f"{path}: the tokenizer has {rows} ids{' and room for timestamps' if spare else ''}, but the model's "
            f"vocab_size is {vocab_size}: they do not belong together"
        )


def _frontend(settings: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    for key, expected in (("sampling_rate", 16000), ("n_fft", 400), ("hop_length", 160), ("dither", 0.0)):
        refuse_unless(found, key, expected)
    bins = found.get("feature_size", value(settings, "num_mel_bins"))
    # What the encoder has positions for, where no file says it.
    seconds = found.get("chunk_length", settings.get("max_source_positions", 1500) / _STEPS)
    return {
        "_target_": "voxzoo.components.WhisperLogMel",
        "num_mel_bins": bins,
        "pad_seconds": float(seconds),
        "output_dim": bins,
    }


def _search(found: dict[str, Any], positions: int, prefix_length: int) -> dict[str, Any]:
    """How the folder says to generate. Whisper's `max_length` does not count the prefix, but its positions do."""
    longest = max(min(longest_of(found, positions), positions - prefix_length), 1)
    return search_node(found, score="generated", longest=longest, prompt=prefix_length)


FAMILY = Whisper()
