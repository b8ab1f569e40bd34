"""Speech to text by beam search, five beams: features to ids with SeamlessM4T v2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, main
from .models import EOS, LANG, LENGTHS, PAD, SMALL, TINY, UNK, features, our_search, peer_search, speech_to_text


def case(name: str, models: Any, options: Options, seconds: list[float], tokens: int, **aims: Any) -> Case:
    """Ids of the best hypotheses are compared."""
    from voxzoo.components.search import generate

    peer, (encoder, adaptor, decoder) = models
    speech = features(options, seconds)
    mask = speech.mask.long()
    prefix = torch.tensor([[EOS, LANG]] * len(seconds), device=options.device)
    settings, wanted = peer_search(tokens), our_search(tokens)

    def run_peer() -> list[torch.Tensor]:
        found = super(type(peer), peer).generate(
            speech.data, attention_mask=mask, decoder_input_ids=prefix, generation_config=settings
        )
        return list(found[:, 2:].cpu())

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            memory = adaptor(encoder(speech)).states
            found = generate(decoder, memory, prefix, wanted, EOS, PAD, UNK)
        return [hypotheses[0].tokens for hypotheses in found]

    return Case(name, run_peer, run_ours, sum(seconds), steps=tokens, **aims)


def models(options: Options, **sizes: Any) -> Any:
    """Both sides, ready to run."""
    peer, ours = speech_to_text(options, **sizes)
    return options.place(peer), [options.serve(part) for part in ours]


def cases(options: Options) -> Iterator[Case]:
    if options.quick:
        yield case("tiny, 2 utterances", models(options, **TINY), options, LENGTHS[:2], 6)
        return
    both = models(options, **SMALL)
    yield case("256 wide, 20k words, 15 s", both, options, [15.0], 24, least=1.5, aim=2.0)
    if options.brief:
        return
    yield case("256 wide, 20k words, 4 of 2.3 to 15 s", both, options, LENGTHS, 24, least=1.5, aim=2.0, rounds=3)
    if options.full:
        both = models(options)
        yield case("SeamlessM4T v2 large, 15 s", both, options, [15.0], 24, least=1.1, aim=2.0, rounds=3)


if __name__ == "__main__":
    sys.exit(main("s2tt_beam", cases))
