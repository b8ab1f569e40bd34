"""Published models of random weights and a few thousand parameters, in the folders that transformers writes."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from voxzoo.components.converters import to_transformers
from voxzoo.components.tokenizer import train_sentencepiece
from voxzoo.configs import build, compose
from voxzoo.tasks import Task

TEXTS = [f"{name} llega el {day} a las {day} y media" for name in ("el tren", "María", "tu amigo") for day in range(30)]


def write(overrides: list[str], folder: Path, model_type: str, languages: list[str], vocab_size: int = 90) -> Path:
    """The model of a config, with a tokenizer that is trained for it.

    Args:
        languages: as the layout names them.
        vocab_size: of the pieces and the languages behind them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = train_sentencepiece(TEXTS, folder.with_suffix(".model"), vocab_size, len(languages))
    names = str(languages)
    tokenizer = (f"tokenizer.model={model}", f"tokenizer.languages={names}", f"tokenizer.vocab_size={vocab_size}")
    config = compose([*overrides, *tokenizer, "compat=transformers"])
    torch.manual_seed(0)
    task = build(config.task)
    assert isinstance(task, Task)
    task.config = OmegaConf.to_container(config, resolve=True)
    return to_transformers(task.eval(), folder, model_type=model_type)


def seamless_m4t_v2(folder: Path) -> Path:
    """Speech and text to text and speech, Spanish and English."""
    sizes = {"dim": 16, "num_heads": 2, "ffn_dim": 32}
    words = [
        *("experiment=seamless_m4t_large_v2", "tokenizer=tiny", "unit_extractor.num_units=20"),
        *(f"{role}.{key}={n}" for role in ("speech_encoder", "text_seq2seq", "t2u") for key, n in sizes.items()),
        *(f"adaptor.{key}={n}" for key, n in sizes.items() if key != "dim"),
        *(
            f"{role}.{key}=1"
            for role in ("text_seq2seq", "t2u")
            for key in ("num_encoder_layers", "num_decoder_layers")
        ),
        *("frontend.num_mel_bins=10", "speech_encoder.num_layers=1", "speech_encoder.kernel_size=5"),
        *("t2u.duration_dim=8", "t2u.num_characters=64", "vocoder.channels=32", "vocoder.unit_dim=16"),
        *("vocoder.lang_dim=4", "vocoder.speaker_dim=4", "vocoder.num_langs=2", "vocoder.num_speakers=2"),
        *(
            "vocoder.speakers=null",
            "vocoder.default_speaker=0",
            "vocoder.default_language=0",
            "task.vocoder_languages=[spa,eng]",
        ),
    ]
    return write(words, folder, "seamless_m4t_v2", ["spa", "eng"])


def nllb(folder: Path) -> Path:
    """Text to text; English, Spanish, Quechua."""
    sizes = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
    words = ["task=text_to_text", "text_seq2seq=nllb_600m", "tokenizer=tiny", "tokenizer.layout=nllb"]
    words += [f"text_seq2seq.{key}={n}" for key, n in sizes.items()]
    return write(words, folder, "m2m_100", ["eng_Latn", "spa_Latn", "quy_Latn", "<mask>"], 93)
