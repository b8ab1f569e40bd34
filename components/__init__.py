"""The zoo: roles (`components/roles/`) and the parts that fill them, importable by name from here.

Parts are imported on first use, so that `import voxzoo.components` stays light.
"""

from __future__ import annotations

from .lazy import on_first_use

_PARTS = {
    "frontend": ["Fbank", "RawWaveform", "WhisperLogMel"],
    "tokenizer": ["M2M100Tokenizer", "SentencePieceTokenizer", "WhisperTokenizer"],
    "speech_encoder": ["ConformerEncoder", "WhisperEncoder", "Wav2Vec2Encoder"],
    "adaptor": ["ConformerAdaptor", "ConvAdaptor", "StackAdaptor", "NoAdaptor", "CTCShrinkAdaptor"],
    "text_seq2seq": ["TransformerSeq2Seq"],
    "t2u": ["AutoregressiveT2U", "CTCT2U", "UnitY2T2U"],
    "unit_extractor": ["KMeansUnits"],
    "vocoder": ["CodeHiFiGAN", "GriffinLimVocoder", "ISTFTVocoder"],
    "discriminator": ["HiFiGANDiscriminator", "MSSTFTDiscriminator"],
    "codec": ["EnCodec", "SpectralCodec"],
    "speech_lm": ["TransformerSpeechLM"],
    "stream_lm": ["TransformerStreamLM"],
}
_WHERE = {name: role for role, names in _PARTS.items() for name in names}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _WHERE)


def parts() -> dict[str, list[str]]:
    """Role -> names of the parts that fill it."""
    return {role: list(names) for role, names in _PARTS.items()}
