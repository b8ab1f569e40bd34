"""The peer's models with random weights, and the same weights in voxzoo's parts.

Letters: B batch, T frames, F features, S subwords.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .harness import Options, adopt, randomise

FRAMES_PER_SECOND, FEATURES = 50, 160
EOS, PAD, UNK, LANG = 3, 0, 1, 7
"""Ids of SeamlessM4T; any id serves as the language."""

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "speech_encoder_layers": 4,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 1024,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 1024,
    "vocab_size": 20_000,
}
TINY: dict[str, Any] = {
    **SMALL,
    "hidden_size": 32,
    "speech_encoder_layers": 1,
    "speech_encoder_intermediate_size": 64,
    "encoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_ffn_dim": 64,
    "vocab_size": 300,
}
NO_DROPOUT: dict[str, Any] = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "adaptor_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "speech_encoder_dropout": 0.0,
    "speech_encoder_layerdrop": 0.0,
    "var_pred_dropout": 0.0,
}
LENGTHS = [2.3, 6.1, 9.7, 15.0]
"""Seconds of speech of a padded batch."""
BEAMS = 5


def speech_to_text(options: Options, **sizes: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """SeamlessM4T v2 for S2TT: the peer; and speech encoder, adaptor and text decoder. On the CPU."""
    from transformers import SeamlessM4Tv2Config, SeamlessM4Tv2ForSpeechToText

    config = SeamlessM4Tv2Config(**sizes)
    config._attn_implementation = "sdpa"
    peer = randomise(SeamlessM4Tv2ForSpeechToText(config)).eval()
    encoder, adaptor, decoder = adopt(peer, "speech_encoder", "adaptor", "text_seq2seq")
    return peer, (encoder, adaptor, decoder)


def features(options: Options, seconds: list[float], seeds: Sequence[int] = range(1000)) -> Any:
    """Random features of utterances of these lengths as one padded batch (B, T, F); lengths on the CPU. A seed is an
    utterance: whatever its batch, it is the same."""
    from voxzoo.components.types import Padded

    rows = [
        torch.randn(round(length * FRAMES_PER_SECOND), FEATURES, generator=torch.Generator().manual_seed(seed))
        for length, seed in zip(seconds, seeds)
    ]
    batch = Padded.from_list(rows)
    return Padded(batch.data.to(options.device, options.torch_dtype), batch.lengths)


def subwords(options: Options, vocab_size: int, lengths: list[int], seeds: Sequence[int] = range(1000)) -> Any:
    """Random ids without special ones as a padded batch (B, S), as `features`."""
    from voxzoo.components.types import Padded

    rows = [
        torch.randint(10, vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
        for length, seed in zip(lengths, seeds)
    ]
    batch = Padded.from_list(rows, PAD)
    return Padded(batch.data.to(options.device), batch.lengths)


def peer_search(tokens: int, eos: int = EOS, pad: int = PAD) -> Any:
    """The peer's settings for beam search of exactly `tokens` new ones, so that both sides do the same steps."""
    from transformers import GenerationConfig

    return GenerationConfig(
        num_beams=BEAMS,
        min_new_tokens=tokens - 1,
        max_new_tokens=tokens,
        early_stopping=False,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=eos,
        decoder_start_token_id=eos,
    )


def our_search(tokens: int) -> Any:
    """The same as `peer_search`."""
    from voxzoo.components.search import SearchOptions

    return SearchOptions(
        beam_size=BEAMS, min_length=tokens - 1, max_length=tokens, early_stopping=False, force_eos=False
    )
