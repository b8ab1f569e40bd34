"""`compat`: each switch exists, has the default that the table says, and does what it says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from decoders import HistoryDecoder, memory_of
from torch import Tensor
from voxzoo import components, tasks
from voxzoo.components.converters.compat import TABLE, Difference, apply_compat, class_of, markdown
from voxzoo.components.converters.seamless_m4t import FAMILY as V1
from voxzoo.components.converters.seamless_m4t_v2 import FAMILY as V2
from voxzoo.components.roles import Tokenizer
from voxzoo.components.search import Hypothesis, SearchOptions, generate
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.components.types import Batch, Padded

SWITCHES = [row for row in TABLE if row.key]
IDS = [f"{row.name}-{row.classes[0]}" for row in SWITCHES]
EACH = pytest.mark.parametrize("row", SWITCHES, ids=IDS)


def class_named(name: str) -> Any:
    return getattr(tasks, name, None) or getattr(components, name)


def values(row: Difference) -> list[Any]:
    """The different values that the table has for a switch."""
    nodes = {row.role: {"_target_": f"voxzoo.components.{row.classes[0]}"}, "t2u": {"_target_": "x.AutoregressiveT2U"}}
    found = [row.new, row.value(nodes, "transformers"), row.value(nodes, "fairseq2")]
    if row.key == "t2u_eos":
        found.append("keep_shorter")
    return [value for place, value in enumerate(found) if value not in found[:place]]


# The table


@EACH
def test_the_switch_exists_and_new_models_have_the_default(row: Difference):
    holder, _, key = row.key.rpartition(".")
    for name in row.classes:
        cls = class_named(name)
        signature = inspect.signature(cls.__init__).parameters
        if holder:
            assert holder in signature
            default = {item.name: item.default for item in fields(SearchOptions)}[key]
            documented = SearchOptions.__doc__
        else:
            default = signature[key].default
            documented = cls.__doc__
        assert default == row.new, f"{name}.{row.key}"
        assert key in (documented or "") or "as in `SpeechToText`" in (documented or "")


def test_markdown_has_a_line_for_each():
    lines = markdown().splitlines()
    assert len(lines) == len(TABLE) + 2
    assert all(line.count("|") == 6 for line in lines)
    assert "| `adaptor.leak_padding` | false | true | true |" in markdown()
    assert len({(row.name, row.classes) for row in TABLE}) == len(TABLE)


def seamless(version: int) -> dict[str, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.SeamlessM4TConfig() if version == 1 else transformers.SeamlessM4Tv2Config()
    return (V1 if version == 1 else V2).nodes(config.to_dict())


@pytest.mark.parametrize("version", [1, 2])
def test_imported_models_have_the_switches_of_transformers(version: int):
    nodes = seamless(version)
    nodes["frontend"]["variance_floor"] = 1e-7  # the default, which import does not write down
    assert apply_compat(nodes, "transformers") == nodes
    original = apply_compat(nodes, "fairseq2")
    assert original["text_seq2seq"]["position_start"] == 2
    assert original["task"]["search"]["score"] == "with_prefix"
    assert original["task"]["t2u_eos"] == "strip"
    assert original["vocoder"]["default_speaker"] == 0  # the folder names no speakers
    assert nodes["text_seq2seq"]["position_start"] == 1
    assert apply_compat(original, "transformers") == nodes


def test_the_original_importer_has_the_same_switches():
    from voxzoo.components.converters.fairseq2 import fairseq2_nodes

    for version in (1, 2):
        nodes = fairseq2_nodes(seamless(version), version)
        wanted = apply_compat(nodes, "fairseq2")
        for role, node in wanted.items():
            for key, value in node.items():
                assert nodes[role].get(key) == value, f"{role}.{key}"


def test_other_parts_and_other_families_are_left_alone():
    nodes = {
        "adaptor": {"_target_": "voxzoo.components.StackAdaptor", "stack": 3},
        "text_seq2seq": {"_target_": "voxzoo.components.TransformerSeq2Seq", "pad_id": 1, "position_start": 2},
        "t2u": {"_target_": "voxzoo.components.CTCT2U"},
        "task": {"_target_": "voxzoo.tasks.SpeechToSpeechUnitY", "t2u_input": "pieces"},
        "vocoder": {"_target_": None},
    }
    changed = apply_compat(nodes, "transformers")
    assert {role: changed[role] for role in ("adaptor", "text_seq2seq", "t2u", "vocoder")} == {
        role: nodes[role] for role in ("adaptor", "text_seq2seq", "t2u", "vocoder")
    }
    search = changed["task"].pop("search")
    assert changed["task"] == {**nodes["task"], "loss_on_lang_token": True, "label_smoothing": 0.0}
    # transformers has one limit, and no forced eos behind it, for NLLB too; Whisper has no other behaviour.
    assert {key: found for key, found in search.items() if key != "_target_"} == {
        "force_eos": False, "max_length_a": 0.0, "max_length_b": 256,
    }  # fmt: skip
    whisper = {**nodes, "text_seq2seq": {**nodes["text_seq2seq"], "key_bias": False}}
    assert "search" not in apply_compat(whisper, "transformers")["task"]
    fast = {"tokenizer": {"_target_": "voxzoo.components.SentencePieceTokenizer", "model": "a/tokenizer.json",
                          "normaliser": "transformers"}}  # fmt: skip
    assert apply_compat(fast, "fairseq2") == fast
    fast["tokenizer"]["model"] = "a/sentencepiece.bpe.model"
    assert apply_compat(fast, "fairseq2")["tokenizer"]["normaliser"] == "sentencepiece"
    with pytest.raises(ValueError, match="compat must be transformers or fairseq2; got 'fairseq'"):
        apply_compat(nodes, "fairseq")  # pyright: ignore[reportArgumentType]


# What each does. A maker takes the value and gives results: (as in inference, as in training or None).

Results = tuple[Any, Any]


def both(part: torch.nn.Module, run: Callable[[], Tensor], times: int = 1) -> Results:
    """Results of a part in evaluation mode and, with the same random numbers, in training."""
    with torch.no_grad():
        calm = run() if part.eval() else None
        torch.manual_seed(7)
        part.train()
        busy = torch.stack([run() for _ in range(times)])
    return calm, busy


def made(build: Callable[..., Any], **settings: Any) -> Any:
    torch.manual_seed(0)
    return build(**settings)


def frontend(key: str, value: Any, tmp_path: Any) -> Results:
    return made(components.Fbank, **{key: value})(torch.zeros(16000)), None


def tokenizer(key: str, value: Any, tmp_path: Any) -> Results:
    path = train_sentencepiece(["two trains stop here", "the house is old"] * 4, tmp_path / "m.model", 60, 1)
    built = components.SentencePieceTokenizer(str(path), ["eng"], 64, **{key: value})
    return [
        built.encode(text) for text in ("two trains ", "two\x07trains", "a\u0301\u0323 old", "\u200bhouse \n")
    ], None


SPEECH = Padded(torch.randn(3, 17, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([17, 9, 4]))


def speech_encoder(key: str, value: Any, tmp_path: Any) -> Results:
    norm = {"conv_norm": "batch", "causal_conv": False} if key == "padding_in_norm" else {}
    part = made(components.ConformerEncoder, input_dim=6, dim=8, num_layers=2, num_heads=2, ffn_dim=12, kernel_size=3,
                **norm, **{key: value})  # fmt: skip
    return both(part, lambda: part(SPEECH).data[:, :4], 30)


def adaptor(key: str, value: Any, tmp_path: Any) -> Results:
    part = made(components.ConformerAdaptor, input_dim=6, output_dim=6, num_heads=2, ffn_dim=8, kernel_size=4, stride=4,
                **{key: value})  # fmt: skip
    return both(part, lambda: part(SPEECH).states.data[:, :2])


MEMORY = Padded(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([5, 3, 2]))
TEXT = Padded(torch.tensor([[3, 9, 4, 5], [3, 9, 6, 0], [3, 9, 7, 8]]), torch.tensor([4, 3, 4]))


def text_model(**settings: Any) -> Any:
    return made(components.TransformerSeq2Seq, vocab_size=12, dim=8, num_heads=2, ffn_dim=10, num_encoder_layers=1,
                num_decoder_layers=2, **settings)  # fmt: skip


def text_seq2seq(key: str, value: Any, tmp_path: Any) -> Results:
    part = text_model(**{key: value})
    return both(part, lambda: part(MEMORY, TEXT).data[:, :3], 60)


class Words(Tokenizer):
    """Two languages, six words."""

    vocab_size, pad_id, unk_id, bos_id, eos_id = 12, 0, 1, 2, 3
    languages = ("eng", "spa")

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(str(int(number)) for number in ids if 3 < number < 10)

    def to_bytes(self) -> bytes:
        return b""

    def lang_id(self, lang: str) -> int:
        return 10 + self.languages.index(lang)

    def piece_characters(self) -> Tensor:
        return torch.arange(12)[:, None] * torch.tensor([[0] * 4 + [1] * 6 + [0] * 2]).T


def unity(t2u: Any, **settings: Any) -> Any:
    vocoder = components.CodeHiFiGAN(9, 4, 2, 2, 2, 2, channels=4, upsample_rates=[2], upsample_kernels=[4],
                                     resblock_kernels=[3], resblock_dilations=[[1]])  # fmt: skip
    task = made(
        tasks.SpeechToSpeechUnitY,
        speech_encoder=components.ConformerEncoder(6, 8, 1, 2, 8, kernel_size=3),
        adaptor=components.ConformerAdaptor(8, 8, num_heads=2, ffn_dim=8, kernel_size=4, stride=4),
        text_seq2seq=text_model(dropout=0.0, attention_dropout=0.0),
        t2u=t2u, vocoder=vocoder, tokenizer=Words(), frontend=components.Fbank(), ctc_weight=0.0, **settings,
    )  # fmt: skip
    return task.eval()


def ar_t2u(**settings: Any) -> Any:
    sizes = {"num_units": 9, "dim": 8, "num_heads": 2, "ffn_dim": 10, "num_encoder_layers": 2, "num_decoder_layers": 2}
    return made(components.AutoregressiveT2U, input_dim=8, num_languages=2, default_language=1, **sizes, **settings)


def task(key: str, value: Any, tmp_path: Any) -> Results:
    if key.startswith("search."):
        return search(key.removeprefix("search."), value), None
    if key.startswith("t2u_"):
        built = unity(ar_t2u(), **{key: value})
        found = [Hypothesis(torch.tensor(row), 0.0, torch.randn(2 + len(row), 8)) for row in ([4, 5, 6], [7], [8, 9])]
        with torch.no_grad():
            states, text = built.second_pass_of(found, MEMORY, [[3, 10]] * 3)
        return (states.lengths.tolist(), text.data.tolist()), None
    built = unity(ar_t2u(dropout=0.0, attention_dropout=0.0), t2u_languages=["eng", "spa"], **{key: value})
    units = Padded(torch.randint(0, 9, (3, 8)), torch.tensor([8, 5, 6]))
    langs = {"src_lang": ("spa",) * 3, "tgt_lang": ("eng",) * 3}
    batch = Batch(("a", "b", "c"), speech=SPEECH, target=TEXT, transcript=TEXT, units=units, **langs)
    torch.manual_seed(3)
    losses = built.measure(batch)[0]["text"]
    options = SearchOptions(max_length=6)
    return [p.text for p in built.predict(batch, task="s2tt", options=options)], losses.total.detach() / losses.count


def search(key: str, value: Any) -> Any:
    if key in ("max_length", "max_length_a", "max_length_b"):
        return SearchOptions(**{"max_length": 5000, "max_length_a": 100.0, "max_length_b": 0, key: value}).limit(40)
    base = {"max_length": 6, "max_length_a": 0.0, "max_length_b": 6, "length_penalty": 2.0}
    found = []
    for seed in range(12):
        decoder = HistoryDecoder(9, eos_bonus=1.0, seed=seed)
        memory, prefix = memory_of(1, 2, 3), torch.tensor([[3, 5]] * 3)
        rows = generate(decoder, memory, prefix, SearchOptions(**{**base, key: value}), 3, 0, 1)
        found.append([(h.tokens.tolist(), round(h.score, 5)) for hypotheses in rows for h in hypotheses])
    return found


STATES = Padded(
    torch.randn(24, 5, 8, generator=torch.Generator().manual_seed(4)),
    torch.randint(2, 6, (24,), generator=torch.Generator().manual_seed(6)),
)
UNITS = Padded(torch.randint(0, 9, (24, 12), generator=torch.Generator().manual_seed(5)), torch.full((24,), 12))


def t2u_v1(key: str, value: Any, tmp_path: Any) -> Results:
    if key in ("max_length_a", "max_length_b"):
        part = ar_t2u(**{"max_length": 5000, "max_length_a": 1.0, "max_length_b": 1, key: value})
        return part.search.limit(20), None
    limits = {"max_length_a": 0.0, "max_length_b": 6} if key not in ("beam_size",) else {"max_length_b": 9}
    part = ar_t2u(**{**limits, key: value})
    with torch.no_grad():
        part.decoder.embed.embedding.weight[2] *= 3  # units end at different places
    part.eval()
    made_units = part.generate(STATES)
    calm = (made_units.units.data.shape, [u.tolist() for u in made_units.units.unpad()], made_units.scores)
    torch.manual_seed(7)
    part.train()
    busy = [part(STATES, UNITS)["t2u_unit"].total.detach() for _ in range(30)]
    return calm, torch.stack(busy)


def t2u_v2(key: str, value: Any, tmp_path: Any) -> Results:
    part = made(components.UnitY2T2U, input_dim=8, num_units=9, dim=8, num_heads=2, ffn_dim=10, num_encoder_layers=2,
                num_decoder_layers=2, kernel_size=3, num_characters=6, duration_dim=4, aligner_dim=8,
                **{key: value})  # fmt: skip
    part.set_characters(torch.arange(6)[:, None])
    with torch.no_grad():
        part.output.weight[2] = part.output.weight[5]  # eos wins now and then
        part.output.weight[2] *= 1.3
    text = Padded(torch.randint(1, 6, (24, 5), generator=torch.Generator().manual_seed(6)), STATES.lengths)
    output = part.eval().generate(STATES, text)
    calm = ([u.tolist() for u in output.units.unpad()], output.durations is None)
    torch.manual_seed(7)
    part.train()
    return calm, torch.stack([part(STATES, UNITS, text)["t2u_unit"].total.detach() for _ in range(30)])


def t2u(key: str, value: Any, tmp_path: Any, cls: str = "AutoregressiveT2U") -> Results:
    return (t2u_v1 if cls == "AutoregressiveT2U" else t2u_v2)(key, value, tmp_path)


def vocoder(key: str, value: Any, tmp_path: Any) -> Results:
    part = made(components.CodeHiFiGAN, num_units=9, unit_dim=6, num_langs=2, lang_dim=2, num_speakers=4, speaker_dim=2,
                speakers={"eng": [3, 1], "spa": [2]}, channels=8, upsample_rates=[3, 2], upsample_kernels=[5, 4],
                resblock_kernels=[3], resblock_dilations=[[1, 2]], **{key: value}).eval()  # fmt: skip
    units = Padded(torch.tensor([[4, 1, 3, 8, 2], [5, 6, 0, 0, 0]]), torch.tensor([5, 2]))
    with torch.no_grad():
        part.durations.proj.bias.fill_(1.4)
        ones = units.with_data(torch.ones_like(units.data))
        waves = part(units, lang=torch.tensor([0, 1]), durations=ones)
    return (waves.lengths.tolist(), waves.data), None


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(99), other.nan_to_num(99))
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@EACH
def test_the_switch_does_what_it_says(row: Difference, tmp_path):
    maker: Callable[..., Results] = globals()[row.role]
    if row.key == "tie_output":
        assert values(row) == [True]
        count = {tied: sum(p.numel() for p in text_model(tie_output=tied).parameters()) for tied in (True, False)}
        assert count[False] == count[True] + 12 * 8
        return
    found = values(row)
    assert len(found) > 1, f"{row.name}: one value only"
    extra = {"cls": row.classes[0]} if row.role == "t2u" and row.classes == ("UnitY2T2U",) else {}
    results = [maker(row.key, value, tmp_path, **extra) for value in found]
    for place, (calm, busy) in enumerate(results):
        for other_calm, other_busy in results[:place]:
            if row.training:
                assert same(calm, other_calm), f"{row.name} changes inference"
                assert not same(busy, other_busy), f"{row.name} changes nothing in training"
            else:
                assert not same(calm, other_calm), f"{row.name} changes nothing"


def test_class_names():
    assert class_of({"_target_": "voxzoo.components.Fbank"}) == "Fbank"
    assert class_of({"_target_": None}) == ""
