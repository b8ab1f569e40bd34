"""EnCodec against transformers and the `encodec` package: codes, samples, chunks, streams, layouts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from voxzoo.components import EnCodec
from voxzoo.components.codec import encodec
from voxzoo.components.converters import from_encodec, from_transformers, to_encodec, to_transformers
from voxzoo.components.converters.published import load_part
from voxzoo.components.errors import UserError
from voxzoo.components.types import Padded
from voxzoo.configs import build, compose

MONO = {"num_filters": 4, "hidden_size": 16, "codebook_size": 64, "target_bandwidths": [0.9, 1.8, 3.6]}
STEREO = {
    "sampling_rate": 48000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01,
    "norm_type": "time_group_norm", "use_causal_conv": False, "target_bandwidths": [1.8, 3.6, 7.2, 14.4],
    "num_filters": 4, "hidden_size": 8, "codebook_size": 64,
}  # fmt: skip


def publish(folder: Path, **settings: Any) -> Any:
    """A random EncodecModel in a folder. Codebooks spread as its latents do, so that all of them are chosen from."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(1)
    peer = EncodecModel(EncodecConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                weight.add_(0.1 * torch.randn_like(weight))
        speech = noise(8000, peer.config.audio_channels).T[None]
        scale = peer.encoder(speech).std()
        for number, layer in enumerate(peer.quantizer.layers):
            layer.codebook.embed.normal_(std=float(scale) / 2**number)
            layer.codebook.embed_avg.normal_()
            layer.codebook.cluster_size.uniform_()
    peer.save_pretrained(folder)
    return peer


def noise(samples: int, channels: int = 1, seed: int = 0) -> Tensor:
    """(N, C)."""
    return 0.3 * torch.randn(samples, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mono(tmp_path_factory) -> tuple[Any, EnCodec]:
    folder = tmp_path_factory.mktemp("mono")
    return publish(folder, **MONO), from_transformers(folder).codec  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def stereo(tmp_path_factory) -> tuple[Any, EnCodec]:
    folder = tmp_path_factory.mktemp("stereo")
    return publish(folder, **STEREO), from_transformers(folder).codec  # pyright: ignore[reportReturnType]


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 7, 100, 320, 321, 5000, 24001])
def test_codes_and_samples_of_each_bandwidth_are_those_of_transformers(mono, samples: int):
    peer, codec = mono
    speech = noise(samples)
    seen = set()
    for kbps in peer.config.target_bandwidths:
        theirs = peer.encode(speech.T[None], bandwidth=kbps)
        ours = codec.encode(Padded(speech.T, torch.tensor([samples])), codec.codebooks_of(kbps))
        assert ours.lengths.tolist() == [-(-samples // 320)]
        assert torch.equal(ours.data[0].T, theirs.audio_codes[0, 0])
        waves = peer.decode(theirs.audio_codes, [None])[0]
        mine = codec.decode(ours)
        assert mine.lengths.tolist() == [ours.lengths[0] * 320]
        torch.testing.assert_close(mine.data, waves[0], atol=1e-5, rtol=0)
        seen |= {ours.data.shape[2]}
    assert seen == {2, 4, 8}


@torch.no_grad()
def test_the_published_size_too(tmp_path: Path):
    peer = publish(tmp_path)
    codec: Any = from_transformers(tmp_path).codec
    assert sum(p.numel() for p in codec.encoder.parameters()) == 7_425_792
    assert sum(p.numel() for p in codec.decoder.parameters()) == 7_426_018
    assert codec.num_codebooks == 32
    assert [codec.codebooks_of(kbps) for kbps in (1.5, 3, 6, 12, 24)] == [2, 4, 8, 16, 32]
    speech = noise(1001)
    theirs = peer.encode(speech.T[None], bandwidth=24.0)
    ours = codec.encode(Padded(speech.T, torch.tensor([1001])))
    assert torch.equal(ours.data[0].T, theirs.audio_codes[0, 0])
    torch.testing.assert_close(
        codec.decode(ours).data, peer.decode(theirs.audio_codes, [None])[0][0], atol=1e-5, rtol=0
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "samples", [300, 12345, 47520, 47521, 47680, 47841, 48000, 48001, 100000]
)  # also last chunks that lie within the overlap
def test_chunks_of_stereo_are_those_of_transformers(stereo, samples: int):
    peer, codec = stereo
    speech = noise(samples, 2)
    given = Padded(speech[None], torch.tensor([samples]))
    for kbps in peer.config.target_bandwidths[::3]:
        theirs = peer.encode(speech.T[None], bandwidth=kbps)
        # transformers fills the last chunk up to the length of the first.
        frames = [-(-min(48000, samples - at) // 320) for at in range(0, samples, 47520)]
        expected = torch.cat([chunk[0].T[:count] for chunk, count in zip(theirs.audio_codes, frames, strict=True)])
        ours = codec.encode(given, codec.codebooks_of(kbps))
        assert torch.equal(ours.data[0], expected)
        level = codec.loudness(given)
        assert level is not None
        torch.testing.assert_close(level.data[0], torch.cat(theirs.audio_scales)[:, 0])
        waves = peer.decode(
            theirs.audio_codes, theirs.audio_scales, last_frame_pad_length=theirs.last_frame_pad_length
        )[0]
        mine = codec.decode(ours, loudness=level)
        assert mine.data.shape[1] >= samples
        torch.testing.assert_close(mine.data[0].T, waves[0, :, : mine.data.shape[1]], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("samples", [47681, 47840, 95041, 95100])
def test_a_last_chunk_that_the_one_before_reaches_beyond_decodes(stereo, samples: int):
    """transformers fails on these lengths: it stacks chunks as if all but the last were whole."""
    _, codec = stereo
    given = Padded(noise(samples, 2)[None], torch.tensor([samples]))
    codes = codec.encode(given)
    assert torch.equal(codes.lengths, codec.output_lengths(given.lengths))
    assert codec.decode(codes, loudness=codec.loudness(given)).data.shape[1] >= samples


@torch.no_grad()
def test_rows_of_a_padded_batch_are_those_alone(mono, stereo):
    for (_, codec), lengths in ((mono, (5000, 1, 321, 0, 4999)), (stereo, (50000, 700, 47521))):
        rows = [noise(n, codec.channels, seed)[:, 0] for seed, n in enumerate(lengths)]
        batch = Padded.from_list(rows)
        soiled = Padded(torch.where(batch.mask, batch.data, 5.0), batch.lengths)
        codes = codec.encode(soiled)
        level, waves = codec.loudness(soiled), codec.decode(codes)
        assert torch.equal(codes.lengths, codec.output_lengths(batch.lengths))
        for place, row in enumerate(rows):
            alone = codec.encode(Padded(row[None], torch.tensor([len(row)])))
            assert torch.equal(codes.unpad()[place], alone.data[0])
            assert torch.equal(waves.unpad()[place], codec.decode(alone).data[0])
            if level is not None:
                own = codec.loudness(Padded(row[None], torch.tensor([len(row)])))
                assert own is not None
                assert torch.equal(level.unpad()[place], own.data[0])


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_pieces_of_a_stream_are_the_whole(mono, size: int):
    _, codec = mono
    codes = torch.randint(64, (2, 40, 8), generator=torch.Generator().manual_seed(2))
    whole = codec.decode(Padded(codes, torch.tensor([40, 40]))).data
    state, pieces = codec.start(2), []
    for number, piece in enumerate(codes.split(size, 1), 1):
        samples, state = codec.step(piece, state, last=number * size >= 40)
        pieces.append(samples)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)
    # The seven frames that the first convolution reflects, then each frame as it comes.
    if size == 1:
        assert [piece.shape[1] for piece in pieces] == [0] * 6 + [7 * 320] + [320] * 33


@torch.no_grad()
@pytest.mark.parametrize("samples", [320 * 60, 320 * 67 + 1, 320 * 79 + 319])
def test_long_speech_in_blocks_is_the_whole(mono, samples: int, monkeypatch: pytest.MonkeyPatch):
    _, codec = mono
    given = Padded.from_list([noise(samples)[:, 0], noise(700, seed=1)[:, 0]])
    codes = codec.encode(given)
    whole = codec.decode(codes)
    monkeypatch.setattr(encodec, "_BLOCK", 20)
    with _Largest() as held:
        again = codec.encode(given)
        assert torch.equal(again.data, codes.data)
        assert torch.equal(again.lengths, codes.lengths)
        blocks = codec.decode(codes)
    assert torch.equal(blocks.lengths, whole.lengths)
    torch.testing.assert_close(blocks.data, whole.data, atol=1e-6, rtol=0)
    # The widest layer has 4 channels at the rate of samples: of all samples they would be larger.
    assert held.most <= 2.2 * 4 * 20 * 320 < 4 * samples


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operation gives, the whole speech itself aside."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, Tensor) and (x.dim() < 2 or min(x.shape[-2:]) > 1):
                self.most = max(self.most, x.numel())
        return out


def test_a_norm_over_all_steps_is_no_stream():
    codec = EnCodec(causal=True, norm="time_group", num_filters=2, dim=4, num_codebooks=1)
    assert not codec.streams
    with pytest.raises(NotImplementedError, match="only a causal EnCodec"):
        codec.start(1)


@torch.no_grad()
def test_a_state_is_a_value(mono):
    _, codec = mono
    codes = torch.randint(64, (1, 30, 4), generator=torch.Generator().manual_seed(2))
    _, state = codec.step(codes[:, :10], codec.start(1))
    first, _ = codec.step(codes[:, 10:20], state)
    other, _ = codec.step(codes[:, 20:], state)
    again, _ = codec.step(codes[:, 10:20], state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(NotImplementedError, match="causal EnCodec"):
        EnCodec(causal=False, num_filters=2, dim=4, num_codebooks=1).start(1)


@torch.no_grad()
def test_speech_comes_and_goes_at_any_rate(mono):
    from torchaudio.functional import resample

    _, codec = mono
    speech = noise(16001)[:, 0]
    given = Padded(speech[None], torch.tensor([16001]))
    codes = codec.encode(given, 4, sample_rate=16000)
    assert torch.equal(codes.lengths, codec.output_lengths(given.lengths, 16000))
    there = resample(speech, 16000, 24000)
    assert torch.equal(codes.data, codec.encode(Padded(there[None], torch.tensor([len(there)])), 4).data)
    back = codec.decode(codes, sample_rate=16000)
    assert back.lengths.tolist() == [-(-int(codes.lengths[0]) * 320 * 2 // 3)]


def test_a_round_trip_is_bit_equal(tmp_path: Path):
    for name, settings in (("mono", MONO), ("stereo", STEREO)):
        peer = publish(tmp_path / name, **settings)
        to_transformers(from_transformers(tmp_path / name), tmp_path / f"{name}_again")
        again: Any = type(peer).from_pretrained(tmp_path / f"{name}_again")
        state = peer.state_dict()
        assert state.keys() == again.state_dict().keys()
        for key, value in again.state_dict().items():
            assert torch.equal(value, state[key]), key
        for key in (*settings, "codebook_size", "overlap"):
            assert getattr(again.config, key) == getattr(peer.config, key), key


def test_a_model_made_here_goes_out(tmp_path: Path):
    from transformers import EncodecModel
    from voxzoo.components.converters.published import PublishedModel

    for choice, books in (("tiny", 4), ("encodec_24khz", 32), ("encodec_48khz", 16)):
        config = compose([f"codec={choice}"] + ([] if choice == "tiny" else ["codec.num_filters=2", "codec.dim=8"]))
        made = PublishedModel("encodec", {"codec": dict(config.codec)}, {})
        made.add_module("codec", build(config.codec))
        to_transformers(made, tmp_path / choice)
        peer: Any = EncodecModel.from_pretrained(tmp_path / choice)
        assert len(peer.quantizer.layers) == books
        codec: Any = from_transformers(tmp_path / choice).codec
        assert codec.card() == made.codec.card()  # pyright: ignore


def test_codec_pretrained_takes_settings_and_weights(tmp_path: Path):
    peer = publish(tmp_path, **MONO)
    config = compose(["codec=pretrained", f"codec.pretrained={tmp_path}"])
    assert config.codec.num_codebooks == 8
    part = EnCodec(num_filters=4, dim=16, codebook_size=64, num_codebooks=4)
    loaded = load_part(part, "codec", tmp_path)
    assert not loaded.missing
    assert torch.equal(part.state_dict()["quantizer.books.3.embed"], peer.quantizer.layers[3].codebook.embed)


def test_the_package_s_layout_in_and_out(tmp_path: Path, mono, stereo):
    for name, (_, codec) in (("mono", mono), ("stereo", stereo)):
        path = to_encodec(codec, tmp_path / f"{name}.th")
        held = torch.load(path, weights_only=True)
        assert not any("layers." in key.replace("vq.layers", "") for key in held)
        again: Any = from_encodec(path).codec
        assert again.card() == codec.card()
        for key, value in codec.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key
    torch.save({"a": torch.ones(1)}, tmp_path / "other.th")
    with pytest.raises(UserError, match=r"other\.th: not written by the encodec package, which has encoder\.model\.0"):
        from_encodec(tmp_path / "other.th")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encodec_24khz", "encodec_48khz"])
def test_the_package_gives_the_same(tmp_path: Path, kind: str):
    package = pytest.importorskip("encodec", reason="the extra `encodec` (CC BY-NC) is not installed")
    torch.manual_seed(0)
    make = {
        "encodec_24khz": package.EncodecModel.encodec_model_24khz,
        "encodec_48khz": package.EncodecModel.encodec_model_48khz,
    }
    peer = make[kind](pretrained=False).eval()
    for number, layer in enumerate(peer.quantizer.vq.layers):
        layer._codebook.embed.normal_(std=0.3 / (1 + number))
    torch.save(peer.state_dict(), tmp_path / "package.th")
    codec: Any = from_encodec(tmp_path / "package.th").codec
    written = torch.load(to_encodec(codec, tmp_path / "again.th"), weights_only=True)
    assert written.keys() == peer.state_dict().keys()
    assert all(torch.equal(value, peer.state_dict()[key]) for key, value in written.items())
    for samples in (321, 5000) if codec.channels == 1 else (5000, 50001):
        speech = noise(samples, codec.channels)
        for kbps in peer.target_bandwidths[:: 2 if codec.channels == 1 else 3]:
            peer.set_target_bandwidth(kbps)
            frames = peer.encode(speech.T[None])
            given = Padded(speech[None] if codec.channels == 2 else speech.T, torch.tensor([samples]))
            ours = codec.encode(given, codec.codebooks_of(kbps))
            assert torch.equal(ours.data[0], torch.cat([codes[0].T for codes, _ in frames]))
            waves = peer.decode(frames)[0].T
            mine = codec.decode(ours, loudness=codec.loudness(given)).data[0].view(-1, codec.channels)
            torch.testing.assert_close(mine[: len(waves)], waves, atol=1e-5, rtol=0)


def test_what_is_not_the_codec_s_is_refused_in_a_line(mono):
    _, codec = mono
    two = torch.tensor([400])
    with pytest.raises(UserError, match=r"\(1, 400, 2\) \(stereo\), but this codec is for mono: give \(B, N\)"):
        codec.encode(Padded(torch.zeros(1, 400, 2), two))
    with pytest.raises(UserError, match="codec: speech of 0 Hz; give the rate of its samples, or none for 24000 Hz"):
        codec.encode(Padded(torch.zeros(1, 400), torch.tensor([400])), sample_rate=0)
    with pytest.raises(UserError, match="num_codebooks=9: this codec has 1 to 8"):
        codec.encode(Padded(torch.zeros(1, 400), two), 9)
    with pytest.raises(UserError, match=r"a bandwidth of 24 kbps: this codec has 0\.45 to 3\.6"):
        codec.codebooks_of(24)
    with pytest.raises(UserError, match=r"codes of shape \(1, 2, 9\)"):
        codec.decode(Padded(torch.zeros(1, 2, 9, dtype=torch.int64), torch.tensor([2])))
    with pytest.raises(UserError, match="code 64 is outside of the codebooks, which have 64 entries"):
        codec.decode(Padded(torch.full((1, 2, 3), 64), torch.tensor([2])))


def test_loudness_of_other_speech_is_refused(stereo):
    _, codec = stereo
    codes = Padded(torch.zeros(1, 200, 2, dtype=torch.int64), torch.tensor([200]))
    with pytest.raises(UserError, match="loudness of 5 chunks for 200 frames of codes"):
        codec.decode(codes, loudness=Padded(torch.ones(1, 5), torch.tensor([5])))
    quiet = codec.decode(codes)
    loud = codec.decode(codes, loudness=Padded(torch.full((1, 2), 2 * codec.default_loudness), torch.tensor([2])))
    torch.testing.assert_close(loud.data, 2 * quiet.data)
    with pytest.raises(ValueError, match="must be a multiple of the product of ratios"):
        EnCodec(chunk_seconds=0.0101)


def test_the_card_follows_what_chooses_codes(mono):
    _, codec = mono
    card = codec.card()
    assert card["frame_rate"] == 75
    other = EnCodec(num_filters=4, dim=16, codebook_size=64, num_codebooks=8)
    other.load_state_dict(codec.state_dict())
    assert other.card() == card
    with torch.no_grad():
        other.decoder.layers[0].conv.bias.add_(1)  # pyright: ignore
    assert other.card() == card  # it reads the same codes
    with torch.no_grad():
        other.quantizer.books[7].embed[0, 0] += 1e-3  # pyright: ignore
    assert str(other.card().difference(card)).startswith('weights is "')
