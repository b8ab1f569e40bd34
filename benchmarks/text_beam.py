"""Text translation by beam search, five beams: NLLB-200's architecture with its 256k words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from .ctranslate2_models import ids, loaded, others, token
from .harness import Case, Options, adopt, main, randomise
from .models import BEAMS, our_search, peer_search, subwords

EOS, PAD, UNK, LANG = 2, 1, 3, 7
Models = tuple[Any, Any, dict[str, Any]]
"""The peer, ours, and name -> CTranslate2's."""


def models(options: Options, vocab_size: int, dim: int, layers: int, heads: int, ffn_dim: int) -> Models:
    """All sides, ready to run."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    sizes: dict[str, Any] = {
        f"{side}_{key}": size
        for side in ("encoder", "decoder")
        for key, size in (("layers", layers), ("attention_heads", heads), ("ffn_dim", ffn_dim))
    }
    config = M2M100Config(vocab_size=vocab_size, d_model=dim, decoder_start_token_id=EOS, **sizes)
    peer = randomise(M2M100ForConditionalGeneration(config)).eval()
    (ours,) = adopt(peer, "text_seq2seq")
    beside = loaded(peer, "Translator", options, {EOS: "</s>", PAD: "<pad>"})
    return options.place(peer), options.serve(ours), beside


def case(name: str, both: Models, options: Options, lengths: list[int], tokens: int, **aims: Any) -> Case:
    """Ids of the best hypotheses are compared."""
    from voxzoo.components.search import generate

    peer, ours, converted = both
    source = subwords(options, ours.vocab_size, lengths)
    mask = source.mask.long()
    prefix = torch.tensor([[EOS, LANG]] * len(lengths), device=options.device)
    settings, wanted = peer_search(tokens, EOS, PAD), our_search(tokens)

    def run_peer() -> list[torch.Tensor]:
        found = peer.generate(source.data, attention_mask=mask, decoder_input_ids=prefix, generation_config=settings)
        return list(found[:, 2:].cpu())

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            found = generate(ours, ours.encode(source), prefix, wanted, EOS, PAD, UNK)
        return [hypotheses[0].tokens for hypotheses in found]

    def run_other(model: Any) -> Any:
        rows = [[token(number) for number in row.tolist()] for row in source.unpad()]

        def run() -> list[torch.Tensor]:
            found = model.translate_batch(
                rows, target_prefix=[[token(LANG)]] * len(rows), beam_size=BEAMS, min_decoding_length=tokens + 1,
                max_decoding_length=tokens + 1,
            )  # fmt: skip
            return [torch.tensor(row[1:]) for row in ids([result.hypotheses[0] for result in found])]

        return run

    beside = others(converted, run_other, options)
    return Case(
        name, run_peer, run_ours, tokens * len(lengths), "tokens", others=beside, others_aim=1.3, steps=tokens, **aims
    )  # fmt: skip


def cases(options: Options) -> Iterator[Case]:
    if options.quick:
        both = models(options, 300, 32, 1, 4, 64)
        yield case("32 wide, 300 words, batch of 2", both, options, [9, 5], 6)
        return
    both = models(options, 256_206, 256, 4, 4, 1024)
    yield case("256 wide, 256k words, 1 sentence", both, options, [20], 24, least=1.1, aim=3.0)
    if options.brief:
        return
    lengths = [60, 55, 48, 40, 33, 27, 20, 12]
    yield case("256 wide, 256k words, 8 sentences", both, options, lengths, 16, least=1.1, aim=2.0, rounds=3)
    if options.full:
        both = models(options, 256_206, 1024, 12, 16, 4096)
        yield case("NLLB-200 600M, 1 sentence", both, options, [20], 24, least=1.1, aim=1.5, rounds=3)


if __name__ == "__main__":
    sys.exit(main("text_beam", cases))
