"""A speech LM: greedy decoding behind prompts against GPT-2's architecture with the same weights, and codec streams at
once against one code at a time."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch

from .harness import Case, Options, Other, main, randomise
from .models import subwords

UNITS, CODES, STREAMS, POSITIONS = 1000, 1024, 8, 1024


def models(options: Options, dim: int, layers: int, heads: int, ffn_dim: int) -> tuple[Any, Any]:
    """The peer, and ours over its weights."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from voxzoo.components import TransformerSpeechLM

    ours = TransformerSpeechLM(
        UNITS, CODES, ["eng", "spa"], dim=dim, num_heads=heads, ffn_dim=ffn_dim, num_layers=layers,
        positions="learned", max_positions=POSITIONS, activation="gelu", scale_embeddings=False,
    )  # fmt: skip
    config = GPT2Config(
        vocab_size=ours.vocab_size, n_positions=POSITIONS, n_embd=dim, n_layer=layers, n_head=heads, n_inner=ffn_dim,
        activation_function="gelu", bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    peer = randomise(GPT2LMHeadModel(config)).eval()
    ours.load_state_dict(_of_gpt2(peer.state_dict()))
    return options.place(peer), options.serve(ours.eval())


def _of_gpt2(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn.inner", "mlp.c_proj": "ffn.outer",
    }  # fmt: skip
    found = {
        "embedding.weight": weights["transformer.wte.weight"],
        "positions.weight": weights["transformer.wpe.weight"],
    }
    for name, value in weights.items():
        if name.startswith("transformer.ln_f"):
            found[f"norm.{name.rpartition('.')[2]}"] = value
        elif name.startswith("transformer.h."):
            _, _, layer, *rest, kind = name.split(".")
            inner = ".".join(rest)
            # Its linear layers stand the other way round.
            turned = value.T if inner.split(".")[-1].startswith("c_") and kind == "weight" else value
            found[f"layers.{layer}.{names[inner]}.{kind}"] = turned
    return found


def decoding(name: str, both: tuple[Any, Any], options: Options, prompts: list[int], tokens: int, **aims: Any) -> Case:
    """Ids are compared."""
    from transformers import GenerationConfig
    from voxzoo.components.search import SearchOptions, generate
    from voxzoo.components.types import Padded

    peer, ours = both
    given = subwords(options, ours.vocab_size, prompts)
    rows = given.unpad()
    width = max(prompts)
    left = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long().to(options.device)
    settings = GenerationConfig(
        do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, eos_token_id=2
    )
    wanted = SearchOptions(method="greedy", min_length=tokens - 1, max_length=tokens, force_eos=False, suppress=())
    memory = Padded.from_list([row[:-1] for row in rows])
    prefix = torch.stack([row[-1:] for row in rows])

    def run_peer(settings: Any = settings) -> list[torch.Tensor]:
        return list(peer.generate(left, attention_mask=mask, generation_config=settings)[:, width:-1].cpu())

    static = copy.deepcopy(settings)
    static.cache_implementation, static.disable_compile = "static", True
    others = {"transformers, static cache": Other(lambda: run_peer(static))} if options.has_others else {}

    def run_ours() -> list[torch.Tensor]:
        with torch.inference_mode():
            found = generate(ours, memory, prefix, wanted, 2, 0, 0)
        return [hypotheses[0].tokens[: tokens - 1] for hypotheses in found]

    return Case(name, run_peer, run_ours, tokens * len(rows), "tokens", steps=tokens, others=others, **aims)


def streams(name: str, options: Options, frames: int, sizes: dict[str, Any], **aims: Any) -> Case:
    """Streams 2 to 8 in seven passes, against as many steps of a speech LM of the same size as there are codes. That
    each code is the most probable one is what is compared."""
    from voxzoo.components import TransformerSpeechLM, TransformerStreamLM
    from voxzoo.components.search import SearchOptions, generate
    from voxzoo.components.types import Padded

    lm = options.serve(TransformerStreamLM(UNITS, CODES, STREAMS, **sizes).eval())
    steps = options.serve(TransformerSpeechLM(UNITS, CODES, ["eng"], **sizes).eval())
    seeded = torch.Generator().manual_seed(0)
    units = Padded(torch.randint(UNITS, (1, frames * 2 // 3), generator=seeded), torch.tensor([frames * 2 // 3]))
    codes = Padded(torch.randint(CODES, (1, frames, STREAMS), generator=seeded), torch.tensor([frames]))
    units, codes = units.to(options.device), codes.to(options.device)
    first = Padded(codes.data[..., 0], codes.lengths)
    count = (STREAMS - 1) * frames
    prompt = Padded(units.data + 7, units.lengths)
    wanted = SearchOptions(method="greedy", min_length=count - 1, max_length=count, force_eos=False)
    begin = torch.tensor([[1]], device=options.device)

    def one_by_one() -> Any:
        with torch.inference_mode():
            return generate(steps, prompt, begin, wanted, 2, 0, 0)[0][0].tokens

    def at_once() -> Any:
        with torch.inference_mode():
            return lm.generate(units, codes, first).data

    def found() -> torch.Tensor:
        with torch.inference_mode():
            written = first.with_data(at_once())
            stages = [torch.tensor([j], device=options.device) for j in range(1, STREAMS)]
            said = [lm(units, written, codes, stage)[1][f"stream_{int(stage) + 1}"] for stage in stages]
        return torch.stack([one.mean for one in said]).cpu()

    check = (lambda: torch.ones(STREAMS - 1), found)
    return Case(name, one_by_one, at_once, count, "codes", check=check, **aims)


def cases(options: Options) -> Iterator[Case]:
    if options.quick:
        yield decoding("32 wide, 1 prompt", models(options, 32, 1, 4, 64), options, [9], 6)
        sizes = {"dim": 32, "num_heads": 4, "ffn_dim": 64, "num_layers": 1}
        yield streams("32 wide, 6 frames", options, 6, sizes)
        return
    both = models(options, 512, 6, 8, 2048)
    yield decoding("20 M, 1 prompt of 64", both, options, [64], 200, least=3.0)
    if options.brief:
        return
    lengths = [64, 60, 52, 47, 40, 33, 21, 12]
    yield decoding("20 M, 8 prompts of 12 to 64", both, options, lengths, 200, least=3.0, rounds=3)
    sizes = {"dim": 512, "num_heads": 8, "ffn_dim": 2048, "num_layers": 6}
    yield streams("20 M, streams 2 to 8 of a second", options, 75, sizes, least=10.0, rounds=3)


if __name__ == "__main__":
    sys.exit(main("speech_lm", cases))
