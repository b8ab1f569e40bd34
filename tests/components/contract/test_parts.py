"""Every class of the zoo, and every tiny choice, against the contract of its role; a class in each of its kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from voxzoo import components
from voxzoo.components import (
    CTCT2U,
    AutoregressiveT2U,
    CodeHiFiGAN,
    ConformerAdaptor,
    ConformerEncoder,
    ConvAdaptor,
    CTCShrinkAdaptor,
    EnCodec,
    Fbank,
    GriffinLimVocoder,
    HiFiGANDiscriminator,
    ISTFTVocoder,
    KMeansUnits,
    MSSTFTDiscriminator,
    NoAdaptor,
    RawWaveform,
    SpectralCodec,
    StackAdaptor,
    TransformerSeq2Seq,
    TransformerSpeechLM,
    TransformerStreamLM,
    UnitY2T2U,
    Wav2Vec2Encoder,
    WhisperEncoder,
    WhisperLogMel,
)
from voxzoo.components.contract import check_part, require
from voxzoo.configs.compose import CONFIG_DIR
from voxzoo.configs.contract import check_choices

CONFORMER = partial(ConformerEncoder, 10, 16, 2, 2, 24, 7)
WAV2VEC2 = partial(
    Wav2Vec2Encoder, dim=16, num_layers=2, num_heads=2, ffn_dim=24, conv_dims=[8, 8, 8], conv_kernels=[20, 8, 4],
    conv_strides=[10, 8, 4], position_kernel=9, position_groups=4,
)  # fmt: skip
TEXT = partial(TransformerSeq2Seq, 20, 16, 2, 24)
SPEECH_LM = partial(TransformerSpeechLM, 7, 9, ["eng", "spa"], dim=16, num_heads=4, ffn_dim=24, num_layers=2)
STREAM_LM = partial(TransformerStreamLM, 7, 9, 4, dim=16, num_heads=4, ffn_dim=24, num_layers=2)
LEVELS = {"fft_size": 320, "window_length": 320, "num_mel_bins": 20}
HIFI_GAN = partial(
    CodeHiFiGAN, 8, 12, lang_dim=4, speaker_dim=5, channels=16, upsample_rates=[8, 8, 5], upsample_kernels=[16, 16, 11],
    resblock_kernels=[3, 5], resblock_dilations=[[1, 3], [1, 3]], crop_units=8, **LEVELS,
)  # fmt: skip
ENCODEC = partial(EnCodec, 16000, 1, 3, 16, 8, 4, (4, 2, 2))
SCALES = {"scale_channels": [4, 8], "scale_kernels": [15, 5], "scale_strides": [1, 4], "scale_groups": [1, 2]}


def of_encoder(**settings: Any) -> KMeansUnits:
    return KMeansUnits(4, "encoder", ConformerEncoder(20, 16, 2, 2, 24, 7), Fbank(num_mel_bins=10), **settings)


PARTS: dict[str, Callable[[], Any]] = {
    "fbank": Fbank,
    "fbank-stacked": partial(Fbank, num_mel_bins=20, stack=4, high_freq=7000.0),
    "fbank-plain-8k": partial(Fbank, sample_rate=8000, standardise=False),
    "fbank-no-floor": partial(Fbank, stack=1, variance_floor=0.0),
    "raw": RawWaveform,
    "raw-normalised": partial(RawWaveform, normalise=True),
    "whisper-mel": partial(WhisperLogMel, pad_seconds=None),
    "whisper-mel-padded": partial(WhisperLogMel, num_mel_bins=40, pad_seconds=1.0),
    "conformer-key": partial(CONFORMER, intermediate_ffn=True, left_context=5, right_context=2),
    "conformer-key-batch-chunks": partial(
        CONFORMER, conv_norm="batch", causal_conv=False, chunk_size=4, left_chunks=1, left_context=5, right_context=2
    ),
    "conformer-relative-chunks": partial(CONFORMER, position="relative", chunk_size=4, left_chunks=0),
    "conformer-relative-batch": partial(CONFORMER, position="relative", causal_conv=False, conv_norm="batch"),
    "conformer-plain": partial(CONFORMER, position="none", final_norm=False),
    "conformer-plain-batch-chunks": partial(
        CONFORMER, position="none", conv_norm="batch", causal_conv=False, chunk_size=4, intermediate_ffn=True
    ),
    "conformer-masks": partial(CONFORMER, mask_embedding=True, mask_time_prob=0.5, mask_time_length=2, layer_drop=0.3),
    "conformer-padding-in-norm": partial(CONFORMER, conv_norm="batch", padding_in_norm=True),
    "wav2vec2-group": WAV2VEC2,
    "wav2vec2-norm-first": partial(WAV2VEC2, conv_norm="layer", norm_first=True, conv_bias=True, position_kernel=8),
    "wav2vec2-group-norm-first": partial(WAV2VEC2, norm_first=True, conv_bias=True),
    "wav2vec2-layer": partial(WAV2VEC2, conv_norm="layer", input_norm=False),
    "wav2vec2-of-a-layer": partial(WAV2VEC2, norm_first=True, layer=1),
    "wav2vec2-input-of-layers": partial(WAV2VEC2, layer=0),
    "wav2vec2-norm-leaks": partial(WAV2VEC2, leak_padding="norm"),
    "wav2vec2-all-leaks": partial(WAV2VEC2, leak_padding="all", mask_embedding=True),
    "whisper-encoder": partial(WhisperEncoder, 10, 16, 2, 2, 24, max_positions=40),
    "adaptor-conformer": partial(ConformerAdaptor, 8, 6, 8, 8, 1, 2, 12),
    "adaptor-conformer-alike": partial(ConformerAdaptor, 8, 8, 3, 2, 2, 2, 12, final_norm=False),
    "adaptor-conformer-leaks": partial(ConformerAdaptor, 8, 6, 3, 2, 2, 2, 12, leak_padding=True),
    "adaptor-conv": partial(ConvAdaptor, 8, 6, 5, 2, 3),
    "adaptor-conv-even": partial(ConvAdaptor, 8, 6, 4, 3, 1, hidden_dim=7, final_norm=False),
    "adaptor-stack": partial(StackAdaptor, 8, 6, 3),
    "adaptor-none": partial(NoAdaptor, 8, 6),
    "adaptor-none-alike": partial(NoAdaptor, 8, 8),
    "adaptor-ctc-shrink": partial(CTCShrinkAdaptor, 8, 6, 9),
    "text": TEXT,
    "text-untied": partial(TEXT, tie_embeddings=False, tie_output=False, scale_embeddings=False, activation="gelu"),
    "text-decoder-alone": partial(TEXT, num_encoder_layers=0, max_positions=20, key_bias=False),
    "text-few-positions": partial(TEXT, max_positions=5),
    "t2u-autoregressive": partial(AutoregressiveT2U, 8, 10, 16, 2, 24, 1, 1, num_languages=3, max_length=12),
    "t2u-greedy": partial(
        AutoregressiveT2U, 16, 10, 16, 2, 24, 1, 1, beam_size=1, max_length=12, eos_step=True, tie_output=False
    ),
    "t2u-ctc-subwords": partial(
        CTCT2U, 8, 10, upsample_by="subword", dim=16, num_conv_layers=1, num_heads=2, num_output_layers=1,
        duration_dim=8,
    ),
    "t2u-unity2-same-width": partial(
        UnitY2T2U, 16, 10, 16, 2, 24, 1, 1, 3, 64, 30, 8, aligner_dim=8, eos_as_unit=True,
        vocoder_predicts_durations=True,
    ),
    "units-of-log-mel": partial(KMeansUnits, 4, normalise="feature", max_frames=400, restarts=1, **LEVELS),
    "units-of-an-encoder": of_encoder,
    "units-of-a-layer": partial(of_encoder, layer=1, normalise="none"),
    "vocoder-griffin-lim": partial(
        GriffinLimVocoder, 8, 16, 1, 3, num_speakers=3, num_langs=2, duration_dim=16, iterations=4, **LEVELS
    ),
    "vocoder-istft": partial(ISTFTVocoder, 8, 16, 32, 2, 3, num_speakers=3, num_langs=2, duration_dim=16, **LEVELS),
    "vocoder-hifi-gan": partial(HIFI_GAN, num_langs=3, num_speakers=5),
    "vocoder-hifi-gan-published": partial(HIFI_GAN, num_langs=3, num_speakers=5, published_lengths=True),
    "discriminator-of-periods": partial(HiFiGANDiscriminator, (2, 5), 0, (4, 6), 5, 3),
    "discriminator-of-scales": partial(HiFiGANDiscriminator, (), 2, **SCALES),
    "codec": ENCODEC,
    "codec-plain": partial(ENCODEC, pad_mode="constant", num_residual_layers=2, conv_shortcut=False),
    "codec-spectral": partial(SpectralCodec, 16000, 3, 16, 8, 64, 2, 64, 16, 24, 1, 2, 3),
    "codec-both-sides-normalised": partial(ENCODEC, causal=False, norm="time_group", normalise=True),
    "codec-stereo-chunks": partial(
        EnCodec, 48000, 2, 4, 16, 8, 4, (8, 5, 4, 2), causal=False, norm="time_group", normalise=True,
        chunk_seconds=0.02, overlap=0.1,
    ),
    "discriminator-of-spectra": partial(MSSTFTDiscriminator, (64, 32), 4, (1, 2)),
    "speech-lm": SPEECH_LM,
    "stream-lm": STREAM_LM,
    "stream-lm-grouped": partial(STREAM_LM, num_kv_heads=2, ffn="gated", activation="silu"),
    "stream-lm-delay": partial(STREAM_LM, pattern="delay"),
    "stream-lm-parallel": partial(STREAM_LM, pattern="parallel"),
    "stream-lm-flat": partial(STREAM_LM, pattern="flat", num_kv_heads=1),
    "speech-lm-rotary-grouped": partial(
        SPEECH_LM, positions="rotary", num_kv_heads=2, ffn="gated", activation="silu", tie_output=False
    ),
    "speech-lm-prefix": partial(SPEECH_LM, mask="prefix", scale_embeddings=False),
    "speech-lm-rotary-prefix-one-group": partial(SPEECH_LM, positions="rotary", mask="prefix", num_kv_heads=1),
    "speech-lm-learned": partial(SPEECH_LM, positions="learned", max_positions=40),
    "speech-lm-few-positions": partial(SPEECH_LM, positions="sinusoidal", max_positions=16, mask="prefix"),
}  # fmt: skip
TINY = [f"{role}={path.stem}" for role in components.parts() for path in sorted((CONFIG_DIR / role).glob("tiny*.yaml"))]


@pytest.mark.parametrize("name", PARTS)
def test_a_class_keeps_its_contract(name: str):
    outcomes = check_part(PARTS[name])
    assert len(outcomes) > 7


@pytest.mark.parametrize("choice", TINY)
def test_a_tiny_choice_keeps_its_contract(choice: str):
    beside = ["frontend=raw"] if choice.endswith("raw") else []
    checked = check_choices([choice, *beside])[0]
    require(checked.cls.__name__, checked.outcomes)
    assert len(checked.outcomes) > 7


def test_no_class_is_left_out():
    built = {type(make()).__name__ for make in PARTS.values()}
    rest = {name for names in components.parts().values() for name in names} - built
    assert rest == {
        "M2M100Tokenizer",
        "SentencePieceTokenizer",
        "WhisperTokenizer",
    }  # tiny, and where published folders are read
