"""EnCodec 24 kHz at its published size, 8 codebooks: samples to codes, and codes to samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, adopt, main, randomise

_RATE, _HOP, _BOOKS, _KBPS = 24_000, 320, 8, 6.0


def both(**sizes: Any) -> tuple[Any, Any]:
    """The peer, with codebooks at random, and our part with the same weights."""
    from transformers import EncodecConfig, EncodecModel

    peer: Any = randomise(EncodecModel(EncodecConfig(**sizes))).eval()
    generator = torch.Generator().manual_seed(3)
    for number, layer in enumerate(peer.quantizer.layers):
        embed = layer.codebook.embed
        embed.copy_(torch.randn(embed.shape, generator=generator) * 0.1 / (1 + number))
    (codec,) = adopt(peer, "codec")
    return peer, codec


def cases_of(words: str, parts: tuple[Any, Any], options: Options, seconds: list[float], **aims: Any) -> Iterator[Case]:
    """Encoding and decoding. Rows are whole frames, so that the peer's padding changes none of its codes."""
    from voxzoo.components.types import Padded

    peer, codec = parts
    generator = torch.Generator().manual_seed(4)
    frames = [round(length * _RATE / _HOP) for length in seconds]
    rows = [0.1 * torch.randn(count * _HOP, generator=generator) for count in frames]
    speech = Padded.from_list(rows)
    speech = Padded(speech.data.to(options.device), speech.lengths)
    codes = codec.encode(speech, _BOOKS)

    def encode_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            found = peer.encode(speech.data[:, None], bandwidth=_KBPS).audio_codes[0]
        return [row[:, :count].T for row, count in zip(found, frames, strict=True)]

    def encode_ours() -> list[torch.Tensor]:
        return codec.encode(speech, _BOOKS).unpad()

    def decode_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            waves = peer.decode(codes.data.transpose(1, 2)[None], [None])[0][:, 0]
        return [wave[: count * _HOP] for wave, count in zip(waves, frames, strict=True)]

    def decode_ours() -> list[torch.Tensor]:
        return codec.decode(codes).unpad()

    total = sum(frames) * _HOP / _RATE
    yield Case(f"encode {words}", encode_peer, encode_ours, total, **aims)
    yield Case(f"decode {words}", decode_peer, decode_ours, total, **aims)


def cases(options: Options) -> Iterator[Case]:
    sizes = {"num_filters": 4, "hidden_size": 16} if options.quick else {}
    peer, codec = both(**sizes)
    parts = options.place(peer), options.serve(codec)
    if options.quick:
        yield from cases_of("tiny, 2 utterances", parts, options, [0.4, 0.2])
        return
    yield from cases_of("one of 4 s", parts, options, [4.0], least=1.0, memory_aim=1.0, rounds=3)
    yield from cases_of("4 of 1 to 4 s", parts, options, [1.0, 1.7, 2.9, 4.0], least=1.0, memory_aim=1.0, rounds=3)


if __name__ == "__main__":
    sys.exit(main("codec", cases))
