"""An export gives the numbers of the model, or says in a line where it does not, or is refused."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from voxzoo import components
from voxzoo.components.converters import to_transformers
from voxzoo.components.converters.compat import TABLE, Difference, apply_compat
from voxzoo.components.converters.fidelity import compare
from voxzoo.components.converters.files import read_pickle
from voxzoo.components.converters.published import family_of
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded
from voxzoo.configs import build, compose
from voxzoo.tasks.commands.cli import main

transformers = pytest.importorskip("transformers")
Nodes = dict[str, dict[str, Any]]


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"voxzoo.components.{name}", **arguments}


class Model:
    """A model that was trained here: what `to_transformers` asks of a task."""

    def __init__(self, nodes: Nodes) -> None:
        torch.manual_seed(0)
        self.config = nodes
        self.built: dict[str, nn.Module] = {}
        for role, node in nodes.items():
            if role not in ("frontend", "tokenizer", "task"):
                arguments = {key: value for key, value in node.items() if key != "_target_"}
                self.built[role] = getattr(components, node["_target_"].rpartition(".")[2])(**arguments).eval()

    def parts(self) -> dict[str, nn.Module]:
        return self.built


SIZES = {"dim": 16, "num_heads": 2, "ffn_dim": 32}
UNITS = {"input_dim": 16, "num_units": 9, **SIZES, "num_encoder_layers": 1, "num_decoder_layers": 1}
V1 = {"position": "relative", "causal_conv": False, "conv_norm": "batch"}
VOCODER = part("CodeHiFiGAN", num_units=9, unit_dim=16, num_langs=2, lang_dim=4, num_speakers=3, speaker_dim=4,
               channels=32)  # fmt: skip
T2U = {
    1: part("AutoregressiveT2U", **UNITS, num_languages=2),
    2: part("UnitY2T2U", **UNITS, duration_dim=8, num_characters=20, aligner=False),
}


def seamless(version: int, speaks: bool = False, **changes: dict[str, Any]) -> Nodes:
    """A small SeamlessM4T with new parts and the switches of transformers, but for `changes` of its roles."""
    encoder = {**SIZES, **(V1 if version == 1 else {}), "num_layers": 1, "kernel_size": 5, "intermediate_ffn": True}
    nodes: Nodes = {
        "frontend": part("Fbank", num_mel_bins=4, stack=2),
        "speech_encoder": part("ConformerEncoder", input_dim=8, **encoder),
        "adaptor": part("ConformerAdaptor", input_dim=16, output_dim=16, num_heads=2, ffn_dim=32),
        "text_seq2seq": part("TransformerSeq2Seq", vocab_size=40, **SIZES, num_encoder_layers=0, num_decoder_layers=1),
        "task": {"_target_": "voxzoo.tasks.SpeechToText"},
    }
    if speaks:
        nodes.update(t2u=dict(T2U[version]), vocoder=dict(VOCODER))
        nodes["task"]["_target_"] = "voxzoo.tasks.SpeechToSpeechUnitY"
    nodes = apply_compat(nodes, "transformers")
    for role, change in changes.items():
        nodes[role] = {**nodes.get(role, {}), **change}
    return nodes


def export(nodes: Nodes, folder: Path, model_type: str, **options: Any) -> tuple[Model, list[str]]:
    """The model and the lines that its export said."""
    model, said = Model(nodes), []
    to_transformers(model, folder, model_type=model_type, note=said.append, **options)
    return model, said


def logits_apart(model: Model, folder: Path, version: int) -> float:
    """Largest difference of the logits here and there."""
    peer = getattr(transformers, f"SeamlessM4T{'v2' if version == 2 else ''}ForSpeechToText").from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    speech, tokens = torch.randn(1, 40, 8, generator=generator), torch.tensor([[3, 20, 5, 6, 7]])
    with torch.no_grad():
        encoder, adaptor, text = (model.built[role] for role in ("speech_encoder", "adaptor", "text_seq2seq"))
        memory = adaptor(encoder(Padded(speech, torch.tensor([40])))).states
        ours = text(memory, Padded(tokens, torch.tensor([5]))).data
        theirs = peer.eval()(input_features=speech, decoder_input_ids=tokens).logits
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("version", [1, 2])
def test_switches_that_change_results_are_refused_or_asked_for(version: int, tmp_path: Path):
    layout = "seamless_m4t" if version == 1 else "seamless_m4t_v2"
    model, said = export(seamless(version), tmp_path / "same", layout)
    assert said == []
    assert logits_apart(model, tmp_path / "same", version) < 1e-5
    nodes = seamless(version, text_seq2seq={"position_start": 2})
    message = r"text_seq2seq\.position_start=2 \(transformers: 1\): .*compat=transformers, or export with --compat"
    with pytest.raises(UserError, match=message) as error:
        export(nodes, tmp_path / "other", layout)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "other").exists()
    model, said = export(nodes, tmp_path / "other", layout, compat="transformers")
    assert said == ["text_seq2seq.position_start=2 (transformers: 1): changes results"]
    assert logits_apart(model, tmp_path / "other", version) > 0.1
    # An imported model is read there as the published weights are.
    model.config = {**nodes, "model_type": layout}  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(UserWarning, match=r"text_seq2seq\.position_start=2 \(transformers: 1\): changes results"):
        to_transformers(model, tmp_path / "imported")


SWITCHES = [row for row in TABLE if row.key and not row.training and row.key != "tie_output"]


@pytest.mark.parametrize("row", SWITCHES, ids=[f"{row.name}-{row.classes[0]}" for row in SWITCHES])
def test_no_switch_is_dropped_without_a_word(row: Difference):
    """Each that changes results has a line, or a refusal, where it is not as in transformers."""
    version = 2 if row.classes == ("UnitY2T2U",) or row.key == "predict_durations" else 1
    there = seamless(version, speaks=True)
    there["tokenizer"] = part("SentencePieceTokenizer", model="x.model", normaliser="transformers")
    there["text_seq2seq"]["num_encoder_layers"] = 1
    there["vocoder"]["speakers"] = {"eng": [0], "spa": [1, 2]}
    ours = {role: dict(node) for role, node in there.items()}
    assert compare(ours, there, "x", accept=False, generates=True) == []
    if row.key == "predict_durations":
        ours["t2u"]["vocoder_predicts_durations"] = False
    theirs = row.value(there, "transformers")
    other = next(value for value in (row.new, row.value(there, "fairseq2")) if value != theirs)
    holder, _, key = row.key.rpartition(".")
    if holder:
        ours[row.role][holder] = {**ours[row.role][holder], key: other}
    else:
        ours[row.role][key] = other
    lines = compare(ours, there, "x", accept=True, generates=True)
    assert any(f"{key}=" in line and f"(transformers: {theirs}".lower() in line.lower() for line in lines)


@pytest.mark.parametrize("version", [1, 2])
def test_compat_in_the_config_is_what_an_export_wants(version: int):
    """The published sizes, with `compat=transformers`."""
    name = "seamless_m4t_large_v1" if version == 1 else "seamless_m4t_large_v2"
    family = family_of("seamless_m4t" if version == 1 else "seamless_m4t_v2", "here")
    roles = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "t2u", "vocoder", "task")

    def nodes(*more: str) -> Nodes:
        config = compose([f"experiment={name}", "tokenizer.model=x", *more])
        return {role: dict(config[role]) for role in roles}

    same = nodes("compat=transformers")
    there = family.nodes({"model_type": "seamless_m4t", **family.settings(same)})
    assert compare(same, there, "x", accept=False, generates=True) == []
    with pytest.raises(UserError, match=r"position_start=2 .*with these weights transformers computes other numbers"):
        compare(nodes(), there, "x", accept=False, generates=True)


@pytest.mark.parametrize(
    ("version", "role", "change", "message"),
    [
        (1, "speech_encoder", {"chunk_size": 8, "left_chunks": 0}, r"speech_encoder\.chunk_size=8: the published lay"),
        (1, "frontend", {"standardise": False}, r"frontend\.standardise=false: the seamless_m4t layout cannot hold"),
        (2, "frontend", {"low_freq": 60.0}, r"frontend\.low_freq=60.0: .*would compute with 20.0"),
        (2, "frontend", {"high_freq": 7000.0}, r"frontend\.high_freq=7000.0: .*would compute with null"),
        (1, "text_seq2seq", {"key_bias": False}, r"text_seq2seq\.key_bias=False: the published layout has only True"),
        (2, "text_seq2seq", {"max_positions": 30}, r"max_positions=30: the published layout has only None"),
    ],
)
def test_settings_without_a_place_are_refused(
    version: int, role: str, change: dict[str, Any], message: str, tmp_path: Path
):
    layout = "seamless_m4t" if version == 1 else "seamless_m4t_v2"
    nodes = seamless(version)
    nodes[role].update(change)
    with pytest.raises(UserError, match=message):
        export(nodes, tmp_path / "out", layout, compat="transformers")
    assert not (tmp_path / "out").exists()


def test_v2_holds_chunks_and_half_the_rate_is_the_upper_edge(tmp_path: Path):
    nodes = seamless(2, speech_encoder={"chunk_size": 4, "left_chunks": 1}, frontend={"high_freq": 8000.0})
    model, said = export(nodes, tmp_path / "out", "seamless_m4t_v2")
    assert said == []
    assert logits_apart(model, tmp_path / "out", 2) < 1e-5


def test_w2v_bert_has_no_chunks(tmp_path: Path):
    encoder = part("ConformerEncoder", input_dim=8, **SIZES, num_layers=1, final_norm=False)
    nodes = {"frontend": part("Fbank", num_mel_bins=4), "speech_encoder": encoder}
    assert export(nodes, tmp_path / "out", "wav2vec2-bert")[1] == []
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["num_mel_bins"] == 4
    encoder.update(chunk_size=4, left_chunks=1)
    with pytest.raises(UserError, match=r"speech_encoder\.chunk_size=4"):
        export(nodes, tmp_path / "chunks", "wav2vec2-bert")


WAV2VEC2 = part("Wav2Vec2Encoder", **SIZES, num_layers=2, conv_dims=[8, 8], conv_kernels=[10, 3], conv_strides=[5, 2],
                position_kernel=8, position_groups=4, leak_padding="all")  # fmt: skip


@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2"])
def test_states_of_an_inner_layer_are_named(model_type: str, tmp_path: Path):
    model, said = export({"speech_encoder": {**WAV2VEC2, "layer": 1}}, tmp_path / "out", model_type)
    (line,) = said
    assert "speech_encoder.layer=1" in line
    assert "hidden_states[1]" in line
    samples = torch.randn(1, 800, generator=torch.Generator().manual_seed(0))
    peer = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        ours = model.built["speech_encoder"](Padded(samples, torch.tensor([800]))).data
        states = peer(samples, output_hidden_states=True)
    torch.testing.assert_close(ours, states.hidden_states[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, states.last_hidden_state, atol=0.1)
    # The last is the model's output, but where a norm follows it.
    assert export({"speech_encoder": {**WAV2VEC2, "layer": 2}}, tmp_path / "last", model_type)[1] == []
    stable = {**WAV2VEC2, "layer": 2, "conv_norm": "layer", "norm_first": True, "leak_padding": "none"}
    with pytest.raises(UserError, match=r"speech_encoder\.layer=2: the published layout has only None"):
        export({"speech_encoder": stable}, tmp_path / "norm", model_type)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_new_encoder_of_samples_says_how_it_reads_them(normalise: bool, tmp_path: Path):
    nodes = {"frontend": part("RawWaveform", normalise=normalise), "speech_encoder": WAV2VEC2}
    assert export(nodes, tmp_path / "out", "wav2vec2")[1] == []
    reader = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (reader.do_normalize, reader.return_attention_mask) == (normalise, False)
    # A group norm that sees no padding is none that transformers has: said, since a row alone is the same.
    nodes["speech_encoder"] = {**WAV2VEC2, "leak_padding": "none"}
    _, said = export(nodes, tmp_path / "exact", "wav2vec2")
    assert said == ["speech_encoder.leak_padding=none (transformers: norm): changes padded rows of a batch"]


def test_whisper_listens_with_its_own_front_end(tmp_path: Path):
    text = part("TransformerSeq2Seq", vocab_size=40, **SIZES, num_encoder_layers=0, num_decoder_layers=1,
                activation="gelu", scale_embeddings=False, key_bias=False, max_positions=20, pad_id=1)  # fmt: skip
    encoder = part("WhisperEncoder", **SIZES, num_layers=1, input_dim=80, max_positions=50)
    nodes = {"frontend": part("WhisperLogMel", pad_seconds=1.0), "speech_encoder": encoder, "text_seq2seq": text}
    assert export(nodes, tmp_path / "out", "whisper")[1] == []
    for change, message in (
        (part("Fbank", num_mel_bins=40), "frontend: Fbank; a model in the whisper layout reads WhisperLogMel"),
        (part("WhisperLogMel", pad_seconds=1.3), r"frontend\.pad_seconds=1\.3: .*would compute with 1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            export({**nodes, "frontend": change}, tmp_path / "other", "whisper")


@pytest.mark.parametrize(("version", "rows"), [(1, 4 + 9 + 2), (2, 4 + 9)])
def test_a_unit_vocabulary_without_a_size_is_written_with_one(version: int, rows: int, tmp_path: Path):
    """And what made the units for training stays behind."""
    layout = "seamless_m4t" if version == 1 else "seamless_m4t_v2"
    extractor = part("KMeansUnits", num_units=9)
    _, said = export(seamless(version, speaks=True, unit_extractor=extractor), tmp_path / "out", layout)
    (line,) = said
    assert line.startswith("unit_extractor: left out, it made the units to train on")
    assert json.loads((tmp_path / "out/config.json").read_text())["t2u_vocab_size"] == rows
    peer_class = getattr(transformers, f"SeamlessM4T{'v2' if version == 2 else ''}ForSpeechToSpeech")
    _, report = peer_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report


# Pickles from before torch 1.6


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_either_format_are_read_and_nothing_else(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    def saved(content: Any) -> Path:
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "x.pt"

    settings = ("argparse.Namespace",)
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}
    for known in ((), settings):
        found = read_pickle(saved({"model": tensors}), known)["model"]
        assert all(torch.equal(found[key], value) for key, value in tensors.items())
    with_settings = saved({"model": tensors, "cfg": Namespace(x=1)})
    assert torch.equal(read_pickle(with_settings, settings)["model"]["a"], tensors["a"])
    assert not isinstance(read_pickle(with_settings, settings)["cfg"], Namespace)
    refused = re.escape("x.pt: refused, the pickle holds more than tensors and may run code")
    with pytest.raises(UserError, match=refused):
        read_pickle(with_settings)
    for known in ((), settings):
        with pytest.raises(UserError, match=refused):
            read_pickle(saved({"model": tensors, "evil": Evil()}), known)
    assert not (tmp_path / "executed").exists()
    path = saved({"model": tensors})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"x\.pt: damaged, or not written by torch\.save"):
        read_pickle(path, settings)


# A run


@pytest.mark.slow
def test_a_run_that_made_its_own_units_goes_out(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """From YAML: refused with what to do, and written with a line for each thing that transformers does otherwise."""
    monkeypatch.chdir(tmp_path)
    data = build(compose([*tiny, f"root={tmp_path}"]).data, allowed=("voxzoo",), tokenizer=None)
    data.prepare_data()
    rows = [row.id for split in data.splits() for row in data.rows(split)]
    Path("units.jsonl").write_text("".join(json.dumps({"id": row, "units": [1, 2, 3] * 30}) + "\n" for row in rows))
    command = [
        *("train", *tiny, "task=speech_to_speech_unity", "task.ctc_weight=0", "task.vocoder_languages=[eng,spa]"),
        *("adaptor=tiny", "adaptor.kernel_size=8", "adaptor.stride=8", "speech_encoder.intermediate_ffn=true"),
        *("t2u=tiny_unity2", "t2u.kernel_size=7", "t2u.dim=32", "unit_extractor=tiny", "vocoder=tiny_hifi_gan"),
        *("vocoder.num_langs=2", "vocoder.num_speakers=2", "data.units=units.jsonl", "name=run", f"root={tmp_path}"),
        *("trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none", "data.num_workers=0"),
    ]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["export", "run", "out", "--as", "seamless_m4t_v2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "task.t2u_input=pieces (transformers: all)" in line
    assert main(["export", "run", "out", "--as", "seamless_m4t_v2", "--compat", "transformers"]) == 0
    said = capsys.readouterr().out
    assert "note: unit_extractor: left out" in said
    assert "note: task.t2u_input=pieces (transformers: all): changes results" in said
    _, report = transformers.SeamlessM4Tv2Model.from_pretrained("out", output_loading_info=True)
    assert not any(report.values()), report
