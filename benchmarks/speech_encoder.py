"""Speech encoder and adaptor of SeamlessM4T v2: features to states, in evaluation mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, main
from .models import LENGTHS, SMALL, TINY, features, speech_to_text

# The decoder is not run.
_DECODER = {"decoder_layers": 1, "decoder_ffn_dim": 64, "vocab_size": 300}


def case(name: str, models: Any, options: Options, seconds: list[float], compile: bool = False, **aims: Any) -> Case:
    """Encoder and adaptor on one batch; the states of real steps are compared. `compile`: with a compiled peer too."""
    peer, (encoder, adaptor, _) = models
    speech = features(options, seconds)
    mask = speech.mask.long()
    lengths = adaptor.output_lengths(speech.lengths).tolist()

    def run_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = peer.speech_encoder(speech.data, attention_mask=mask).last_hidden_state
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = adaptor(encoder(speech)).states.data
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    return Case(name, run_peer, run_ours, sum(seconds), **aims)


def models(options: Options, **sizes: Any) -> Any:
    """Both sides, ready to run."""
    peer, ours = speech_to_text(options, **{**sizes, **_DECODER})
    return options.place(peer), [options.serve(part) for part in ours]


def cases(options: Options) -> Iterator[Case]:
    sizes, lengths = (TINY, LENGTHS[:2]) if options.quick else (SMALL, LENGTHS)
    named = f"{sizes['hidden_size']} wide, {sizes['speech_encoder_layers']} layers"
    batch = f"{len(lengths)} of {lengths[0]} to {lengths[-1]} s"
    yield case(f"{named}, {batch}", models(options, **sizes), options, lengths, least=1.5, aim=2.2)
    if options.quick:
        return
    for layers in (4, 24) if options.full else (4,):
        named = f"1024 wide, {layers} layers"
        both = models(options, speech_encoder_layers=layers)
        yield case(f"{named}, 10 s", both, options, [10.0], least=1.1, aim=2.0)
        if options.brief:
            return
        yield case(f"{named}, 30 s", both, options, [30.0], least=1.5, aim=2.8, memory_aim=0.25, rounds=2)
        yield case(f"{named}, {batch}", both, options, lengths, least=1.1, aim=1.8, rounds=2)


if __name__ == "__main__":
    sys.exit(main("speech_encoder", cases))
