"""HuBERT at base width: samples to states, in evaluation mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, adopt, main, randomise

_RATE = 16_000


def case(name: str, options: Options, seconds: list[float], sizes: dict[str, Any], **aims: Any) -> Case:
    """States of the real steps are compared. No mask: base models are used without one."""
    from transformers import HubertConfig, HubertModel
    from voxzoo.components.types import Padded

    config = HubertConfig(**sizes)
    config._attn_implementation = "sdpa"
    peer: Any = randomise(HubertModel(config)).eval()
    (encoder,) = adopt(peer, "speech_encoder")
    options.place(peer)
    options.serve(encoder)
    generator = torch.Generator().manual_seed(4)
    speech = Padded.from_list([0.1 * torch.randn(round(s * _RATE), generator=generator) for s in seconds])
    speech = Padded(speech.data.to(options.device, options.torch_dtype), speech.lengths)
    lengths = encoder.output_lengths(speech.lengths).tolist()

    def run_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = peer(speech.data).last_hidden_state
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = encoder(speech).data
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    return Case(name, run_peer, run_ours, sum(seconds), **aims)


def cases(options: Options) -> Iterator[Case]:
    if options.quick:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
                 "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
        yield case("tiny, 2 utterances", options, [0.9, 0.5], sizes)
        return
    yield case("768 wide, 4 layers, 3 and 8 s", options, [3.0, 8.0], {"num_hidden_layers": 4}, least=1.0, aim=1.2)


if __name__ == "__main__":
    sys.exit(main("hubert", cases))
