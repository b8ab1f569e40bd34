"""Speech encoder and adaptor of SeamlessM4T v2: features to states, in evaluation mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .harness import Case, Options, adopt, main, randomise

FRAMES_PER_SECOND = 50


def published(options: Options, **sizes: Any) -> nn.Module:
    """transformers' encoder with random weights; `sizes` are settings of its config."""
    from transformers import SeamlessM4Tv2Config
    from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

    config = SeamlessM4Tv2Config(**sizes)
    config._attn_implementation = "sdpa"
    return options.place(randomise(SeamlessM4Tv2SpeechEncoder(config)))


def parts(peer: nn.Module, options: Options) -> tuple[Any, Any]:
    """The same weights as `speech_encoder` and `adaptor`."""
    from voxzoo.components.converters.conformer import adaptor_rules, encoder_rules
    from voxzoo.components.converters.keymap import KeyMap

    config: Any = peer.config
    nodes = {
        "speech_encoder": {
            "_target_": "voxzoo.components.ConformerEncoder",
            "input_dim": config.feature_projection_input_dim,
            "dim": config.hidden_size,
            "num_layers": config.speech_encoder_layers,
            "num_heads": config.speech_encoder_attention_heads,
            "ffn_dim": config.speech_encoder_intermediate_size,
            "final_norm": True,
            "intermediate_ffn": True,
        },
        "adaptor": {
            "_target_": "voxzoo.components.ConformerAdaptor",
            "input_dim": config.hidden_size,
            "output_dim": config.hidden_size,
            "num_heads": config.speech_encoder_attention_heads,
            "ffn_dim": config.speech_encoder_intermediate_size,
            "leak_padding": True,
        },
    }
    rules = [*encoder_rules("", "layer"), *adaptor_rules("")]
    ours = adopt(peer, ("speech_encoder", "adaptor"), KeyMap(rules, left=[r".*\.num_batches_tracked"]), nodes)
    return options.serve(ours["speech_encoder"]), options.serve(ours["adaptor"])


def features(options: Options, seconds: list[float], dim: int = 160) -> Any:
    """Random features of utterances of these lengths, as one padded batch."""
    from voxzoo.components.types import Padded

    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(round(s * FRAMES_PER_SECOND), dim, generator=generator) for s in seconds]
    batch = Padded.from_list(rows)
    return Padded(batch.data.to(options.device, options.torch_dtype), batch.lengths)


def case(
    name: str, peer: nn.Module, ours: tuple[Any, Any], options: Options, seconds: list[float], **aims: Any
) -> Case:
    """Encoder and adaptor on one batch; the states of real steps are compared."""
    encoder, adaptor = ours
    speech = features(options, seconds)
    mask = speech.mask.long()
    lengths = adaptor.output_lengths(speech.lengths).tolist()

    def run_peer() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = peer(speech.data, attention_mask=mask).last_hidden_state
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            states = adaptor(encoder(speech)).states.data
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    return Case(name, run_peer, run_ours, sum(seconds), **aims)


def cases(options: Options) -> Iterator[Case]:
    small: dict[str, Any] = {
        "hidden_size": 256,
        "speech_encoder_layers": 4,
        "speech_encoder_attention_heads": 4,
        "speech_encoder_intermediate_size": 1024,
    }
    lengths = [2.3, 6.1, 9.7, 15.0]
    if options.quick:
        small.update(hidden_size=32, speech_encoder_layers=1, speech_encoder_intermediate_size=64)
        lengths = [1.1, 2.3]
    peer = published(options, **small)
    width = small["hidden_size"]
    yield case(
        f"{width} wide, {small['speech_encoder_layers']} layers, {len(lengths)} of {min(lengths)} to {max(lengths)} s",
        peer,
        parts(peer, options),
        options,
        lengths,
        least=1.5,
        aim=2.2,
    )
    if options.quick:
        return
    for layers in (4, 24) if options.full else (4,):
        peer = published(options, speech_encoder_layers=layers)
        ours = parts(peer, options)
        yield case(f"1024 wide, {layers} layers, 10 s", peer, ours, options, [10.0], least=1.1, aim=2.0)
        yield case(
            f"1024 wide, {layers} layers, 30 s", peer, ours, options, [30.0], least=1.5, aim=2.8, memory_aim=0.25
        )
        yield case(
            f"1024 wide, {layers} layers, 4 of 2.3 to 15 s", peer, ours, options, lengths, least=1.1, aim=1.8, rounds=3
        )


if __name__ == "__main__":
    sys.exit(main("speech_encoder", cases))
