"""What is trained or run: one LightningModule a file, and the rooms around them. Imported on first use."""

from __future__ import annotations

from ..components.lazy import on_first_use

_WHERE = {
    "Cascade": "cascade",
    "Consensus": "consensus",
    "EncodeSpeech": "encode_speech",
    "FitUnits": "fit_units",
    "GanVocoder": "gan_vocoder",
    "SpeechAndTextToText": "speech_and_text_to_text",
    "SpeechToSpeechLM": "speech_to_speech_lm",
    "SpeechToSpeechUnitY": "speech_to_speech_unity",
    "SpeechToText": "speech_to_text",
    "Task": "task",
    "Teacher": "teacher",
    "TextToText": "text_to_text",
    "TrainCodec": "train_codec",
    "UnitMatch": "training.unit_match",
    "UnitVocoderTask": "unit_vocoder",
    "WriteCodes": "write_codes",
    "evaluate_run": "serving.evaluation",
    "load_run": "runs.run",
    "prepare": "training.train",
    "train": "training.train",
    "translate": "serving.translator",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _WHERE)
