"""Whisper's parts by themselves: lengths, padding, limits, tokens, and what is refused."""

from __future__ import annotations

import importlib
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from published import WHISPER_PIECES as PIECES
from published import WHISPER_SPECIALS as SPECIALS
from published import write_whisper_tokenizer as write_tokenizer
from voxzoo.components import TransformerSeq2Seq, WhisperEncoder, WhisperLogMel, WhisperTokenizer
from voxzoo.components.contract import check_part
from voxzoo.components.converters import describe, from_transformers, to_transformers
from voxzoo.components.errors import UserError
from voxzoo.components.layers.attention import MultiHeadAttention
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Padded
from voxzoo.configs import build, compose
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.planning.shapes import FakeTokenizer

V = PIECES + len(SPECIALS) + 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> WhisperTokenizer:
    return WhisperTokenizer(str(path), V)


# Encoder


def small_encoder(**settings: int) -> WhisperEncoder:
    torch.manual_seed(0)
    encoder = WhisperEncoder(**{"input_dim": 9, "dim": 12, "num_layers": 2, "num_heads": 3, "ffn_dim": 20, **settings})
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn_like(weight))
    return encoder.eval()


def test_more_frames_than_positions_are_refused():
    encoder = small_encoder(max_positions=20)
    assert encoder(Padded.from_list([torch.randn(40, 9)])).data.shape == (1, 20, 12)
    with pytest.raises(UserError, match=r"speech of 41 frames, but this encoder has positions for 40 \(0.4 s\)"):
        encoder(Padded.from_list([torch.randn(41, 9)]))


def test_positions_are_stored_and_do_not_learn():
    encoder = small_encoder(max_positions=20)
    assert encoder.state_dict()["positions"].shape == (20, 12)
    encoder(Padded.from_list([torch.randn(8, 9)])).data.sum().backward()
    frozen = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert frozen == ["positions"]
    assert [name for name, weight in encoder.named_parameters() if not weight.requires_grad] == ["positions"]


# Decoder


def test_keys_without_bias_are_keys_with_a_bias_of_zero():
    torch.manual_seed(0)
    for memory_dim in (None, 10):
        ours = MultiHeadAttention(12, 3, memory_dim=memory_dim, key_bias=False)
        full = MultiHeadAttention(12, 3, memory_dim=memory_dim)
        assert sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in ours.parameters()) == 12
        with torch.no_grad():
            for weight in ours.parameters():
                weight.normal_()
        state = ours.state_dict()
        name = "qkv" if memory_dim is None else "kv"
        bias = state.pop(f"{name}.bias")
        state[f"{name}.weight"] = state.pop(f"{name}.product.weight")
        state[f"{name}.bias"] = torch.cat([bias[:-12], torch.zeros(12), bias[-12:]])
        full.load_state_dict(state)
        x, memory = torch.randn(2, 5, 12), None if memory_dim is None else torch.randn(2, 7, memory_dim)
        torch.testing.assert_close(ours(x, memory), full(x, memory))


def small_decoder(max_positions: int | None = 10) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    model = TransformerSeq2Seq(
        vocab_size=23,
        dim=12,
        num_heads=2,
        ffn_dim=20,
        num_encoder_layers=0,
        num_decoder_layers=2,
        activation="gelu",
        scale_embeddings=False,
        pad_id=20,
        max_positions=max_positions,
        key_bias=False,
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def test_steps_are_teacher_forcing():
    model = small_decoder()
    memory = Padded.from_list([torch.randn(n, 12) for n in (5, 3)])
    tokens = torch.randint(0, 20, (2, 10))
    with torch.no_grad():
        together = model.decode(memory, Padded(tokens, torch.tensor([10, 10]))).data
        state = model.start(memory)
        steps = torch.stack([model.step(tokens[:, place], state) for place in range(10)], dim=1)
    torch.testing.assert_close(steps, together, atol=1e-5, rtol=1e-5)
    tokens = torch.zeros(1, 11, dtype=torch.int64)
    with pytest.raises(ValueError, match="a sequence of 11 steps; this model has learned positions for 10"):
        model.decode(Padded.from_list([torch.randn(4, 12)]), Padded(tokens, torch.tensor([11])))


def search(model: TransformerSeq2Seq, prefix: list[int], **options: object) -> list[list[int]]:
    memory = Padded.from_list([torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (5, 3, 9)])
    chosen = SearchOptions(**{"method": "greedy", "beam_size": 1, "min_length": 0, **options})  # pyright: ignore
    rows = torch.tensor([prefix] * len(memory))
    return [found[0].tokens.tolist() for found in generate(model, memory, rows, chosen, 20, 20, 20)]


def test_search_ends_where_positions_end():
    model = small_decoder(10)
    # The last of 10 - 2 + 1 tokens has no position and is not fed.
    assert [len(row) for row in search(model, [21, 22], force_eos=False, min_length=12)] == [9, 9, 9]
    assert max(len(row) for row in search(model, [21, 22])) <= 8  # and eos
    assert min(len(row) for row in search(small_decoder(None), [21, 22], min_length=12)) >= 12
    with pytest.raises(ValueError, match="the prefix has 11 tokens, but the decoder has positions for 10"):
        search(model, [1] * 11)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_eos_that_is_also_padding_ends_a_sentence(method: str):
    model = small_decoder(None)
    with torch.no_grad():  # a decoder that wants to stop at once: every state points at eos
        model.decoder.norm.weight.zero_()
        model.decoder.norm.bias.copy_(model.decoder.embed.embedding.weight[20])
        model.decoder.embed.embedding.weight[7] = 0.9 * model.decoder.embed.embedding.weight[20]
    beams = 1 if method == "greedy" else 3
    assert search(model, [21], method=method, beam_size=beams) == [[], [], []]
    # Barred from the first place alone.
    found = search(model, [21], method="greedy", begin_suppress=(20,))
    assert found == [[7], [7], [7]]
    assert search(model, [21], begin_suppress=(20, 7)) != found
    assert search(model, [21], unk_penalty=float("inf")) == [[], [], []]  # unk is eos too


# Front end


def test_clips_are_filled_up_to_thirty_seconds():
    front = WhisperLogMel()
    for samples in (1, 150, 16000, 480000):
        assert front(torch.randn(samples)).shape == (front.output_length(samples), 80) == (3000, 80)
    with pytest.raises(UserError, match=r"a clip of 30\.01 s, but frontend\.pad_seconds=30 is the longest there is"):
        front(torch.zeros(480160))
    with pytest.raises(UserError, match=r"frontend\.pad_seconds=null"):
        front.output_length(480001)


@pytest.mark.parametrize("pad", ["30.0", "null"])
def test_the_longest_speech_is_what_front_end_and_encoder_take(pad: str):
    words = ["frontend=whisper", f"frontend.pad_seconds={pad}", "speech_encoder=whisper_tiny", "adaptor=tiny"]
    config = compose([*words, "text_seq2seq=tiny", "tokenizer=tiny"])
    with torch.device("meta"):
        task = build(config.task, frontend=build(config.frontend), tokenizer=FakeTokenizer(400, ("eng",)))
    assert task.longest_seconds == pytest.approx(30, abs=0.01)
    assert task.frontend.output_length(int(task.longest_seconds * 16000)) <= 3000


def test_clips_as_long_as_they_are():
    front = WhisperLogMel(num_mel_bins=20, pad_seconds=None)
    for samples in (0, 1, 159, 160, 200, 201, 479, 16000, 480160):
        features = front(torch.randn(samples))
        assert features.shape == (front.output_length(samples), 20) == (samples // 160, 20)
        assert features.isfinite().all()
    assert front.fingerprint != WhisperLogMel(20).fingerprint != WhisperLogMel(80).fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(front))(torch.ones(800)), front(torch.ones(800)))
    with pytest.raises(ValueError, match="output_dim must be num_mel_bins=80"):
        WhisperLogMel(output_dim=81)
    with pytest.raises(ValueError, match=r"one channel of shape \(N,\)"):
        front(torch.zeros(2, 100))


# Tokenizer


def test_prefix_says_language_and_task(tokenizer: WhisperTokenizer):
    start, en, zh, es, fr, yue, translate, transcribe, plain = range(PIECES + 1, PIECES + len(SPECIALS))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id) == (PIECES, PIECES, PIECES, start)
    assert tokenizer.prefix("eng", "spa", "s2tt") == [start, es, translate, plain]
    assert tokenizer.prefix("eng", "spa") == [start, es, translate, plain]
    assert tokenizer.prefix("eng", "eng", "s2tt") == [start, en, transcribe, plain]
    assert tokenizer.prefix("eng", "eng", "asr") == [start, en, transcribe, plain]
    assert tokenizer.prefix("eng") == [start, en, transcribe, plain]
    assert tokenizer.prefix("spa", "spa", "asr") == [start, es, transcribe, plain]
    assert tokenizer.prefix("fra", "spa", "s2tt") == [start, fr, transcribe, plain]
    assert tokenizer.prefix_length == 4
    assert (tokenizer.lang_id("cmn"), tokenizer.lang_id("yue")) == (zh, yue)
    target = tokenizer.target("el tren", "eng", "spa", "s2tt")
    assert target == [start, es, translate, plain, *tokenizer.encode("el tren"), PIECES]
    with pytest.raises(UserError, match="must be told what is spoken"):
        tokenizer.prefix("eng", None, "s2tt")
    with pytest.raises(UserError, match=r"no token for language 'que'; tokenizer\.languages: cmn"):
        tokenizer.prefix("que")


@pytest.mark.parametrize("multilingual", [True, False])
def test_the_tokenizer_keeps_its_contract(path: Path, multilingual: bool):
    check_part(partial(WhisperTokenizer, str(path), V, multilingual=multilingual))


def test_languages_may_be_few(path: Path):
    few = WhisperTokenizer(str(path), V, ["spa", "eng"])
    assert few.languages == ("spa", "eng")
    with pytest.raises(UserError, match="no token for language 'fra'"):
        few.lang_id("fra")
    with pytest.raises(UserError, match=r"tokenizer\.languages: Whisper has no que; it has cmn, .*eng"):
        WhisperTokenizer(str(path), V, ["spa", "que"])


def test_an_english_only_vocabulary(path: Path):
    english = WhisperTokenizer(str(path), V, multilingual=False)
    start, plain = PIECES + 1, PIECES + len(SPECIALS) - 1
    assert english.languages == ("eng",)
    assert english.prefix("eng", "eng", "asr") == [start, plain]
    assert english.prefix_length == 2
    with pytest.raises(UserError, match="no token for language 'spa'"):
        english.prefix("spa")


def test_text_comes_back_and_specials_are_dropped(tokenizer: WhisperTokenizer):
    for text in ("the train leaves", "¿qué? 9 🚂", "", "a  b\n"):
        ids = tokenizer.encode(text)
        assert all(0 <= i < PIECES for i in ids)
        assert tokenizer.decode([*tokenizer.prefix("spa"), *ids, PIECES, V - 1]) == text
    assert tokenizer.decode(tokenizer.encode(" the train")) == "the train"
    # Text is never a command.
    injected = tokenizer.encode("<|endoftext|><|es|>")
    assert max(injected) < PIECES
    assert tokenizer.decode(injected) == "<|endoftext|><|es|>"


def test_bytes_bring_it_back(path: Path, tokenizer: WhisperTokenizer):
    assert tokenizer.to_bytes() == path.read_bytes()
    carried = torch.frombuffer(bytearray(tokenizer.to_bytes()), dtype=torch.uint8)
    for again in (WhisperTokenizer.from_bytes(carried, V), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode("the train é") == tokenizer.encode("the train é")
        assert again.languages == tokenizer.languages


def test_characters_of_pieces(tokenizer: WhisperTokenizer):
    table = tokenizer.piece_characters()
    assert table.shape[0] == V
    assert int(table.max()) == tokenizer.num_characters - 1
    ids = tokenizer.encode("the train é")
    assert (table[ids] > 0).sum() >= len(ids)
    longest = next(i for i in ids if tokenizer.decode([i]).strip() == "train")
    assert (table[longest] > 0).sum() == len(" train")
    letters = {tuple(table[i][table[i] > 0].tolist()) for i in tokenizer.encode("tt")}
    assert len(letters) == 1
    assert (table[PIECES:] == 0).all()
    half = tokenizer.encode("🚂")  # four bytes that are no characters by themselves
    assert len(half) > 1
    assert (table[half[0]] == torch.tensor([1, *[0] * (table.shape[1] - 1)])).all()


def test_what_is_no_whisper_tokenizer_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"is no file: give the tokenizer\.json of a Whisper model"):
        WhisperTokenizer(str(tmp_path / "gone.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json is no tokenizer\.json"):
        WhisperTokenizer(str(tmp_path / "bad.json"))
    other = write_tokenizer(tmp_path / "other.json", ["endoftext", "en"])
    with pytest.raises(UserError, match=r"is not Whisper's: it has no <\|startoftranscript\|>, <\|notimestamps\|>"):
        WhisperTokenizer(str(other), V)
    with pytest.raises(UserError, match=rf"has ids up to {V - 4}, too many for tokenizer\.vocab_size=300"):
        WhisperTokenizer(str(path), 300)

    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package tokenizers: pip install voxzoo\[eval\]"):
        WhisperTokenizer(str(path), V)


# Layout


def config(**changes: object) -> dict[str, object]:
    sizes = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads", "ffn_dim")}
    return {"model_type": "whisper", "d_model": 8, "vocab_size": V, "num_mel_bins": 80, **sizes, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu': only 'gelu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"d_model": None}, "config.json of a whisper model has no d_model"),
        ({"pad_token_id": None}, "config.json of a whisper model has no pad_token_id"),
    ],
)
def test_settings_without_a_part_are_refused(tmp_path: Path, changes: dict[str, object], message: str):
    (tmp_path / "config.json").write_text(json.dumps(config(**changes)))
    with pytest.raises(UserError, match=message):
        describe(tmp_path)


def test_files_beside_the_weights_are_read(tmp_path: Path):
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(config()))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"is_multilingual": True, "suppress_tokens": [1, 2], "num_beams": 3, "max_length": 448})
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80, "chunk_length": 20}))
    nodes = describe(tmp_path)
    assert nodes["frontend"]["pad_seconds"] == 20.0
    assert nodes["tokenizer"]["multilingual"] is True
    found = nodes["task"]["search"]
    assert (found["method"], found["beam_size"], found["suppress"], found["max_length"]) == ("beam", 3, [1, 2], 444)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"hop_length": 80}))
    with pytest.raises(UserError, match="hop_length=80: only 160"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("told", "vocab_size", "message"),
    [
        ({"no_timestamps_token_id": PIECES + 10}, V, r"<\|notimestamps\|> is 339 there, but .* says 340"),
        ({"lang_to_id": {"<|en|>": PIECES + 2, "<|es|>": PIECES + 3}}, V, r"<\|es\|> is 334 there, but .* says 333"),
        ({"lang_to_id": {"<|de|>": PIECES + 3}}, V, r"<\|de\|> is no token there, but .* says 333"),
        ({"task_to_id": {"translate": PIECES + 8}}, V, r"<\|translate\|> is 337 there, but .* says 338"),
        ({}, 300, "the tokenizer has 340 ids .* vocab_size is 300"),
        ({}, 340 + 1502, "the tokenizer has 340 ids .* vocab_size is 1842"),
    ],
)
def test_the_tokenizer_of_another_whisper_is_refused(tmp_path: Path, told: dict, vocab_size: int, message: str):
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(config(vocab_size=vocab_size)))
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=message):
        describe(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json", [*SPECIALS, "0.00"])
    (tmp_path / "config.json").write_text(json.dumps(config(vocab_size=PIECES + 12)))
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match="the tokenizer has 341 ids, but the model's vocab_size is 342"):
        describe(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": []}}')
    with pytest.raises(UserError, match=r"is no tokenizer\.json of Whisper"):
        describe(tmp_path)


def publish(folder: Path) -> None:
    """A small Whisper, random weights, in the layout of transformers."""
    transformers = pytest.importorskip("transformers")
    settings = config(d_model=12, encoder_ffn_dim=20, max_source_positions=400, decoder_start_token_id=PIECES + 1)
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), PIECES)
    del settings["model_type"]
    published = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**settings, **special))
    published.save_pretrained(folder)


def test_a_run_of_both_parts_goes_out_as_the_layout_that_fits(
    tiny: list[str], path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And export says that transformers fills clips up, which this model does not."""
    publish(tmp_path / "whisper")
    source = tmp_path / "whisper"
    command = [
        *("task=speech_to_text", "data=tiny", f"root={tmp_path}", "name=run", tiny[-1], "data.num_workers=0"),
        *("frontend=pretrained", "frontend.pad_seconds=null", "adaptor=none", "task.ctc_weight=0"),
        *("tokenizer=whisper", f"tokenizer.model={path}", f"tokenizer.vocab_size={V}"),
        *("speech_encoder=pretrained", f"speech_encoder.pretrained={source}"),
        *("text_seq2seq=pretrained", f"text_seq2seq.pretrained={source}"),
        *("trainer.max_steps=1", "trainer.val_check_interval=1"),
    ]
    assert main(["train", *command]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "out (whisper): config.json" in said
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "frontend.pad_seconds=null" in notes[0]
    assert "fills each one up to 8 s" in notes[0]
    written = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in
               ("config", "generation_config", "preprocessor_config")}  # fmt: skip
    assert written["preprocessor_config"]["chunk_length"] == 8
    ids = {"bos_token_id": PIECES, "eos_token_id": PIECES, "pad_token_id": PIECES, "decoder_start_token_id": PIECES + 1}
    assert ids.items() <= written["config"].items()
    assert ids.items() <= written["generation_config"].items()
    task = load_run(tmp_path / "run").task
    with pytest.warns(UserWarning, match=r"frontend\.pad_seconds=null: this model reads clips as long as they are"):
        to_transformers(task, tmp_path / "again", model_type="whisper")


def test_a_frozen_encoder_under_new_parts_trains_from_yaml_alone(tiny: list[str], tmp_path: Path):
    publish(tmp_path / "whisper")
    command = [
        *("experiment=whisper_mixed", f"speech_encoder.pretrained={tmp_path / 'whisper'}", f"root={tmp_path}"),
        *("data=tiny", "text_seq2seq=tiny", "adaptor=tiny", "tokenizer=tiny", tiny[-1]),
        *("trainer.max_steps=3", "trainer.val_check_interval=3", "data.num_workers=0"),
    ]
    assert main(["train", *command]) == 0
    run = load_run(tmp_path / "whisper_mixed")
    assert run.config.frontend.pad_seconds is None
    kept = from_transformers(tmp_path / "whisper", roles=["speech_encoder"]).speech_encoder.state_dict()
    for name, weight in run.task.parts()["speech_encoder"].state_dict().items():
        assert torch.equal(weight, kept[name]), name
