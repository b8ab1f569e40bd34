"""The unit vocoder of SeamlessM4T v2 at full size: units to samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, main
from .models import TINY, TINY_VOCODER, speech_to_speech

_REST: dict[str, Any] = {
    **TINY,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_attention_heads": 4,
    "t2u_decoder_attention_heads": 4,
    "t2u_encoder_ffn_dim": 64,
    "t2u_decoder_ffn_dim": 64,
}
"""The other parts, which are not run."""
_FRAME = 320


def case(name: str, both: tuple[Any, Any], options: Options, lengths: list[int], **aims: Any) -> Case:
    """Units of one frame or more each; the samples of each row are compared. Rows are the same in any batch."""
    from voxzoo.components.types import Padded

    peer, vocoder = both
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(2, vocoder.num_units, (length,), generator=generator) for length in lengths]
    units = Padded.from_list(rows, 1).to(options.device)
    one = torch.ones(len(lengths), 1, dtype=torch.int64, device=options.device)

    def run_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            waves, ends = peer(units.data, speaker_id=0 * one, lang_id=one)
        return [wave.flatten()[:end].float() for wave, end in zip(waves, ends.reshape(-1).tolist(), strict=True)]

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            waves = vocoder(units, lang=one[:, 0], speaker=0 * one[:, 0])
        return [wave.float() for wave in waves.unpad()]

    seconds = sum(len(row) for row in run_ours()) / vocoder.sample_rate
    return Case(name, run_peer, run_ours, seconds, **aims)


def cases(options: Options) -> Iterator[Case]:
    peer, parts, _ = speech_to_speech(**{**_REST, **(TINY_VOCODER if options.quick else {})})
    both = options.place(peer.vocoder), options.serve(parts["vocoder"])
    if options.quick:
        yield case("tiny, 2 rows of 9 and 5 units", both, options, [9, 5])
        return
    yield case("100 units", both, options, [100], least=1.0, aim=1.1)
    yield case("4 rows of 40 to 100 units", both, options, [100, 85, 60, 40], least=1.0, aim=1.1, rounds=3)


if __name__ == "__main__":
    sys.exit(main("vocoder", cases))
