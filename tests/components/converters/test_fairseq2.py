"""Original SeamlessM4T checkpoints: files in both namings, made from random weights, against the same weights imported
from the layout of transformers."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from torch import Tensor
from voxzoo.components.converters import PublishedModel, from_transformers, to_transformers
from voxzoo.components.converters.code_hifi_gan import SPEAKERS
from voxzoo.components.converters.fairseq2 import LANGUAGES, UNIT_LANGUAGES, fold, from_fairseq2
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded

transformers = pytest.importorskip("transformers")

VOCAB = 61
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "feature_projection_input_dim": 14,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 3,
    "speech_encoder_intermediate_size": 44,
    "conv_depthwise_kernel_size": 9,
    "adaptor_kernel_size": 8,
    "adaptor_stride": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 52,
    "decoder_ffn_dim": 52,
    "t2u_vocab_size": 10082,
    "t2u_encoder_layers": 2,
    "t2u_decoder_layers": 2,
    "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "t2u_encoder_ffn_dim": 28,
    "t2u_decoder_ffn_dim": 28,
    "unit_embed_dim": 10,
    "lang_embed_dim": 6,
    "spkr_embed_dim": 4,
    "upsample_initial_channel": 12,
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
}
V2 = {
    "char_vocab_size": 40,
    "t2u_variance_predictor_embed_dim": 24,
    "t2u_variance_predictor_hidden_dim": 18,
    "left_max_position_embeddings": 7,
    "right_max_position_embeddings": 8,
}
# What no tensor shows.
HIDDEN = {
    key: CONFIG[key]
    for key in (
        "encoder_attention_heads",
        "decoder_attention_heads",
        "t2u_encoder_attention_heads",
        "t2u_decoder_attention_heads",
        "upsample_rates",
    )
}
NAMINGS = [(version, naming) for version in (1, 2) for naming in ("fairseq", "fairseq2")]
CHARACTERS = "▁etaoinshrdlc"


# transformers -> original, written the other way round than the converter: full names, by component.
def layer_names(naming: str, component: str) -> dict[str, str]:
    """Name of a layer's modules in transformers -> in the original."""
    new = naming == "fairseq2"
    if component == "conformer":
        names = {
            "self_attn_layer_norm": "self_attn_layer_norm",
            "conv_module.layer_norm": "conv_layer_norm" if new else "conv_module.layer_norm",
            "conv_module.depthwise_layer_norm": "conv.layer_norm" if new else "conv_module.layer_norm2",
            "final_layer_norm": "layer_norm" if new else "final_layer_norm",
            "self_attn.linear_out": "self_attn.output_proj" if new else "self_attn.linear_out",
            "self_attn.linear_pos": "self_attn.sdpa.r_proj" if new else "self_attn.linear_pos",
            "self_attn.pos_bias_u": "self_attn.sdpa.u_bias" if new else "self_attn.pos_bias_u",
            "self_attn.pos_bias_v": "self_attn.sdpa.v_bias" if new else "self_attn.pos_bias_v",
            "self_attn.distance_embedding": "self_attn.sdpa.rel_k_embed" if new else "self_attn.rel_k_embedding",
        }
        for part in ("pointwise_conv1", "depthwise_conv", "batch_norm", "pointwise_conv2"):
            names[f"conv_module.{part}"] = f"conv.{part}" if new else f"conv_module.{part}"
        for which in "12":
            names[f"ffn{which}_layer_norm"] = f"ffn{which}_layer_norm" if new else f"ffn{which}.layer_norm"
            names[f"ffn{which}.intermediate_dense"] = f"ffn{which}.inner_proj" if new else f"ffn{which}.w_1"
            names[f"ffn{which}.output_dense"] = f"ffn{which}.output_proj" if new else f"ffn{which}.w_2"
        for which in "qkv":
            names[f"self_attn.linear_{which}"] = f"self_attn.{which}_proj" if new else f"self_attn.linear_{which}"
        return names
    if component == "adaptor":
        return {
            "residual_layer_norm": "residual_layer_norm",
            "residual_conv": "residual_conv" if new else "residual_pool.1",
            "self_attn_layer_norm": "self_attn_layer_norm",
            "self_attn_conv": "self_attn_conv" if new else "attn_pool.1",
            "self_attn.linear_q": "self_attn.q_proj",
            "self_attn.linear_k": "self_attn.k_proj",
            "self_attn.linear_v": "self_attn.v_proj",
            "self_attn.linear_out": "self_attn.output_proj" if new else "self_attn.out_proj",
            "ffn_layer_norm": "ffn_layer_norm" if new else "final_layer_norm",
            "ffn.intermediate_dense": "ffn.inner_proj" if new else "fc1",
            "ffn.output_dense": "ffn.output_proj" if new else "fc2",
        }
    out = "output_proj" if new else "out_proj"
    names = {
        "self_attn.out_proj": f"self_attn.{out}",
        "cross_attention.out_proj": f"encoder_decoder_attn.{out}" if new else f"encoder_attn.{out}",
        "cross_attention_layer_norm": "encoder_decoder_attn_layer_norm" if new else "encoder_attn_layer_norm",
        "self_attn_layer_norm": "self_attn_layer_norm",
        "ffn_layer_norm": "ffn_layer_norm" if new else "final_layer_norm",
        "ffn.fc1": "ffn.inner_proj" if new else "fc1",
        "ffn.fc2": "ffn.output_proj" if new else "fc2",
    }
    if component == "nar":
        names.update(
            {
                "self_attn_layer_norm": "self_attn_layer_norm" if new else "layer_norm",
                "conv1": "conv1d.conv1" if new else "ffn.ffn.0",
                "conv2": "conv1d.conv2" if new else "ffn.ffn.2",
                "conv_layer_norm": "conv1d_layer_norm" if new else "ffn.layer_norm",
            }
        )
    for which in "qkv":
        names[f"self_attn.{which}_proj"] = f"self_attn.{which}_proj"
        cross = "encoder_decoder_attn" if new else "encoder_attn"
        names[f"cross_attention.{which}_proj"] = f"{cross}.{which}_proj"
    return names


TOP = {  # transformers -> (fairseq, fairseq2)
    "speech_encoder.feature_projection.layer_norm": (
        "encoder.w2v_encoder.w2v_model.layer_norm",
        "speech_encoder_frontend.post_extract_layer_norm",
    ),
    "speech_encoder.feature_projection.projection": (
        "encoder.w2v_encoder.w2v_model.post_extract_proj",
        "speech_encoder_frontend.model_dim_proj",
    ),
    "speech_encoder.encoder.layer_norm": (
        "encoder.w2v_encoder.w2v_model.encoder.layer_norm",
        "speech_encoder.inner_layer_norm",
    ),
    "speech_encoder.intermediate_ffn.intermediate_dense": ("encoder.adaptor.proj.0", "speech_encoder.proj1"),
    "speech_encoder.intermediate_ffn.output_dense": ("encoder.adaptor.proj.2", "speech_encoder.proj2"),
    "speech_encoder.inner_layer_norm": ("encoder.adaptor.out_ln", "speech_encoder.layer_norm"),
    "text_encoder.embed_tokens": ("text_encoder.embed_tokens", "text_encoder_frontend.embed"),
    "text_encoder.layer_norm": ("text_encoder.layer_norm", "text_encoder.layer_norm"),
    "text_decoder.embed_tokens": ("target_letter_decoder.embed_tokens", "text_decoder_frontend.embed"),
    "text_decoder.layer_norm": ("target_letter_decoder.layer_norm", "text_decoder.layer_norm"),
    "lm_head": ("target_letter_decoder.output_projection", "final_proj"),
    "t2u_model.model.encoder.layer_norm": ("synthesizer_encoder.layer_norm", "t2u_model.encoder.layer_norm"),
    "t2u_model.model.decoder.layer_norm": ("decoder.layer_norm", "t2u_model.decoder.layer_norm"),
    "t2u_model.lm_head": ("decoder.output_projection", "t2u_model.final_proj"),
    "t2u_model.model.decoder.embed_tokens": ("decoder.embed_tokens", "t2u_model.decoder_frontend.embed"),
    "t2u_model.model.decoder.embed_char": ("decoder.embed_tokens_text", "t2u_model.decoder_frontend.embed_char"),
    "t2u_model.model.decoder.pos_emb_alpha_char": (
        "decoder.char_upsampler.pos_emb_alpha",
        "t2u_model.decoder_frontend.pos_emb_alpha_char",
    ),
    "t2u_model.model.decoder.pos_emb_alpha": ("decoder.dec_pos_emb_alpha", "t2u_model.decoder_frontend.pos_emb_alpha"),
}
STACKS = {  # transformers -> (component, fairseq, fairseq2)
    "speech_encoder.encoder.layers": (
        "conformer",
        "encoder.w2v_encoder.w2v_model.encoder.layers",
        "speech_encoder.inner.layers",
    ),
    "speech_encoder.adapter.layers": ("adaptor", "encoder.adaptor.layers", "speech_encoder.adaptor_layers"),
    "text_encoder.layers": ("text", "text_encoder.layers", "text_encoder.layers"),
    "text_decoder.layers": ("text", "target_letter_decoder.layers", "text_decoder.layers"),
    "t2u_model.model.encoder.layers": ("text", "synthesizer_encoder.layers", "t2u_model.encoder.layers"),
    "t2u_model.model.decoder.layers": ("text", "decoder.layers", "t2u_model.decoder.layers"),
}
PREDICTOR = ("decoder.var_adaptor.duration_predictor", "t2u_model.decoder_frontend.variance_adaptor.duration_predictor")


def original_name(key: str, version: int, naming: str) -> str:
    """The original name of a key of transformers."""
    place = ("fairseq", "fairseq2").index(naming)
    for prefix, (component, *names) in STACKS.items():
        match = re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+?)((?:\.(?!pos_bias)[a-z_]+)?)", key)
        if match is None:
            continue
        nar = version == 2 and prefix == "t2u_model.model.decoder.layers"
        table = layer_names(naming, "nar" if nar else component)
        number, rest = match.group(1), key[match.start(2) :]
        module = rest if rest in table else rest.rpartition(".")[0]
        return f"{names[place]}.{number}.{table[module]}{rest.removeprefix(module)}"
    start = "t2u_model.model.decoder.duration_predictor."
    if key.startswith(start):
        module, ending = key.removeprefix(start).rsplit(".", 1)
        return f"{PREDICTOR[place]}.{module}{'.0' if module.startswith('conv') else ''}.{ending}"
    module = key if key in TOP else key.rpartition(".")[0]
    return TOP[module][place] + key.removeprefix(module)


def original(
    state: dict[str, Tensor], version: int, naming: str, characters: list[str] | None = None
) -> dict[str, Tensor]:
    """The original file's tensors of a state of transformers: full names, duplicates, rows in fairseq's order."""
    found = {
        original_name(key, version, naming): value.clone()
        for key, value in state.items()
        if not key.startswith(("vocoder.", "shared."))
    }
    if naming == "fairseq2":
        return found
    table = found["target_letter_decoder.output_projection.weight"]
    old = torch.cat([table[[2, 0, 3, 1]], table[4:], table[:1] * 0 + 7])  # bos, pad, eos, unk; and a row too many
    for key in ("target_letter_decoder.output_projection", "target_letter_decoder.embed_tokens"):
        found[f"{key}.weight"] = old
    found["text_encoder.embed_tokens.weight"] = old.clone()
    device = table.device
    found["encoder.w2v_encoder.w2v_model.mask_emb"] = torch.zeros(5, device=device)
    found["target_letter_decoder.version"] = torch.zeros(1, device=device)
    found["text_encoder.embed_positions._float_tensor"] = torch.zeros(1, device=device)
    found["decoder_target_letter_decoder.proj.weight"] = torch.zeros(3, 3, device=device)
    if version == 2:
        assert characters is not None
        found["decoder.char_upsampler.embed_tokens_char.weight"] = torch.zeros(3, 3, device=device)
        found["decoder.alignment_encoder.t_conv.0.weight"] = torch.zeros(3, 3, device=device)
        spelling = found["decoder.embed_tokens_text.weight"]
        row = {name: number for number, name in enumerate(characters)}
        order = [*range(4), *(row[name] for name in sorted(characters[4:]))]
        found["decoder.embed_tokens_text.weight"] = torch.cat([spelling[order], spelling[len(order) :]])
    return found


def original_vocoder(state: dict[str, Tensor], naming: str) -> dict[str, Tensor]:
    """A vocoder's tensors with weight normalisation: gains and directions of any length."""
    start = "code_generator." if naming == "fairseq2" else ""
    found: dict[str, Tensor] = {}
    tables = {"unit_embedding": "dict", "language_embedding": "lang", "speaker_embedding": "spkr"}
    for key, value in state.items():
        if not key.startswith("vocoder."):
            continue
        name = key.removeprefix("vocoder.")
        for new, old in tables.items():
            name = name.replace(new, old)
        name = re.sub(r"^dur_predictor\.(conv\d)\.", r"dur_predictor.\1.0.", name)
        name = start + name.replace("hifi_gan.", "").replace("upsampler.", "ups.")
        if "hifi_gan." in key and key.endswith(".weight"):
            axes = tuple(range(1, value.dim()))
            found[f"{name}_g"] = value.pow(2).sum(axes, keepdim=True).sqrt()
            found[f"{name}_v"] = value * (3 + torch.arange(len(value), device=value.device).view(-1, *[1] * len(axes)))
        else:
            found[name] = value
    return found


def peer_of(version: int, config: dict[str, Any]):
    torch.manual_seed(version)
    if version == 1:
        return transformers.SeamlessM4TModel(transformers.SeamlessM4TConfig(**config))
    return transformers.SeamlessM4Tv2Model(transformers.SeamlessM4Tv2Config(**config, **V2))


@pytest.fixture(scope="module")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("characters")
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(1, len(CHARACTERS), (300, 6), generator=generator).tolist()
    (folder / "text").write_text("\n".join("".join(CHARACTERS[i] for i in row) for row in picks))
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
        input=str(folder / "text"), model_prefix=str(folder / "spm"), model_type="char", vocab_size=3 + len(CHARACTERS),
        minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


def characters_of(path: Path) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore[reportCallIssue]
    return ["<pad>", *(model.id_to_piece(i) for i in range(model.get_piece_size()))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, char_model: Path):
    """version -> folder with what transformers wrote (`hf`) and the original files in both namings."""
    found = {}
    for version in (1, 2):
        folder = tmp_path_factory.mktemp(f"v{version}")
        peer = peer_of(version, CONFIG)
        with torch.no_grad():
            for name, value in [*peer.named_parameters(), *peer.named_buffers()]:
                if value.is_floating_point() and "embed_positions" not in name:
                    value.add_(torch.rand_like(value) * 0.2)
        peer.tie_weights()
        peer.save_pretrained(folder / "hf")
        state = {key: value for key, value in peer.state_dict().items() if "positions.weights" not in key}
        for naming in ("fairseq", "fairseq2"):
            tensors = original(state, version, naming, characters_of(char_model))
            content: dict[str, Any] = {"model": tensors, "args": argparse.Namespace(arch="unity")}
            torch.save(content, folder / f"{naming}.pt")
            key = "model" if naming == "fairseq2" else "generator"
            torch.save({key: original_vocoder(state, naming)}, folder / f"{naming}_vocoder.pt")
        found[version] = folder
    return found


def read(folder: Path, naming: str, char_model: Path, **options: Any) -> PublishedModel:
    wanted = {**HIDDEN, "vocab_size": VOCAB} if naming == "fairseq" else HIDDEN
    path, vocoder = folder / f"{naming}.pt", folder / f"{naming}_vocoder.pt"
    return from_fairseq2(path, vocoder, char_tokenizer=char_model, **{"settings": wanted, **options})


@pytest.mark.parametrize(("version", "naming"), NAMINGS)
def test_the_same_weights_as_from_transformers(version: int, naming: str, files, char_model):
    """Every tensor, that is every row and every fold, is the one that transformers' layout gives."""
    ours, peer = read(files[version], naming, char_model), from_transformers(files[version] / "hf")
    assert ours.model_type == peer.model_type
    expected, found = peer.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key.startswith("vocoder.generator.") and key.endswith("weight"):
            torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5, msg=key)
        else:
            assert torch.equal(found[key], value), key
    assert not any("layer_norm" in key for key in ours.left)


# Switches in which the two differ: role -> arguments.
SWITCHES = {
    "speech_encoder": {"layer_drop", "chunk_size", "left_chunks"},
    "adaptor": {"attention_dropout", "ffn_inner_dropout"},
    "text_seq2seq": {"ffn_dropout", "layerdrop", "position_start"},
    "vocoder": {"speakers", "default_language", "default_speaker", "predict_durations", "published_lengths"},
}


@pytest.mark.parametrize(("version", "naming"), NAMINGS)
def test_nodes_differ_in_the_documented_switches_alone(version: int, naming: str, files, char_model):
    ours, peer = read(files[version], naming, char_model).nodes, from_transformers(files[version] / "hf").nodes
    assert ours.keys() - {"frontend"} == peer.keys() - {"frontend"}
    for role, allowed in SWITCHES.items():
        differ = {key for key in ours[role] | peer[role] if ours[role].get(key) != peer[role].get(key)}
        assert differ <= allowed, role
    assert ours["text_seq2seq"]["position_start"] == 2
    assert peer["text_seq2seq"]["position_start"] == 1
    assert ours["adaptor"]["attention_dropout"] == 0.1
    assert ours["adaptor"]["ffn_inner_dropout"] == 0.0
    assert ours["vocoder"]["default_speaker"] == "first_of_language"
    assert ours["vocoder"]["speakers"] == SPEAKERS[version]
    task = ours["task"]
    assert (task["t2u_eos"], task["loss_on_lang_token"], task["label_smoothing"]) == ("strip", False, 0.2)
    assert task["search"]["score"] == "with_prefix"
    assert task["vocoder_languages"] == [*SPEAKERS[version]]
    if version == 1:
        assert (ours["t2u"]["num_languages"], ours["t2u"]["first_language_id"]) == (38, 10043)
        assert task["t2u_languages"][ours["t2u"]["default_language"]] == "eng"
    else:
        assert ours["t2u"]["vocoder_predicts_durations"] is False


@pytest.mark.parametrize(("version", "naming"), NAMINGS)
def test_the_same_states_where_no_switch_is(version: int, naming: str, files, char_model):
    ours, peer = read(files[version], naming, char_model), from_transformers(files[version] / "hf")
    generator = torch.Generator().manual_seed(0)
    speech = Padded.from_list([torch.randn(n, 14, generator=generator) for n in (41, 24)])
    tokens = Padded.from_list([torch.randint(4, VOCAB, (n,), generator=generator) for n in (7, 5)])
    units = Padded.from_list([torch.randint(100, (9,), generator=generator)])
    with torch.inference_mode():
        memory, expected = (m.adaptor(m.speech_encoder(speech)).states for m in (ours, peer))
        torch.testing.assert_close(memory.data, expected.data, atol=1e-6, rtol=1e-5)
        ours.text_seq2seq.decoder.embed.positions.start = 1  # the switch that changes numbers
        torch.testing.assert_close(
            ours.text_seq2seq(memory, tokens).data, peer.text_seq2seq(memory, tokens).data, atol=1e-5, rtol=1e-5
        )
        eng = torch.tensor([8])
        ones = units.with_data(torch.ones_like(units.data))
        audio = ours.vocoder(units, eng, torch.tensor([0]), ones if version == 1 else None)
        if version == 1:
            assert audio.lengths.tolist() == [9 * 6]  # durations that are given count; transformers predicts
            audio = ours.vocoder(units, eng, torch.tensor([0]))
        torch.testing.assert_close(audio.data, peer.vocoder(units, eng).data, atol=1e-5, rtol=1e-5)
        # Left out, the speaker is the first of the language: 10 for English in both versions.
        torch.testing.assert_close(
            ours.vocoder(units, eng).data, peer.vocoder(units, eng, torch.tensor([10])).data, atol=1e-5, rtol=1e-5
        )


def test_what_was_read_goes_out_in_the_layout_of_transformers(files, char_model, tmp_path):
    for version in (1, 2):
        ours = read(files[version], "fairseq", char_model)
        to_transformers(ours, tmp_path / str(version))
        peer_class = transformers.SeamlessM4TModel if version == 1 else transformers.SeamlessM4Tv2Model
        peer, report = peer_class.from_pretrained(tmp_path / str(version), output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        first = peer_class.from_pretrained(files[version] / "hf").state_dict()
        for key, value in peer.state_dict().items():
            torch.testing.assert_close(value, first[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("version", [1, 2])
def test_parts_that_fine_tuning_deleted_are_left_out(version: int, files, char_model, tmp_path):
    """Speech-to-text fine-tuning saves neither text encoder nor second pass, under a wrapper's name, and unties."""
    content = torch.load(files[version] / "fairseq2.pt", weights_only=False)["model"]
    kept = {
        f"model.{key}": value for key, value in content.items() if not key.startswith(("text_encoder", "t2u_model."))
    }
    kept["model.final_proj.weight"] = kept["model.final_proj.weight"] + 1
    torch.save({"model_name": "mine", "model": kept}, tmp_path / "tuned.pt")
    ours = from_fairseq2(tmp_path / "tuned.pt", settings=HIDDEN)
    assert [*ours.parts()] == ["speech_encoder", "adaptor", "text_seq2seq"]
    assert not ours.text_seq2seq.has_encoder
    assert ours.nodes["task"]["_target_"] == "voxzoo.tasks.SpeechToText"
    state = ours.text_seq2seq.state_dict()
    assert torch.equal(state["decoder.output.weight"], kept["model.final_proj.weight"])
    assert torch.equal(state["decoder.embed.embedding.weight"], content["text_decoder_frontend.embed.weight"])


@pytest.mark.parametrize(("version", "naming"), NAMINGS)
def test_full_size(version: int, naming: str, char_model, tmp_path, monkeypatch):
    """All keys and shapes of the large models, without memory: every tensor finds its place, none is missing."""
    with torch.device("meta"):
        if version == 1:
            peer = transformers.SeamlessM4TModel(transformers.SeamlessM4TConfig())
        else:
            peer = transformers.SeamlessM4Tv2Model(transformers.SeamlessM4Tv2Config())
        state = {key: value for key, value in peer.state_dict().items() if "positions.weights" not in key}
        torch.save({"model": original(state, version, naming, characters_of(char_model))}, tmp_path / "model.pt")
        torch.save({"generator": original_vocoder(state, "fairseq")}, tmp_path / "vocoder.pt")
    monkeypatch.setattr(torch, "equal", lambda one, other: one.shape == other.shape)  # meta tensors hold no values
    ours = from_fairseq2(tmp_path / "model.pt", tmp_path / "vocoder.pt", char_tokenizer=char_model)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    assert ours.nodes["text_seq2seq"]["vocab_size"] == 256102
    assert ours.nodes["text_seq2seq"]["num_heads"] == ours.nodes["speech_encoder"]["num_heads"] == 16


def test_tokenizer_of_large(char_model, files, tmp_path):
    assert (len(LANGUAGES), LANGUAGES[21], LANGUAGES[97]) == (101, "eng", "zul")
    assert (len(UNIT_LANGUAGES), UNIT_LANGUAGES[8]) == (38, "eng")
    languages = [f"l{i:02d}" for i in range(VOCAB - 1 - (3 + len(CHARACTERS)))]
    ours = read(files[2], "fairseq", char_model, tokenizer=char_model, languages=languages)
    assert ours.tokenizer.vocab_size == VOCAB
    names = characters_of(char_model)
    table = ours.tokenizer.piece_characters()
    piece = ours.tokenizer.encode("ta")[-1]
    assert [names[i] for i in table[piece].tolist() if i] == [ours.tokenizer.pieces()[piece]]
    with pytest.raises(UserError, match="has 61 text ids, so it is not large: give its `languages`"):
        read(files[2], "fairseq", char_model, tokenizer=char_model)


def test_folding_is_torchs_weight_norm():
    torch.manual_seed(0)
    for conv in (torch.nn.Conv1d(5, 3, 4), torch.nn.ConvTranspose1d(5, 3, 4)):
        normed = torch.nn.utils.parametrizations.weight_norm(conv)
        with torch.no_grad():
            for parameter in normed.parameters():
                parameter.add_(torch.rand_like(parameter))
        state = normed.state_dict()
        gain, direction = (state[f"parametrizations.weight.original{i}"] for i in (0, 1))
        torch.testing.assert_close(fold(gain, direction), normed.weight, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("final_proj.weight"), "no SeamlessM4T checkpoint"),
        (
            lambda state: state.pop("text_decoder.layers.1.ffn.inner_proj.bias"),
            "1 missing: text_seq2seq.decoder.layers.1.ffn.inner.bias",
        ),
        (
            lambda state: state.update({"speech_encoder.inner.layers.0.extra.weight": torch.zeros(1)}),
            "1 keys that this model type does not have: speech_encoder.inner.layers.0.extra.weight",
        ),
        (lambda state: state.update({"final_proj.bias": Evil()}), "refused, the pickle holds more than tensors"),
    ],
)
def test_wrong_files_get_one_line(change, message: str, files, char_model, tmp_path):
    content = torch.load(files[1] / "fairseq2.pt", weights_only=False)["model"]
    change(content)
    torch.save({"model": content}, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        from_fairseq2(tmp_path / "wrong.pt", settings=HIDDEN)
    assert "\n" not in str(error.value)
    assert not (Path.cwd() / "ran").exists()


def test_missing_files_get_one_line(files, char_model, tmp_path):
    with pytest.raises(UserError, match="no such file; expected a checkpoint of the original"):
        from_fairseq2(tmp_path / "none.pt")
    with pytest.raises(UserError, match="its characters stand in the order of fairseq's dictionary: give char_tok"):
        from_fairseq2(files[2] / "fairseq.pt", settings={**HIDDEN, "vocab_size": VOCAB})
    with pytest.raises(UserError, match="no unit vocoder"):
        from_fairseq2(files[1] / "fairseq2.pt", files[1] / "fairseq2.pt", settings=HIDDEN)
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no SentencePiece model"):
        from_fairseq2(files[2] / "fairseq.pt", char_tokenizer=tmp_path / "bad.model")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)
