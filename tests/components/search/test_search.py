"""Search against exhaustive enumeration and against a naive beam search, and what it gives over a real decoder."""

import itertools
import math

import pytest
import torch
from decoders import EOS, HistoryDecoder, memory_of
from voxzoo.components import TransformerSeq2Seq
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.search.generate import log_normaliser
from voxzoo.components.types import Padded

PAD, UNK, BOS = 0, 1, 2


def allowed(history: tuple[int, ...], token: int, generated: int, limit: int, options: SearchOptions) -> bool:
    """history: the prefix and the tokens so far."""
    if token == PAD or token in options.suppress or (token == UNK and options.unk_penalty == math.inf):
        return False
    if generated + 1 == limit or token == EOS:
        return token == EOS and generated >= options.min_length
    size = options.no_repeat_ngram
    if size:
        past = [history[place : place + size] for place in range(len(history) - size + 1)]
        if (*history, token)[-size:] in past:
            return False
    return True


def score_of(total: float, generated: int, prefix: tuple[int, ...], options: SearchOptions) -> float:
    return total / (generated + (len(prefix) - 1 if options.score == "with_prefix" else 0)) ** options.length_penalty


def prefix_score(decoder: HistoryDecoder, key: int, prefix: tuple[int, ...], options: SearchOptions) -> float:
    if options.score == "generated":
        return 0.0
    return sum(decoder.log_probs((key, *prefix[:place]))[prefix[place]] for place in range(1, len(prefix)))


def exhaustive(decoder, key, prefix, limit, options):
    """Every sequence there is, best first."""
    found = []
    for count in range(limit):
        for tokens in itertools.product(range(decoder.size), repeat=count):
            total, history = prefix_score(decoder, key, prefix, options), prefix
            for generated, token in enumerate((*tokens, EOS)):
                if (token == EOS) != (generated == count) or not allowed(history, token, generated, limit, options):
                    break
                total += decoder.log_probs((key, *history))[token]
                if token == UNK:
                    total -= options.unk_penalty
                history = (*history, token)
            else:
                found.append((score_of(total, count + 1, prefix, options), list(tokens)))
    return sorted(found, key=lambda item: -item[0])


def naive_beam(decoder, key, prefix, limit, options):
    """Beam search with lists, one sample."""
    beams = [(prefix_score(decoder, key, prefix, options), prefix)]
    found: list[tuple[float, list[int]]] = []
    width = options.beam_size if options.method == "beam" else 1
    for generated in range(limit):
        candidates = []
        for total, history in beams:
            log_probs = decoder.log_probs((key, *history))
            for token in range(decoder.size):
                if allowed(history, token, generated, limit, options):
                    penalty = options.unk_penalty if token == UNK else 0
                    candidates.append((total + log_probs[token] - penalty, (*history, token)))
        candidates.sort(key=lambda item: -item[0])
        for total, history in candidates[:width]:
            if history[-1] == EOS:
                found.append((score_of(total, generated + 1, prefix, options), list(history[len(prefix) : -1])))
        found = sorted(found, key=lambda item: -item[0])[:width]
        beams = [item for item in candidates if item[1][-1] != EOS][:width]
        if not beams:
            break
        if len(found) == width:
            hope = score_of(beams[0][0], generated + 1, prefix, options)
            if options.early_stopping or hope <= found[-1][0]:
                break
    return found


def assert_same(hypotheses, want):
    assert [hypothesis.tokens.tolist() for hypothesis in hypotheses] == [tokens for _, tokens in want]
    for hypothesis, (score, _) in zip(hypotheses, want, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"min_length": 0},
        {"min_length": 2, "length_penalty": 0.0},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 1, "unk_penalty": 0.7, "suppress": (BOS,)},
        {"score": "with_prefix", "length_penalty": 2.0},
    ],
)
def test_a_wide_beam_finds_everything(change):
    decoder = HistoryDecoder(6)
    options = SearchOptions(**{"beam_size": 200, "max_length": 4, "suppress": (UNK, BOS), "unk_penalty": 0.0, **change})
    prefix = (EOS, 5)
    found = generate(decoder, memory_of(1, 2), torch.tensor([prefix] * 2), options, EOS, PAD, UNK)
    for key, hypotheses in zip((1, 2), found, strict=True):
        assert_same(hypotheses, exhaustive(decoder, key, prefix, 4, options))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "greedy"},
        {"beam_size": 1},
        {"beam_size": 2, "early_stopping": False},
        {"early_stopping": False, "length_penalty": 0.5},
        {"no_repeat_ngram": 3, "min_length": 4},
        {"unk_penalty": math.inf, "length_penalty": -1.0},
        {"score": "with_prefix", "unk_penalty": 1.0},
    ],
)
def test_equals_a_naive_beam_search(change, seed):
    decoder = HistoryDecoder(9, eos_bonus=1.0, seed=seed)
    options = SearchOptions(**{"beam_size": 4, "max_length": 12, **change})
    keys = (3, 4, 5)
    prefixes = [(EOS, 7), (EOS, 8), (EOS, 7)]
    found = generate(decoder, memory_of(*keys), torch.tensor(prefixes), options, EOS, PAD, UNK)
    for key, prefix, hypotheses in zip(keys, prefixes, found, strict=True):
        assert_same(hypotheses, naive_beam(decoder, key, prefix, 12, options))


def test_limits():
    options = SearchOptions(max_length=50, max_length_a=0.5, max_length_b=3)
    assert [options.limit(length) for length in (0, 1, 10, 1000)] == [3, 3, 8, 50]
    assert SearchOptions(min_length=20, max_length_a=0.0, max_length_b=4).limit(7) == 21
    decoder = HistoryDecoder(9, eos_bonus=-30.0)
    memory = Padded(torch.ones(2, 8, 1), torch.tensor([2, 8]))
    found = generate(decoder, memory, torch.tensor([[EOS]] * 2), options, EOS, PAD, UNK)
    # eos is forced as the last of 4 and of 7 tokens, by the length of the sample and not of the batch.
    assert [{len(h.tokens) for h in hypotheses} for hypotheses in found] == [{3}, {6}]


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_as_many_tokens_as_may_be_where_eos_is_not_forced(method: str):
    """`min_new_tokens` equal to `max_new_tokens`, as transformers takes it."""
    options = SearchOptions(
        method=method, beam_size=2, min_length=5, max_length=5, max_length_a=0.0, max_length_b=3, force_eos=False
    )
    assert (options.fewest(3), options.limit(3)) == (5, 5)
    decoder = HistoryDecoder(9, eos_bonus=30.0)
    (found,) = generate(decoder, memory_of(3), torch.tensor([[EOS, 7]]), options, EOS, PAD, UNK)
    assert found
    assert all(len(one.tokens) == 5 and EOS not in one.tokens.tolist() and not one.ended for one in found)


def test_ngrams_do_not_repeat():
    class Loop(HistoryDecoder):
        def logits(self, row):
            return [9.0 if token == 4 + (len(row) % 2) else 0.1 * token for token in range(self.size)]

    options = SearchOptions(max_length=12, min_length=10)
    prefix = torch.tensor([[EOS, 7]])
    free = generate(Loop(9), memory_of(1), prefix, options, EOS, PAD, UNK)[0][0].tokens.tolist()
    assert free[:6] == [5, 4, 5, 4, 5, 4]
    for size in (1, 2, 3):
        if size == 1:
            options_here = SearchOptions(max_length=6, min_length=4, no_repeat_ngram=1)
        else:
            options_here = SearchOptions(max_length=12, min_length=10, no_repeat_ngram=size)
        for hypothesis in generate(Loop(9), memory_of(1), prefix, options_here, EOS, PAD, UNK)[0]:
            row = [EOS, 7, *hypothesis.tokens.tolist()]
            grams = [tuple(row[place : place + size]) for place in range(len(row) - size + 1)]
            assert len(grams) == len(set(grams))


def test_finished_samples_leave_the_batch():
    decoder = HistoryDecoder(9, eos_bonus=1.5)
    generate(decoder, memory_of(*range(8)), torch.tensor([[EOS, 7]] * 8), SearchOptions(beam_size=2), EOS, PAD, UNK)
    counts = decoder.row_counts
    assert counts[0] == 16
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3


# Over the real model

V = 40


def model_and_memory(*lengths: int) -> tuple[TransformerSeq2Seq, Padded]:
    torch.manual_seed(1)
    # Untied: with the embeddings as its output layer a random model repeats its last token.
    model = TransformerSeq2Seq(
        vocab_size=V, dim=16, num_heads=2, ffn_dim=32, num_encoder_layers=0, num_decoder_layers=2, tie_output=False
    ).requires_grad_(False)
    for weight in model.parameters():
        # Far from uniform, or near-ties would decide.
        weight.mul_(2.0)
    memory = Padded.from_list([torch.randn(length, 16) for length in lengths])
    return model.eval(), memory


@pytest.mark.parametrize("change", [{}, {"method": "greedy"}, {"no_repeat_ngram": 2}, {"early_stopping": False}])
def test_batching_changes_nothing(change):
    model, memory = model_and_memory(9, 1, 5, 17)
    options = SearchOptions(**{"max_length_b": 20, "min_length": 3, **change})
    prefix = torch.tensor([[EOS, 39], [EOS, 38], [EOS, 39], [EOS, 37]])
    batch = generate(model, memory, prefix, options, EOS, PAD, UNK)
    assert len({len(hypotheses[0].tokens) for hypotheses in batch}) > 1
    for row, states in enumerate(memory.unpad()):
        alone = Padded(states[None], memory.lengths[row : row + 1])
        (want,) = generate(model, alone, prefix[row : row + 1], options, EOS, PAD, UNK)
        assert_same(batch[row], [(hypothesis.score, hypothesis.tokens.tolist()) for hypothesis in want])


@pytest.mark.parametrize("method", ["beam", "greedy", "sample"])
def test_scores_and_states_are_those_of_teacher_forcing(method):
    model, memory = model_and_memory(9, 4, 6)
    prefix = torch.tensor([[EOS, 39], [EOS, 38], [EOS, 37]])
    options = SearchOptions(method=method, beam_size=3, max_length=20, min_length=2)
    found = generate(model, memory, prefix, options, EOS, PAD, UNK, keep_states=True)
    lengths = [len(hypothesis.tokens) for hypotheses in found for hypothesis in hypotheses]
    assert len(set(lengths)) > 1
    for row, hypotheses in enumerate(found):
        assert len(hypotheses) == (1 if method == "greedy" else 3)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        alone = Padded(memory.unpad()[row][None], memory.lengths[row : row + 1])
        for hypothesis in hypotheses:
            tokens = torch.cat([prefix[row], hypothesis.tokens])[None]
            states = model.decode(alone, Padded(tokens, torch.tensor([tokens.shape[1]]))).data
            assert hypothesis.states is not None
            torch.testing.assert_close(hypothesis.states, states[0], atol=1e-4, rtol=1e-4)
            log_probs = model.project(states[0, 1:]).log_softmax(-1)
            labels = torch.cat([hypothesis.tokens, torch.tensor([EOS])])
            want = log_probs.gather(1, labels[:, None]).sum() / len(labels)
            assert hypothesis.score == pytest.approx(float(want), abs=1e-4)


# Sampling


def sampled(count: int, **change) -> list[int]:
    """First tokens of `count` samples of one token."""
    options = SearchOptions(**{"method": "sample", "beam_size": count, "max_length": 2, **change})
    draws = torch.Generator().manual_seed(0)
    found = generate(HistoryDecoder(9), memory_of(6), torch.tensor([[EOS, 7]]), options, EOS, PAD, UNK, generator=draws)
    assert len(found[0]) == count
    return [int(hypothesis.tokens[0]) for hypothesis in found[0]]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_distribution(temperature):
    tokens = sampled(2000, temperature=temperature)
    logits = torch.tensor(HistoryDecoder(9).logits((6, EOS, 7)))
    logits[[PAD, EOS]] = -math.inf
    want = (logits / temperature).softmax(-1)
    share = torch.bincount(torch.tensor(tokens), minlength=9) / 2000
    assert (share - want).abs().max() < 0.04


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.tensor(HistoryDecoder(9).logits((6, EOS, 7)))
    logits[[PAD, EOS]] = -math.inf
    order = logits.argsort(descending=True).tolist()
    assert set(sampled(300, top_k=2, temperature=50.0)) == set(order[:2])
    assert set(sampled(20, top_k=1)) == {order[0]}
    probs = logits.softmax(-1)[order]
    kept = int((probs.cumsum(0) < 0.8).sum()) + 1
    assert 1 < kept < 7
    assert set(sampled(1000, top_p=0.8)) == set(order[:kept])
    assert set(sampled(20, top_p=1e-6)) == {order[0]}


def test_sampling_is_repeatable_and_leaves_the_global_generator_alone():
    model, memory = model_and_memory(9, 4)
    prefix = torch.tensor([[EOS, 39]] * 2)
    options = SearchOptions(method="sample", beam_size=2, max_length=10)

    def draw(seed: int) -> list[list[list[int]]]:
        source = torch.Generator().manual_seed(seed)
        found = generate(model, memory, prefix, options, EOS, PAD, UNK, generator=source)
        return [[hypothesis.tokens.tolist() for hypothesis in hypotheses] for hypotheses in found]

    state = torch.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "best"}, "method"),
        ({"beam_size": 0}, "beam_size"),
        ({"min_length": 9, "max_length": 9}, "min_length < max_length is needed, for eos"),
        ({"min_length": 10, "max_length": 9, "force_eos": False}, "min_length <= max_length"),
        ({"min_length": 0, "max_length": 0, "force_eos": False}, "got 0 and 0"),
        ({"temperature": 0.0}, "greedy"),
        ({"top_p": 0.0}, "top_p"),
        ({"score": "sum"}, "score"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SearchOptions(**change)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_everything_blocked_is_said(method):
    options = SearchOptions(method=method, suppress=(UNK, BOS, *range(4, 9)), max_length=5)
    with pytest.raises(ValueError, match="block every token"):
        generate(HistoryDecoder(9), memory_of(1), torch.tensor([[EOS, 7]]), options, EOS, PAD, UNK)
    with pytest.raises(ValueError, match="eos"):
        generate(HistoryDecoder(9), memory_of(1), torch.tensor([[EOS]]), SearchOptions(suppress=(EOS,)), EOS, PAD, UNK)
    with pytest.raises(ValueError, match="prefix"):
        generate(HistoryDecoder(9), memory_of(1, 2), torch.tensor([[EOS]]), SearchOptions(), EOS, PAD, UNK)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 9, 40])
@pytest.mark.parametrize("vocab_size", [7, 70_001])
def test_the_normaliser_is_the_same_to_the_last_bit_however_many_rows(rows, vocab_size):
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(log_normaliser(logits), logits.logsumexp(dim=-1, keepdim=True))
    finally:
        torch.set_num_threads(before)
