"""The peer's models with random weights, and the same weights in voxzoo's parts.

Letters: B batch, T frames, F features, S subwords.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from voxzoo.components.roles import Tokenizer

from .harness import Options, adopt, adopt_all, randomise

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
    "t2u_variance_predictor_embed_dim": 256,
}
TINY: dict[str, Any] = {
    **SMALL,
    "hidden_size": 32,
    "t2u_variance_predictor_embed_dim": 32,
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


_SPOKEN = {"deu": 0, "eng": 1}
VOCODER: dict[str, Any] = {"unit_embed_dim": 256, "upsample_initial_channel": 128}
"""A vocoder that stands to `SMALL` as the published one to the published model."""
TINY_VOCODER: dict[str, Any] = {"unit_embed_dim": 16, "upsample_initial_channel": 32, "lang_embed_dim": 8,
                                "spkr_embed_dim": 8}  # fmt: skip


def speech_to_speech(**sizes: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """SeamlessM4T v2 whole, with random weights: the peer, our parts by role, and the settings of the task. On the CPU.

    Characters sound for about three frames each, so that a text of 20 words is some four seconds of speech.
    """
    from transformers import SeamlessM4Tv2Config, SeamlessM4Tv2Model

    config = SeamlessM4Tv2Config(**sizes)
    config._attn_implementation = "sdpa"
    peer: Any = randomise(SeamlessM4Tv2Model(config)).eval()
    with torch.no_grad():
        peer.t2u_model.model.decoder.duration_predictor.proj.bias.fill_(1.386)
    pieces = Spelled(config.vocab_size)
    for key, table in {
        "text_decoder_lang_to_code_id": dict.fromkeys(_SPOKEN, LANG),
        "t2u_lang_code_to_id": {lang: 5 + place for lang, place in _SPOKEN.items()},
        "vocoder_lang_code_to_id": _SPOKEN,
        "id_to_text": {str(number): piece for number, piece in enumerate(pieces.pieces()) if piece},
        "char_to_id": pieces.characters,
    }.items():
        setattr(peer.generation_config, key, table)
    peer.generation_config.pad_token_id, peer.generation_config.eos_token_id = PAD, EOS
    return peer, *adopt_all(peer)


class Spelled(Tokenizer):
    """A tokenizer of random pieces of one to six letters: only what a piece is spelled like matters here."""

    pad_id, unk_id, bos_id, eos_id = PAD, UNK, 2, EOS
    languages = tuple(_SPOKEN)

    def __init__(self, vocab_size: int) -> None:
        drawn = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.vocab_size = vocab_size
        self.characters = {"▁": 2, **{letter: number for number, letter in enumerate(letters, 3)}}
        self._pieces = [
            "" if number < 10 else "▁" * drawn.randint(0, 1) + "".join(drawn.choices(letters, k=drawn.randint(1, 6)))
            for number in range(vocab_size)
        ]

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("benchmarks begin with ids")

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))

    def to_bytes(self) -> bytes:
        raise NotImplementedError("benchmarks save no tokenizer")

    def lang_id(self, lang: str) -> int:
        return LANG

    def pieces(self) -> Sequence[str]:
        return self._pieces

    def piece_characters(self) -> torch.Tensor:
        table = torch.zeros(self.vocab_size, 7, dtype=torch.int64)
        for row, piece in zip(table, self._pieces):
            row[: len(piece)] = torch.tensor([self.characters[letter] for letter in piece], dtype=torch.int64)
        return table
