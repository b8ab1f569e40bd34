"""Random models of every published layout, under random values of every switch of the table in components/README.md."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LANGUAGES = ["deu", "eng", "spa"]
SENTENCES = ["two small trains stop here, near the old house.", "where is it? no, no; 42!", "der Zug hält an."]
CHARACTERS = {"▁": 2, **{c: n for n, c in enumerate("abcdefghilmnoprstuyz.,;!?", start=3)}}
UNITS, SPARE = 23, 14  # units, and rows of their vocabulary that are none
Nodes = dict[str, dict[str, Any]]


@dataclass
class Drawn:
    """A random model.

    Attributes:
        nodes: with switches at random.
        plain: the same with the switches of transformers.
        state: weights of both.
        inputs: what both sides are given.
        options: how to search, for the other side.
    """

    layout: str
    nodes: Nodes
    plain: Nodes
    state: dict[str, Tensor]
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None


# Drawing


class Draw:
    """Random sizes, the same for a family and a seed."""

    def __init__(self, family: str, seed: int, folder: Path) -> None:
        self.random, self.seed, self.folder = random.Random(f"{family} {seed}"), seed, folder
        self.one = self.random.choice

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def heads(self, multiple: int = 2) -> tuple[int, int]:
        """Width and heads, the width of a head even."""
        heads = self.between(1, 4)
        return heads * multiple * self.between(2, 5), heads

    def probability(self) -> float:
        return round(self.random.uniform(0, 0.3), 2)

    def lengths(self, longest: int, shortest: int) -> list[int]:
        return [longest, *(self.between(min(shortest, longest), longest) for _ in range(self.between(1, 3)))]


def seamless(draw: Draw, version: int, roles: set[str] | None = None) -> Drawn:
    """SeamlessM4T v1 or v2, or one of the classes for a single task."""
    from voxzoo.components import SentencePieceTokenizer

    reads, writes = draw.one([("both", True), ("both", False), ("speech", True), ("speech", False), ("text", True),
                              ("text", False)]) if roles is None else ("text", True)  # fmt: skip
    if (reads, writes) == ("both", False):  # a class that there is not: the text encoder stays behind
        reads = "speech"
    dim, heads = draw.heads()
    bins, stack = draw.between(3, 9), draw.between(1, 3)
    encoder_heads = draw.one([n for n in range(1, 5) if dim % (2 * n) == 0])
    stride = draw.between(1, 4)
    ffn, layers = draw.between(9, 50), draw.between(1, 3)
    dropout, adaptor_dropout = draw.probability(), draw.probability()
    chunk, left, span = draw.one([None, 5, 8, 20]), draw.one([None, 0, 1, 2]), draw.one([3, 9, 64])
    own = (
        {"position": draw.one(["relative", "none"]), "causal_conv": False, "conv_norm": "batch"}
        if version == 1
        else {"position": draw.one(["relative_key", "none"]), "causal_conv": True, "conv_norm": "layer",
              "left_context": span, "right_context": draw.between(0, 9), "chunk_size": chunk, "left_chunks": left}
    )  # fmt: skip
    adaptor_layers = draw.one([1, 1, 2])
    model = str(sentencepiece(draw.folder))
    size = 1 + SentencePieceTokenizer(model, LANGUAGES, 200).num_pieces + len(LANGUAGES) + draw.between(0, 5)
    spelled = str(characters(draw.folder)) if version == 2 else None
    tokenizer = SentencePieceTokenizer(model, LANGUAGES, size, characters=spelled)
    activation = draw.one(["relu", "gelu", "silu", "swish"])
    nodes: Nodes = {
        "frontend": part("Fbank", num_mel_bins=bins, stack=stack, output_dim=bins * stack),
        "speech_encoder": part(
            "ConformerEncoder", input_dim=bins * stack, dim=dim, num_layers=draw.between(1, 3),
            num_heads=encoder_heads, ffn_dim=ffn, kernel_size=draw.one([3, 5, 9]), final_norm=True,
            intermediate_ffn=True, input_dropout=1 - (1 - dropout) ** 2, dropout=dropout, attention_dropout=dropout,
            activation_dropout=dropout, conv_dropout=dropout, **own,
        ),
        "adaptor": part(
            "ConformerAdaptor", input_dim=dim, output_dim=dim, num_heads=encoder_heads, ffn_dim=ffn,
            kernel_size=stride + (draw.one([0, 1]) if stride % 2 == 0 else 0), stride=stride,
            num_layers=adaptor_layers, dropout=adaptor_dropout, final_norm=True,
        ),
        "text_seq2seq": part(
            "TransformerSeq2Seq", vocab_size=tokenizer.vocab_size, dim=dim, num_heads=heads,
            ffn_dim=draw.between(9, 40), num_encoder_layers=0 if reads == "speech" else draw.between(1, 3),
            num_decoder_layers=layers, activation=activation, scale_embeddings=True,
            tie_output=draw.one([True, True, False]), dropout=draw.probability(), attention_dropout=draw.probability(),
        ),
        "task": {"_target_": "voxzoo.tasks.SpeechToText"},
    }  # fmt: skip
    if reads == "text":
        del nodes["frontend"], nodes["speech_encoder"], nodes["adaptor"]
        nodes["task"] = {"_target_": "voxzoo.tasks.TextToText"}
    if writes:
        t2u_heads = draw.one([n for n in range(1, 5) if dim % (2 * n) == 0])
        sizes = {"input_dim": dim, "num_units": UNITS, "dim": dim, "num_heads": t2u_heads,
                 "ffn_dim": draw.between(9, 30), "num_encoder_layers": draw.between(1, 2),
                 "num_decoder_layers": draw.between(1, 2), "vocab_size": 4 + UNITS + SPARE, "activation": activation,
                 "dropout": nodes["text_seq2seq"]["dropout"],
                 "attention_dropout": nodes["text_seq2seq"]["attention_dropout"]}  # fmt: skip
        nodes["t2u"] = (
            part("AutoregressiveT2U", **sizes, num_languages=3, first_language_id=4 + UNITS, max_length=19,
                 default_language=1,
                 tie_output=nodes["text_seq2seq"]["tie_output"] or draw.one([True, False]))
            if version == 1
            else part("UnitY2T2U", **sizes, num_characters=len(CHARACTERS) + 4, duration_dim=draw.between(4, 14),
                      duration_kernel_size=draw.one([3, 5]), aligner=draw.one([True, False]), aligner_dim=8)
        )  # fmt: skip
        nodes["vocoder"] = vocoder(draw, version)
        nodes["task"] = {
            "_target_": "voxzoo.tasks.SpeechToSpeechUnitY",
            "t2u_languages": LANGUAGES if version == 1 else [],
            "vocoder_languages": LANGUAGES[:2],
        }
    nodes["task"]["search"] = {"max_length": draw.between(5, 17), "length_penalty": draw.one([0.0, 0.6, 1.0, 2.0])}
    inputs: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(draw.seed)
    if reads != "text":
        longest = draw.between(30, 60)
        shortest = 9
        if version == 2 and chunk is not None and left is not None:  # see "chunks of the v2 encoder without a key"
            shortest = max((longest - 1) // chunk * chunk - left * chunk + 1, 9)
        padded = [] if adaptor_layers > 1 else [draw.lengths(longest, shortest)]
        inputs["speech"] = [
            [torch.randn(n, bins * stack, generator=generator) for n in lengths] for lengths in ([longest], *padded)
        ]
    if reads != "speech":
        rows = [[torch.randint(4, 1 + tokenizer.num_pieces, (n,), generator=generator) for n in lengths]
                for lengths in ([6], draw.lengths(9, 2))]  # fmt: skip
        ends = torch.tensor([tokenizer.lang_id("spa")]), torch.tensor([3])
        inputs["text"] = [[torch.cat([ends[0], row, ends[1]]) for row in batch] for batch in rows]
    if "vocoder" in nodes:
        inputs["units"] = [[torch.randint(0, UNITS, (n,), generator=generator) for n in lengths]
                           for lengths in ([7], [9, 4, 6])]  # fmt: skip
    layout = "seamless_m4t" if version == 1 else "seamless_m4t_v2"
    drawn = switched(draw, layout, nodes, inputs, tokenizer)
    search = drawn.plain["task"]["search"]
    drawn.options = {"max_new_tokens": search["max_length"], "length_penalty": search["length_penalty"],
                     "beams": draw.one([1, 3]), "language": tokenizer.lang_id("eng"),
                     "unspoken": [2, *range(1 + tokenizer.num_pieces, tokenizer.vocab_size)] if version == 2 else [],
                     "no_units": [0, 1, 3, *range(4 + UNITS, 4 + UNITS + SPARE)]}  # fmt: skip
    return drawn


def vocoder(draw: Draw, version: int) -> dict[str, Any]:
    stages, blocks = draw.between(1, 3), draw.between(1, 2)
    rates = [draw.between(2, 4) for _ in range(stages)]
    return part(
        "CodeHiFiGAN", num_units=UNITS, unit_dim=draw.between(4, 12), num_langs=2, lang_dim=draw.between(2, 6),
        num_speakers=draw.between(1, 5), speaker_dim=draw.between(2, 6), channels=4 * 2**stages,
        speakers={"deu": [0], "eng": [0]}, upsample_rates=rates,
        # What is cut off both ends has to be whole.
        upsample_kernels=[rate + 2 * draw.between(0, 2) for rate in rates],
        resblock_kernels=[draw.one([3, 5, 7]) for _ in range(blocks)],
        resblock_dilations=[[draw.between(1, 3), draw.between(1, 3)] for _ in range(blocks)],
        slope=draw.one([0.1, 0.2]), dropout=draw.probability(),
        duration_kernel=3 if version == 1 else draw.one([3, 5]),
    )  # fmt: skip


def code_hifi_gan(draw: Draw) -> Drawn:
    """The vocoder alone, in either layout: text is its smallest company."""
    return seamless(draw, draw.one([1, 2]), {"vocoder"})


def whisper(draw: Draw) -> Drawn:
    dim, heads = draw.heads()
    frames, mel, positions = 2 * draw.between(7, 30), draw.between(5, 20), draw.between(12, 40)
    vocab = draw.between(55, 80)
    nodes: Nodes = {
        "frontend": part("WhisperLogMel", num_mel_bins=mel, output_dim=mel),
        "speech_encoder": part(
            "WhisperEncoder", input_dim=mel, dim=dim, num_layers=draw.between(1, 4), num_heads=heads,
            ffn_dim=draw.between(9, 60), max_positions=frames // 2, dropout=draw.probability(),
        ),
        "text_seq2seq": part(
            "TransformerSeq2Seq", vocab_size=vocab, dim=dim, num_heads=draw.one([n for n in (1, 2, 4) if dim % n == 0]),
            ffn_dim=draw.between(9, 60), num_encoder_layers=0, num_decoder_layers=draw.between(1, 4),
            activation="gelu", scale_embeddings=False, pad_id=50, max_positions=positions, key_bias=False,
        ),
        "task": {"_target_": "voxzoo.tasks.SpeechToText", "search": {"max_length": positions}},
    }  # fmt: skip
    if draw.one([True, False]):
        nodes["adaptor"] = part("NoAdaptor", input_dim=dim, output_dim=dim)
    generator = torch.Generator().manual_seed(draw.seed)
    inputs = {"speech": [[torch.randn(frames, mel, generator=generator) for _ in range(n)] for n in (1, 3)]}
    drawn = switched(draw, "whisper", nodes, inputs, None)
    drawn.options = {"prefix": [51, 52, 54, 53], "beams": draw.one([1, 4]), "eos": 50, "longest": positions - 4,
                     "length_penalty": draw.one([0.0, 1.0]), "no_repeat_ngram_size": draw.one([0, 2]),
                     "suppress_tokens": draw.one([[], [3, 7]]),
                     "begin_suppress_tokens": draw.one([[], [5, 50]])}  # fmt: skip
    return drawn


def m2m_100(draw: Draw) -> Drawn:
    from voxzoo.components import SentencePieceTokenizer

    dim, heads = draw.heads()
    model, languages = str(sentencepiece(draw.folder)), ["deu_Latn", "eng_Latn", "spa_Latn"]
    size = 1 + SentencePieceTokenizer(model, languages, 200).num_pieces + len(languages) + draw.between(0, 5)
    tokenizer = SentencePieceTokenizer(model, languages, size, layout="nllb")
    nodes: Nodes = {
        "text_seq2seq": part(
            "TransformerSeq2Seq", vocab_size=tokenizer.vocab_size, dim=dim, num_heads=heads,
            ffn_dim=draw.between(9, 60), num_encoder_layers=draw.between(1, 4), num_decoder_layers=draw.between(1, 4),
            activation=draw.one(["relu", "gelu", "silu", "swish"]), scale_embeddings=draw.one([True, False]),
            position_start=2, pad_id=1, dropout=draw.probability(),
        ),
        "task": {
            "_target_": "voxzoo.tasks.TextToText",
            "search": {
                "method": "beam", "beam_size": draw.between(1, 4), "length_penalty": draw.one([0.0, 0.7, 1.0]),
                "max_length": draw.between(4, 20), "min_length": draw.one([0, 3]), "score": "after_start",
                "no_repeat_ngram": draw.one([0, 2]), "early_stopping": draw.one([True, False]),
            },
        },
    }  # fmt: skip
    generator = torch.Generator().manual_seed(draw.seed)
    ends = torch.tensor([tokenizer.lang_id("spa_Latn")]), torch.tensor([2])
    inputs = {
        "text": [[torch.cat([ends[0], torch.randint(4, 1 + tokenizer.num_pieces, (n,), generator=generator), ends[1]])
                  for n in lengths] for lengths in ([6], draw.lengths(20, 2))]
    }  # fmt: skip
    drawn = switched(draw, "m2m_100", nodes, inputs, tokenizer)
    drawn.options = {"language": tokenizer.lang_id("deu_Latn")}
    return drawn


def wav2vec2_bert(draw: Draw) -> Drawn:
    dim, heads = draw.heads()
    bins, stack, ffn = draw.between(3, 9), draw.between(1, 3), draw.between(9, 50)
    adapted = draw.one([0, 1, 2])
    stride = draw.between(1, 4)
    nodes: Nodes = {
        "frontend": part("Fbank", num_mel_bins=bins, stack=stack, output_dim=bins * stack),
        "speech_encoder": part(
            "ConformerEncoder", input_dim=bins * stack, dim=dim, num_layers=draw.between(1, 4), num_heads=heads,
            ffn_dim=ffn, kernel_size=draw.one([3, 5, 9]), position=draw.one(["relative_key", "relative", "none"]),
            left_context=draw.one([3, 9, 64]), right_context=draw.between(0, 9), causal_conv=True, conv_norm="layer",
            final_norm=False, intermediate_ffn=bool(adapted) and draw.one([True, False]),
            mask_embedding=draw.one([True, False]),
        ),
        "task": {"_target_": "voxzoo.tasks.EncodeSpeech"},
    }  # fmt: skip
    if adapted:
        nodes["adaptor"] = part(
            "ConformerAdaptor", input_dim=dim, output_dim=draw.one([dim, 2 * dim]), num_heads=heads, ffn_dim=ffn,
            kernel_size=stride + (draw.one([0, 1]) if stride % 2 == 0 else 0), stride=stride, num_layers=adapted,
            final_norm=False,
        )  # fmt: skip
    generator = torch.Generator().manual_seed(draw.seed)
    longest = draw.between(20, 70)
    padded = [] if adapted > 1 else [draw.lengths(longest, 8)]
    inputs = {
        "speech": [[torch.randn(n, bins * stack, generator=generator) for n in each] for each in ([longest], *padded)]
    }
    return switched(draw, "wav2vec2-bert", nodes, inputs, None)


def wav2vec2(draw: Draw, layout: str) -> Drawn:
    dim, heads = draw.heads()
    convs = draw.between(2, 4)
    groups = draw.one([n for n in (1, 2, 4) if dim % n == 0])
    layers = draw.between(1, 4)
    norm_first = draw.one([True, False])
    nodes: Nodes = {
        "frontend": part("RawWaveform"),
        "speech_encoder": part(
            "Wav2Vec2Encoder", dim=dim, num_layers=layers, num_heads=heads, ffn_dim=draw.between(9, 50),
            conv_dims=[draw.between(3, 12) for _ in range(convs)],
            conv_kernels=[draw.between(2, 8) for _ in range(convs)],
            conv_strides=[draw.between(1, 4) for _ in range(convs)],
            conv_bias=draw.one([True, False]), conv_norm=draw.one(["group", "layer"]), norm_first=norm_first,
            input_norm=layout == "wav2vec2" or draw.one([True, False]), position_kernel=draw.between(3, 20),
            position_groups=groups, activation=draw.one(["gelu", "relu", "silu", "swish"]),
            layer=draw.one([None, draw.between(0, layers - 1)]),
            mask_embedding=draw.one([True, False]),
        ),
        "task": {"_target_": "voxzoo.tasks.EncodeSpeech"},
    }  # fmt: skip
    encoder = nodes["speech_encoder"]
    encoder["leak_padding"] = draw.one(["all", "norm"] if encoder["conv_norm"] == "group" else ["all", "none"])
    generator = torch.Generator().manual_seed(draw.seed)
    lengths = draw.lengths(3000, 1500)
    inputs = {"speech": [[torch.randn(n, generator=generator) for n in each] for each in ([2500], lengths)]}
    drawn = switched(draw, layout, nodes, inputs, None)
    drawn.options = {"masked": encoder["leak_padding"] != "all", "layer": encoder["layer"]}
    return drawn


FAMILIES = {
    "seamless_m4t": lambda draw: seamless(draw, 1),
    "seamless_m4t_v2": lambda draw: seamless(draw, 2),
    "code_hifi_gan": code_hifi_gan,
    "whisper": whisper,
    "m2m_100": m2m_100,
    "wav2vec2-bert": wav2vec2_bert,
    "hubert": lambda draw: wav2vec2(draw, "hubert"),
    "wav2vec2": lambda draw: wav2vec2(draw, "wav2vec2"),
}


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"voxzoo.components.{name}", **arguments}


def sentencepiece(folder: Path) -> Path:
    from voxzoo.components.tokenizer import train_sentencepiece

    path = folder / "tiny.model"
    return path if path.exists() else train_sentencepiece(SENTENCES * 3, path, 60, len(LANGUAGES))


def characters(folder: Path) -> Path:
    path = folder / "characters.json"
    path.write_text(json.dumps({"char_to_id": CHARACTERS}))
    return path


def switched(draw: Draw, layout: str, nodes: Nodes, inputs: dict[str, Any], tokenizer: Any) -> Drawn:
    """The model with each switch of the table at one of its values, and its weights."""
    from voxzoo.components.converters.compat import TABLE, apply_compat

    def with_search(found: Nodes) -> Nodes:
        plain = apply_compat(found, "transformers")
        if "search" in nodes["task"]:
            kept = {**nodes["task"]["search"]} if layout == "m2m_100" else {
                key: nodes["task"]["search"][key] for key in ("max_length", "length_penalty")
                if key in nodes["task"]["search"]}  # fmt: skip
            plain["task"]["search"] = {**plain["task"].get("search", {}), **kept}
            if "max_length_b" in plain["task"]["search"]:
                plain["task"]["search"].update(max_length_a=0.0, max_length_b=kept["max_length"])
        if "t2u" in plain and layout == "seamless_m4t":
            plain["t2u"].update(max_length_a=0.0, max_length_b=nodes["t2u"]["max_length"])
        return plain

    mixed = {role: dict(node) for role, node in nodes.items()}
    calm = draw.one([True, False, False])  # or hardly one goes out as it is
    for row in TABLE:
        if not row.applies(mixed):
            continue
        value = row.value(mixed, "transformers")
        if row.training or not calm:
            value = draw.one([row.new, value, row.value(mixed, "fairseq2")])
        holder, _, key = row.key.rpartition(".")
        target = mixed[row.role]
        if holder:
            target[holder] = {**target.get(holder, {}), key: value}
        else:
            target[key] = value
    if "search" in mixed["task"] and "max_length" in nodes["task"]["search"]:
        mixed["task"]["search"] = {**mixed["task"]["search"], **nodes["task"]["search"]}
    plain = with_search(nodes)
    torch.manual_seed(draw.seed)
    state = shaken(build(plain), None if tokenizer is None else tokenizer.pad_id)
    return Drawn(layout, mixed, plain, state, inputs, tokenizer=tokenizer)


def build(nodes: Nodes, state: dict[str, Tensor] | None = None) -> dict[str, nn.Module]:
    from voxzoo.components.converters.published import build_part

    parts = {role: build_part(role, node, role) for role, node in nodes.items()
             if role not in ("frontend", "tokenizer", "task")}  # fmt: skip
    for role, one in parts.items():
        if state is not None:
            one.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.partition(".")[0] == role})
        one.eval()
    return parts


@torch.no_grad()
def shaken(parts: dict[str, nn.Module], pad: int | None) -> dict[str, Tensor]:
    """Weights under which norms and biases count, texts have many different tokens, and durations differ."""
    for role, one in parts.items():
        for name, value in [*one.named_parameters(), *one.named_buffers()]:
            if not value.is_floating_point() or name == "positions":
                continue
            noise = torch.randn_like(value)
            if "running_var" in name:
                value.copy_(0.15 * noise.abs() + 0.5)
            elif name.endswith("embed.embedding.weight") or (role == "t2u" and name == "output.weight"):
                value.copy_(1.2 * noise / noise.norm(dim=1, keepdim=True))
                if role == "t2u":  # what is no unit is hardly ever the most probable; eos now and then in v1
                    value[[0, 1, 3, *range(4 + UNITS, 4 + UNITS + SPARE)]] = 0
                    value[2] *= name != "output.weight"
                elif pad is not None:
                    value[pad] = 0
            elif "duration" in name and name.endswith("proj.bias"):
                value.fill_(1.2)
            elif "duration" in name and name.endswith("proj.weight"):
                value.copy_(0.15 * noise)
            elif "decoder.layers" in name and name.endswith(("qkv.weight", "kv.weight", "q.weight")):
                value.copy_(0.4 * noise)
            elif "decoder.layers" in name and name.endswith(("out.weight", "outer.weight")):
                value.copy_(noise)
            elif role in ("text_seq2seq", "t2u") and name in ("decoder.norm.weight", "norm.weight"):
                value.copy_(2 * noise)
            else:
                value.add_((0.05 if role == "vocoder" else 0.2) * noise)
    return {f"{role}.{key}": value.clone() for role, one in parts.items() for key, value in one.state_dict().items()}
