"""M2M-100 and the dense NLLB-200 (`M2M100ForConditionalGeneration`): text encoder and decoder over tied embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tokenizer import M2M100Tokenizer
from ..tokenizer.sentencepiece import SPECIALS
from .family import Family, Nodes
from .generation import generation_content, longest_of, search_node
from .keymap import KeyMap
from .m2m_100_tokenizer import export_vocabulary, is_of_2020, vocabulary_node
from .settings import activation, expect, parts_of, read_json_if, refuse_unless, value
from .tokenizers import export_tokenizer_files, tokenizer_node
from .transformer import decoder_rules, embedding_rules, encoder_rules

_LONGEST = 200  # tokens of an output, language token included, where no file says it: that of NLLB-200
_EMBEDDINGS = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


class M2M100(Family):
    model_types = ("m2m_100",)

    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        for key in ("attention_heads", "ffn_dim", "layerdrop"):
            _refuse_two(settings, f"encoder_{key}", f"decoder_{key}")
        refuse_unless(settings, "tie_word_embeddings", True)
        pad = value({"pad_token_id": 1, **settings}, "pad_token_id")
        nodes: Nodes = {
            "text_seq2seq": {
                "_target_": "voxzoo.components.TransformerSeq2Seq",
                "vocab_size": value(settings, "vocab_size"),
                "dim": value(settings, "d_model"),
                "num_heads": value(settings, "decoder_attention_heads"),
                "ffn_dim": value(settings, "decoder_ffn_dim"),
                "num_encoder_layers": value(settings, "encoder_layers"),
                "num_decoder_layers": value(settings, "decoder_layers"),
                "dropout": settings.get("dropout", 0.1),
                "attention_dropout": settings.get("attention_dropout", 0.1),
                "activation_dropout": settings.get("activation_dropout", 0.0),
                "activation": activation(settings, "activation_function", "relu"),
                "layerdrop": settings.get("decoder_layerdrop", 0.05),
                "scale_embeddings": settings.get("scale_embedding", True),
                "position_start": pad + 1,
                "pad_id": pad,
            },
            "task": {
                "_target_": "voxzoo.tasks.TextToText",
                "label_smoothing": 0.0,
                "loss_on_lang_token": True,
                "search": _search(settings, folder),
            },
        }
        if folder is not None and is_of_2020(folder):
            tokenizer = vocabulary_node(folder, settings)
        else:
            tokenizer = tokenizer_node(folder, settings)
        if tokenizer:
            nodes["tokenizer"] = tokenizer
        return nodes

    def key_map(self, nodes: Nodes) -> KeyMap:
        ours = "text_seq2seq."
        rules = [
            *embedding_rules(f"{ours}decoder.", *_EMBEDDINGS, output="lm_head.weight"),
            *encoder_rules(f"{ours}encoder.", "model.encoder.", "m2m"),
            *decoder_rules(f"{ours}decoder.", "model.decoder.", "m2m"),
        ]
        # Tables of positions, which older versions saved.
        return KeyMap(rules, left=[r"model\.(encoder|decoder)\.embed_positions\.weights?"])

    def settings(self, nodes: Nodes) -> dict[str, Any]:
        nodes = parts_of(nodes, "m2m_100", ("text_seq2seq",))
        fixed = {"tie_embeddings": True, "tie_output": True, "key_bias": True, "max_positions": None}
        expect(nodes, "text_seq2seq", "TransformerSeq2Seq", **fixed)
        model = nodes["text_seq2seq"]
        if not model["num_encoder_layers"]:
            raise UserError("text_seq2seq.num_encoder_layers=0: the m2m_100 layout has a text_seq2seq with an encoder")
        pad = model["pad_id"]
        expect(nodes, "text_seq2seq", "TransformerSeq2Seq", position_start=pad + 1)
        settings = {
            "architectures": ["M2M100ForConditionalGeneration"],
            "vocab_size": model["vocab_size"],
            "d_model": model["dim"],
            "encoder_layers": model["num_encoder_layers"],
            "decoder_layers": model["num_decoder_layers"],
            "scale_embedding": model["scale_embeddings"],
            "activation_function": model["activation"],
            "tie_word_embeddings": True,
            "pad_token_id": pad,
        }
        for side in ("encoder", "decoder"):
            settings[f"{side}_attention_heads"] = model["num_heads"]
            settings[f"{side}_ffn_dim"] = model["ffn_dim"]
        return settings

    def special_ids(self, tokenizer: Any, nodes: Nodes) -> dict[str, Any]:
        if tokenizer is None:  # of the two layouts there are, the one that numbers padding so
            ids = SPECIALS["nllb" if nodes["text_seq2seq"].get("pad_id", 0) else "seamless_m4t"]
            bos, eos = ids.bos, ids.eos
        else:
            bos, eos = tokenizer.bos_id, tokenizer.eos_id
        # Generation begins with eos, also in the layout of SeamlessM4T.
        return {"bos_token_id": bos, "eos_token_id": eos, "decoder_start_token_id": eos}

    def export_tokenizer(self, tokenizer: Any, nodes: Nodes, folder: Path) -> None:
        if isinstance(tokenizer, M2M100Tokenizer):
            export_vocabulary(tokenizer, folder)
        else:
            export_tokenizer_files(tokenizer, folder)
        content = {
            "bos_token_id": tokenizer.bos_id,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.eos_id,
            "decoder_start_token_id": tokenizer.eos_id,
            **generation_content(nodes, forced=1),  # the language token counts
        }
        (folder / "generation_config.json").write_text(json.dumps(content, indent=2) + "\n")


def _refuse_two(settings: dict[str, Any], encoder: str, decoder: str) -> None:
    """One number describes encoder and decoder of a `TransformerSeq2Seq`."""
    if settings.get(encoder) != settings.get(decoder):
        raise UserError(
            f"{encoder}={settings.get(encoder)} and {decoder}={settings.get(decoder)}: expected to be equal, "
            "as in all published models"
        )


def _search(settings: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """How the folder says to generate. Their lengths count the start token and the language, ours neither."""
    found = {**settings, **read_json_if(folder, "generation_config.json")}
    longest = max(longest_of(found, _LONGEST - 1, prompt=1) - 1, 1)
    return search_node(found, score="after_start", longest=longest, prompt=1, forced=1)


FAMILY = M2M100()
