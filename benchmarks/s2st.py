"""Speech to speech with SeamlessM4T v2: features to text by greedy search, to units, to samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from .harness import Case, Options, main
from .models import SMALL, TINY, TINY_VOCODER, VOCODER, Spelled, features, speech_to_speech

_T2U: dict[str, Any] = {
    "t2u_encoder_layers": 2,
    "t2u_decoder_layers": 2,
    "t2u_encoder_attention_heads": 4,
    "t2u_decoder_attention_heads": 4,
    "t2u_encoder_ffn_dim": 1024,
    "t2u_decoder_ffn_dim": 1024,
}


def case(name: str, options: Options, sizes: dict[str, Any], seconds: list[float], tokens: int, **aims: Any) -> Case:
    """Ids of the text, units and waveforms are compared."""
    from voxzoo.components import Fbank
    from voxzoo.components.search import SearchOptions
    from voxzoo.components.types import Batch
    from voxzoo.tasks import SpeechToSpeechUnitY

    peer, parts, settings = speech_to_speech(**sizes)
    options.place(peer)
    given = {key: settings[key] for key in ("t2u_input", "t2u_eos", "vocoder_languages", "speaker")}
    search = SearchOptions(method="greedy", min_length=tokens - 1, max_length=tokens, force_eos=False)
    task = SpeechToSpeechUnitY(
        **parts, tokenizer=Spelled(peer.config.vocab_size), frontend=Fbank(), ctc_weight=0.0, search=search, **given
    )
    options.serve(task)
    speech = features(options, seconds)
    mask = speech.mask.long()
    batch = Batch(
        ids=tuple(map(str, range(len(seconds)))),
        src_lang=("deu",) * len(seconds),
        tgt_lang=("eng",) * len(seconds),
        speech=speech,
    )

    def run_peer() -> list[Any]:
        found = peer.generate(
            input_features=speech.data,
            attention_mask=mask,
            tgt_lang="eng",
            return_intermediate_token_ids=True,
            text_min_new_tokens=tokens - 1,
            text_max_new_tokens=tokens,
        )
        ends = found.waveform_lengths.reshape(-1).tolist()
        texts = [" ".join(str(number) for number in row[2:] if number > 3) for row in found.sequences.tolist()]
        # Where its units end the peer does not say; a wrong one would be heard.
        return [texts, [wave.flatten()[:end].float().cpu() for wave, end in zip(found.waveform, ends, strict=True)]]

    def run_ours() -> list[Any]:
        found = task.predict(batch, task="s2st")
        return [[prediction.text for prediction in found], [prediction.audio for prediction in found]]

    return Case(name, run_peer, run_ours, sum(seconds), steps=tokens, **aims)


def cases(options: Options) -> Iterator[Case]:
    if options.quick:
        sizes = {**TINY, **_T2U, "t2u_encoder_ffn_dim": 64, "t2u_decoder_ffn_dim": 64, **TINY_VOCODER}
        yield case("tiny, 2 utterances", options, sizes, [1.3, 0.8], 5)
        return
    yield case(
        "256 wide, 2 of 4.4 and 7.6 s", options, {**SMALL, **_T2U, **VOCODER}, [4.4, 7.6], 20, least=1.8, aim=2.8
    )
    if options.full:
        yield case("SeamlessM4T v2 large, 7.6 s", options, {}, [7.6], 20, least=1.5, aim=2.8, rounds=3)


if __name__ == "__main__":
    sys.exit(main("s2st", cases))
