"""Whisper base on windows of 30 s: the encoder, and features to text by beam search with five beams.

Random weights of that size, so that it runs from a clone; `--whisper FOLDER` takes a published folder in the layout of
transformers, which then hears speech (espeak) and ends where it wants to. With random weights eos is blocked, so that
all sides do the same steps.

Letters: B windows, T frames, F mel bins, T' states, D model dim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compiled import compiled
from .ctranslate2_models import loaded, others, storage
from .harness import Case, Options, adopt, main, randomise
from .models import BEAMS

_START, _NO_TIMES = "<|startoftranscript|>", "<|notimestamps|>"
_TINY: dict[str, Any] = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 50,
}  # fmt: skip
_BASE: dict[str, Any] = {
    "vocab_size": 51865, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "max_source_positions": 1500,
}  # fmt: skip


@dataclass
class Models:
    """One set of weights on all sides, ready to run.

    Attributes:
        peer: of transformers.
        encoder, decoder: ours.
        others: name -> of CTranslate2.
        prompt: start, language, task, no time stamps.
        eos: end of text, and padding.
    """

    peer: Any
    encoder: Any
    decoder: Any
    others: dict[str, Any]
    prompt: list[int]
    eos: int


def models(options: Options) -> Models:
    """Random weights, or those of `--whisper`."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    if options.whisper is not None and not options.quick:
        peer: Any = WhisperForConditionalGeneration.from_pretrained(options.whisper, dtype=torch.float32)
        prompt, eos = [50258, 50259, 50359, 50363], 50257
    else:
        sizes = _TINY if options.quick else _BASE
        prompt, eos = [1, 2, 3, 4], 5
        ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), eos)
        config = WhisperConfig(**sizes, **ids, decoder_start_token_id=1)
        config._attn_implementation = "sdpa"
        peer = randomise(WhisperForConditionalGeneration(config))
    encoder, decoder = adopt(peer.eval(), "speech_encoder", "text_seq2seq")
    special = {prompt[0]: _START, prompt[-1]: _NO_TIMES, eos: "<|endoftext|>"}
    ready = options.place(peer), options.serve(encoder), options.serve(decoder)
    return Models(*ready, loaded(peer, "Whisper", options, special), prompt, eos)


def windows(count: int, both: Models, options: Options) -> Tensor:
    """(B, T, F) features: random ones, or of speech where the weights are published."""
    if options.whisper is None or options.quick:
        frames, bins = both.encoder.longest_input, both.encoder.input_dim
        features = torch.randn(count, frames, bins, generator=torch.Generator().manual_seed(6))
    else:
        features = _spoken(count, options)
    return features.to(options.device, options.torch_dtype)


def _spoken(count: int, options: Options) -> Tensor:
    """(B, T, F) of 30 s each, full of English sentences about numbers."""
    from voxzoo.components.converters import from_transformers
    from voxzoo.datamodules.spoken_phrases.espeak import Espeak
    from voxzoo.datamodules.spoken_phrases.synthesis import resample_22050

    assert options.whisper is not None
    frontend: Any = from_transformers(options.whisper).frontend
    engine, rows = Espeak(seed=0), []
    for window in range(count):
        said, number = np.zeros(0, np.float32), 0
        while len(said) < 30 * 16_000:
            text = f"Train number {37 * (window + 1) + number} leaves from platform {number % 9 + 1} this evening."
            speech = resample_22050(engine.speak(text, voice="gmw/en-US", rate=160, pitch=50, pitch_range=50))
            said, number = np.concatenate([said, speech.astype(np.float32) / 32768]), number + 1
        rows.append(frontend(torch.from_numpy(said[: 30 * 16_000])))
    return torch.stack(rows)


def encoder_case(name: str, both: Models, options: Options, features: Tensor, **aims: Any) -> Case:
    """States (B, T', D) of windows (B, T, F) are compared."""
    from voxzoo.components.types import Padded

    given = Padded(features, torch.full((len(features),), features.shape[1]))
    channels = features.transpose(1, 2).contiguous()

    def run_with(encoder: Any) -> Any:
        def run_peer() -> Tensor:
            with torch.inference_mode():
                return encoder(channels).last_hidden_state

        return run_peer

    def run_ours() -> Tensor:
        with torch.inference_mode():
            return both.encoder(given).data

    def run_other(model: Any) -> Any:
        view = storage(channels)
        return lambda: torch.from_numpy(np.array(model.encode(view, to_cpu=True)))

    # Published states are some ten times as large as those of random weights.
    tolerance = 1e-4 if options.whisper is None else 1e-3
    encoder, beside = both.peer.model.encoder, others(both.others, run_other, options, 5 * tolerance)
    if len(features) == 1:
        beside |= compiled(encoder, run_with, options)
    return Case(
        name,
        run_with(encoder),
        run_ours,
        _seconds(features),
        tolerance=tolerance,
        others=beside,
        others_aim=1.3,
        **aims,
    )


def beam_case(name: str, both: Models, options: Options, features: Tensor, tokens: int, **aims: Any) -> Case:
    """Ids of the best hypotheses of windows (B, T, F) are compared: `tokens` each, or with published weights up to so
    many."""
    from transformers import GenerationConfig, GenerationMixin
    from voxzoo.components.search import SearchOptions, generate
    from voxzoo.components.types import Padded

    given = Padded(features, torch.full((len(features),), features.shape[1]))
    channels = features.transpose(1, 2).contiguous()
    prefix = torch.tensor([both.prompt] * len(features), device=options.device)
    ends = options.whisper is not None and not options.quick
    eos, least = both.eos, 1 if ends else tokens - 1
    wanted = SearchOptions(
        beam_size=BEAMS, min_length=least, max_length=tokens, force_eos=False, early_stopping=ends
    )  # fmt: skip
    settings = GenerationConfig(
        num_beams=BEAMS, max_new_tokens=tokens, min_new_tokens=least, do_sample=False, early_stopping=ends,
        pad_token_id=eos, eos_token_id=eos, decoder_start_token_id=both.prompt[0],
    )  # fmt: skip

    def run_peer() -> list[list[int]]:
        with torch.inference_mode():
            # Not Whisper's own generate, which adds rules of its own.
            generate_plainly: Any = GenerationMixin.generate
            found = generate_plainly(both.peer, channels, decoder_input_ids=prefix, generation_config=settings)
        return [_until(row, eos) for row in found[:, len(both.prompt) :].tolist()]

    def run_ours() -> list[list[int]]:
        with torch.inference_mode():
            found = generate(both.decoder, both.encoder(given), prefix, wanted, eos, eos, eos)
        return [hypotheses[0].tokens.tolist() for hypotheses in found]

    def run_other(model: Any) -> Any:
        view = storage(channels)

        def run() -> list[list[int]]:
            # It generates up to half of max_length.
            found = model.generate(
                view, [both.prompt] * len(features), beam_size=BEAMS, max_length=2 * tokens, suppress_blank=False,
                suppress_tokens=[] if ends else [eos],
            )  # fmt: skip
            return [_until(result.sequences_ids[0], eos) for result in found]

        return run

    beside = others(both.others, run_other, options)
    return Case(
        name, run_peer, run_ours, _seconds(features), others=beside, others_aim=1.3, steps=tokens, **aims
    )  # fmt: skip


def _until(row: list[int], eos: int) -> list[int]:
    """Ids before eos."""
    return row[: row.index(eos)] if eos in row else row


def _seconds(features: Tensor) -> float:
    """Of (B, T, F) windows of 100 frames a second."""
    return len(features) * features.shape[1] / 100


def cases(options: Options) -> Iterator[Case]:
    both = models(options)
    if options.quick:
        yield encoder_case("tiny encoder, 2 windows", both, options, windows(2, both, options))
        yield beam_case("tiny, beam 5, 2 windows", both, options, windows(2, both, options), 6)
        return
    weights = "base" if options.whisper is None else f"{options.whisper.name} (published)"
    tokens = 24 if options.whisper is None else 200
    one = windows(1, both, options)
    yield encoder_case(f"{weights} encoder, 30 s", both, options, one, least=1.0, aim=1.3)
    yield beam_case(f"{weights}, beam 5, 30 s", both, options, one, tokens, least=1.0, aim=2.0)
    if options.brief:
        return
    eights: dict[str, Any] = {"rounds": 1, "memory": False}
    eight = windows(8, both, options)
    yield encoder_case(f"{weights} encoder, 8 of 30 s", both, options, eight, least=1.0, aim=1.3, **eights)
    yield beam_case(f"{weights}, beam 5, 8 of 30 s", both, options, eight, tokens, least=1.0, aim=2.0, **eights)


if __name__ == "__main__":
    sys.exit(main("whisper", cases))
