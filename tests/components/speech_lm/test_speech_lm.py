"""The decoder-only speech LM: its vocabulary, cached decoding behind prompts, search over it, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from voxzoo.components import TransformerSpeechLM
from voxzoo.components.errors import UserError
from voxzoo.components.joint_vocabulary import EOS, PAD, JointVocabulary
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Padded

KINDS = {
    "sinusoidal": {},
    "rotary": {"positions": "rotary", "num_kv_heads": 2, "ffn": "gated", "activation": "silu"},
    "prefix": {"mask": "prefix"},
    "learned": {"positions": "learned", "max_positions": 60},
    "segments": {"positions": "segments", "unit_steps": 3},
}


def model(**settings) -> TransformerSpeechLM:
    torch.manual_seed(1)
    sizes = {"dim": 32, "num_heads": 4, "ffn_dim": 48, "num_layers": 3, "tie_output": False}
    made = TransformerSpeechLM(20, 30, ["eng", "spa"], **{**sizes, **settings}).requires_grad_(False)
    for name, weight in made.named_parameters():
        if "norm" not in name:
            weight.mul_(2.0)  # far from uniform, or near-ties would decide
    return made.eval()


def prompts(lm: TransformerSpeechLM, *lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(3)
    return Padded.from_list([torch.randint(3, lm.vocab_size, (n,), generator=generator) for n in lengths])


# The vocabulary


def test_ids_are_those_of_the_arguments_whatever_their_order():
    first = JointVocabulary(1000, 1024, ["spa", "eng"], ["<trans>", "<gen>"])
    second = JointVocabulary(
        specials=["<gen>", "<trans>"], languages=("eng", "spa"), codebook_size=1024, num_units=1000
    )
    assert first.size == second.size == 2031
    assert [first.name(number) for number in (0, 1, 2, 3, 4, 5, 6, 7, 1006, 1007, 2030)] == [
        "<pad>", "<bos>", "<eos>", "<gen>", "<trans>", "<eng>", "<spa>", "unit 0", "unit 999", "code 0", "code 1023",
    ]  # fmt: skip
    assert all(first.name(number) == second.name(number) for number in range(first.size))
    assert first.lang_id("es") == first.lang_id("spa") == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 4, ["eng"]), "num_units must be at least 1"),
        ((4, 4, []), "no language"),
        ((4, 4, ["eng", "eng"]), "'eng' is named twice"),
        ((4, 4, ["eng"], ["<pad>"]), "'<pad>' is named twice"),
        ((4, 4, ["eng"], ["trans"]), "specials are written as <name>"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(arguments, words: str):
    with pytest.raises(UserError, match=words):
        JointVocabulary(*arguments)


def test_what_a_block_does_not_have_is_refused_in_a_line():
    vocabulary = JointVocabulary(10, 16, ["eng"])
    assert vocabulary.units.ids(torch.tensor([0, 9]), "a").tolist() == [6, 15]
    with pytest.raises(UserError, match=r"utterance x: units 10 is outside of the vocabulary, which has 10"):
        vocabulary.units.ids(torch.tensor([0, 10]), "utterance x")
    with pytest.raises(UserError, match=r"no tag for the language 'fra'; it has: eng"):
        vocabulary.lang_id("fra")
    with pytest.raises(UserError, match=r"templates.trans: there is no token <tran>; there are: <pad>, <bos>, <eos>"):
        vocabulary.special_id("<tran>", "templates.trans")


# Cached decoding


@pytest.mark.parametrize("kind", KINDS)
def test_steps_behind_prompts_of_unequal_length_are_teacher_forcing(kind: str):
    lm = model(**KINDS[kind])
    given = prompts(lm, 7, 3, 12, 1)
    tokens = prompts(lm, 40, 40, 40, 40).data
    state = lm.start(given)
    state.reserve(40)
    cache = state._cache.data_ptr()
    found = torch.stack([lm.project(lm.step(tokens[:, step], state)) for step in range(40)], 1)
    assert state._cache.data_ptr() == cache  # taken once
    for row, prompt in enumerate(given.unpad()):
        whole = torch.cat([prompt, tokens[row]])[None]
        expected = lm(Padded(whole, torch.tensor([whole.shape[1]])), given.lengths[row : row + 1]).data[
            0, len(prompt) :
        ]
        assert (found[row] - expected).abs().max() < 1e-4


def test_a_prefix_mask_lets_the_prompt_see_itself_and_nothing_behind_it():
    lm, plain = model(mask="prefix"), model()
    tokens, prompt = prompts(lm, 9), torch.tensor([4])
    before, causal = lm.decode(tokens, prompt).data, plain.decode(tokens, prompt).data
    for changed, first in ((3, 0), (5, 5)):
        data = tokens.data.clone()
        data[0, changed] = 3 + (data[0, changed] - 2) % (lm.vocab_size - 3)
        moved = (lm.decode(tokens.with_data(data), prompt).data - before).abs().amax(-1)[0] > 1e-6
        assert moved.nonzero()[:, 0].tolist() == list(range(first, 9))
        moved = (plain.decode(tokens.with_data(data), prompt).data - causal).abs().amax(-1)[0] > 1e-6
        assert moved.nonzero()[:, 0].tolist() == list(range(changed, 9))


# Search


def exact(lm: TransformerSpeechLM, prompt: Tensor, tokens: Tensor) -> float:
    """Log-probability of tokens and eos behind a prompt."""
    whole = torch.cat([prompt, tokens, torch.tensor([EOS])])
    logits = lm(Padded(whole[None, :-1], torch.tensor([len(whole) - 1])), torch.tensor([len(prompt) - 1])).data[0]
    return float(logits.log_softmax(-1).gather(1, whole[1:, None])[len(prompt) - 1 :].sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["beam", "greedy", "sample"])
def test_search_scores_are_those_of_teacher_forcing_and_batching_changes_nothing(kind: str, method: str):
    lm = model(**KINDS[kind])
    whole = prompts(lm, 7, 3, 12, 2)
    before = Padded.from_list([row[:-1] for row in whole.unpad()])
    last = torch.stack([row[-1:] for row in whole.unpad()])
    options = SearchOptions(
        method=method, beam_size=3, max_length=30, max_length_a=2.0, max_length_b=2, min_length=0, min_length_a=0.5,
        suppress=lm.vocabulary.outside(lm.vocabulary.units, EOS),
    )  # fmt: skip
    lengths = [6, 8, 4, 10]
    found = generate(lm, before, last, options, EOS, PAD, PAD, lengths=lengths)
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == (1 if method == "greedy" else 3)
        for one in hypotheses:
            assert lengths[row] // 2 <= len(one.tokens) <= 2 * lengths[row] + 1
            assert all(lm.vocabulary.units.start <= token < lm.vocabulary.units.stop for token in one.tokens.tolist())
            wanted = exact(lm, whole.unpad()[row], one.tokens) / (len(one.tokens) + 1)
            assert one.score == pytest.approx(wanted, abs=1e-4)
    if method != "sample":
        for row in range(4):
            alone = Padded(before.unpad()[row][None], before.lengths[row : row + 1])
            (again,) = generate(lm, alone, last[row : row + 1], options, EOS, PAD, PAD, lengths=lengths[row : row + 1])
            assert [h.tokens.tolist() for h in again] == [h.tokens.tolist() for h in found[row]]


def test_what_is_outside_of_a_block_never_comes_out():
    lm = model()
    options = SearchOptions(
        method="sample", beam_size=40, temperature=5.0, max_length=12, min_length=10,
        suppress=lm.vocabulary.outside(lm.vocabulary.codes, EOS),
    )  # fmt: skip
    (found,) = generate(
        lm, prompts(lm, 5), torch.tensor([[4]]), options, EOS, PAD, PAD, torch.Generator().manual_seed(1)
    )
    tokens = torch.cat([one.tokens for one in found])
    assert len(tokens) >= 400
    assert bool(((tokens >= lm.vocabulary.codes.start) & (tokens < lm.vocabulary.codes.stop)).all())
    assert len(tokens.unique()) > 20


def test_positions_bound_what_comes_behind_a_prompt():
    lm = model(positions="learned", max_positions=20)
    options = SearchOptions(
        beam_size=2, max_length=100, min_length=90, suppress=lm.vocabulary.outside(lm.vocabulary.units, EOS)
    )
    found = generate(lm, prompts(lm, 15, 4), torch.tensor([[4], [4]]), options, EOS, PAD, PAD)
    # 15 and 4 tokens before the last of the prompt; eos is forced as the last token, which needs no position.
    assert [{len(h.tokens) for h in hypotheses} for hypotheses in found] == [{4}, {15}]
    with pytest.raises(
        ValueError, match="a sequence of 21 tokens; this model has positions for 20: shorten the prompt"
    ):
        lm.start(prompts(lm, 21))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positions": "learned"}, "set max_positions"),
        ({"positions": "alibi"}, "positions must be rotary, sinusoidal, learned or segments; got 'alibi'"),
        ({"mask": "full"}, "mask must be causal or prefix"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads"),
        ({"num_layers": 0}, "at least one layer"),
        ({"unit_steps": 0}, "unit_steps=0: a unit counts at least one step"),
        ({"num_heads": 32, "positions": "rotary"}, "rotary positions need heads of an even width"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words: str):
    with pytest.raises(ValueError, match=words):
        model(**settings)


def test_published_sizes_have_the_parameters_of_the_paper():
    with torch.device("meta"):
        lm = TransformerSpeechLM(1000, 1024, ["eng", "spa"])
        deep = TransformerSpeechLM(1000, 1024, ["eng", "spa"], num_layers=24)
    count = [sum(p.numel() for p in one.parameters()) for one in (lm, deep)]
    assert [round(number / 1e6) for number in count] == [153, 304]
