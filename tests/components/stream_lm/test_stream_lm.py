"""Stream LMs: patterns, what a stage may see, serving against teacher forcing, and a mapping that is learned."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from voxzoo.components import TransformerSpeechLM, TransformerStreamLM
from voxzoo.components.search import SearchOptions
from voxzoo.components.stream_lm.patterns import Pattern
from voxzoo.components.types import Padded

V, K = 12, 4


def model(pattern: str = "ar_nar", **settings) -> TransformerStreamLM:
    torch.manual_seed(2)
    sizes = {"dim": 32, "num_heads": 4, "ffn_dim": 48, "num_layers": 2, "dropout": 0.0}
    return TransformerStreamLM(10, V, K, pattern, **{**sizes, **settings})  # pyright: ignore[reportArgumentType]


def batch(*frames: int, seed: int = 0) -> tuple[Padded, Padded, Padded]:
    """Units, codes, prompt."""
    draws = torch.Generator().manual_seed(seed)

    def rows(high: int, lengths: list[int], *shape: int) -> Padded:
        return Padded.from_list([torch.randint(high, (n, *shape), generator=draws) for n in lengths])

    return rows(10, [n // 2 + 1 for n in frames]), rows(V, list(frames), K), rows(V, [n % 4 for n in frames], K)


# Patterns


def test_delay_is_musicgens():
    codes = torch.arange(1, 11).view(1, 5, 2)
    laid = Pattern.named("delay", 2).lay(codes, 0)
    assert laid[0].T.tolist() == [[1, 3, 5, 7, 9, 0], [0, 2, 4, 6, 8, 10]]
    assert [Pattern.named(name, 8).steps(10) for name in ("delay", "parallel", "flat")] == [17, 10, 80]
    assert Pattern.named("flat", 2).lay(codes, 0)[0].sum(1).tolist() == list(range(1, 11))


@pytest.mark.parametrize("name", ["delay", "parallel", "flat"])
def test_what_is_laid_out_comes_back_and_each_code_is_written_once(name: str):
    pattern, codes = Pattern.named(name, K), batch(7)[1].data
    assert torch.equal(pattern.gather(pattern.lay(codes, V), 7), codes)
    written = [(step, k) for step in range(pattern.steps(7)) for k in pattern.writes(step, 7)]
    assert len(written) == len(set(written)) == 7 * K
    assert int((pattern.lay(codes, V) != V).sum()) == 7 * K
    assert all(pattern.lay(codes, V)[0, step, k] != V for step, k in written)


# What is seen


def loss(lm: TransformerStreamLM, units: Padded, codes: Padded, prompt: Padded, stage: int) -> float:
    stages = torch.full((len(codes),), stage)
    return float(lm.eval()(units, codes, prompt, stages)[0]["streams"].total)


def test_the_loss_of_a_stage_depends_on_no_later_stream():
    lm, (units, codes, prompt) = model(), batch(9, 4, 6)
    with torch.no_grad():
        for stage in range(1, K):
            before = loss(lm, units, codes, prompt, stage)
            for k in range(K):
                changed = codes.data.clone()
                changed[..., k] = (changed[..., k] + 5) % V
                moved = abs(loss(lm, units, codes.with_data(changed), prompt, stage) - before) > 1e-5
                assert moved == (k <= stage), (stage, k)


def test_future_frames_change_the_stream_lm_and_not_the_speech_lm():
    lm, (units, codes, prompt) = model().eval(), batch(9)
    later = codes.data.clone()
    later[:, 6:] = later[:, 6:].flip(1)
    stage = torch.tensor([2])
    states = [lm._stage_states(units, codes.with_data(data), prompt, stage)[:, :6] for data in (codes.data, later)]
    assert float((states[0] - states[1]).abs().amax(-1).min()) > 1e-4
    speech = TransformerSpeechLM(10, V, ["eng"], dim=32, num_heads=4, ffn_dim=48, num_layers=2).eval()
    ids = [speech.vocabulary.codes.ids(data[..., 0], "x") for data in (codes.data, later)]
    states = [speech.decode(Padded(row, codes.lengths)).data[:, :6] for row in ids]
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flat"])
def test_a_pattern_sees_no_step_that_comes_later(pattern: str):
    lm, (units, codes, prompt) = model(pattern).eval(), batch(8)
    layout = Pattern.named(pattern, K)
    given, lengths = lm._compact(units, prompt)
    seen: list[Tensor] = []
    lm.norm.register_forward_hook(lambda *args: seen.append(args[2]))
    changed = codes.data.clone()
    changed[0, 4, 2] = (changed[0, 4, 2] + 1) % V
    with torch.no_grad():
        for data in (codes.data, changed):
            lm(units, codes.with_data(data), prompt)
    step = 4 * layout.stride + layout.offsets[2]
    moved = (seen[0] - seen[1]).abs().amax(-1)[0] > 1e-6
    assert not moved[: step + 1].any()
    assert moved[step + 1 :].all()
    assert int(lengths) == given.shape[1]


# Serving


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flat"])
def test_greedy_writing_is_what_teacher_forcing_finds_most_probable(pattern: str):
    lm, (units, codes, prompt) = model(pattern, num_kv_heads=2).eval(), batch(9, 4, 6)
    written = lm.generate(units, prompt, frames=codes.lengths)
    assert written.lengths.tolist() == [9, 4, 6]
    accuracies = lm(units, written, prompt)[1]
    assert [float(one.mean) for one in accuracies.values()] == [1.0] * K
    assert list(accuracies) == ["stream_1", "stream_2", "stream_3", "stream_4"]


def test_stages_written_one_by_one_are_what_teacher_forcing_finds_most_probable():
    lm, (units, codes, prompt) = model().eval(), batch(9, 4, 6)
    written = lm.generate(units, prompt, Padded(codes.data[..., 0], codes.lengths))
    assert torch.equal(written.data[..., 0], codes.zeroed().data[..., 0])
    for stage in range(1, K):
        found = lm(units, written, prompt, torch.full((3,), stage))[1][f"stream_{stage + 1}"]
        assert (float(found.mean), int(found.count)) == (1.0, 19)


def test_sampling_follows_its_generator():
    lm, (units, codes, prompt) = model("delay").eval(), batch(9, 4)
    search = SearchOptions(method="sample", top_k=5, temperature=2.0)

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return lm.generate(units, prompt, frames=codes.lengths, search=search, generator=generator).data

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_one_stage_is_drawn_for_each_row_and_all_come():
    lm, (units, codes, prompt) = model().train(), batch(*[3] * 60)
    counts = [int(one.count) for one in lm(units, codes, prompt)[1].values()]
    assert sum(counts) == 180
    assert all(30 < count < 90 for count in counts)


# Learning


def test_streams_that_follow_from_the_first_and_the_prompt_are_learned():
    """Stream j is a function of stream 1, j and the voice, which only the prompt tells."""
    lm = model(num_layers=2).train()
    optimizer = torch.optim.AdamW(lm.parameters(), 5e-3)
    draws = torch.Generator().manual_seed(0)

    def sample(rows: int) -> tuple[Padded, Padded, Padded, Tensor]:
        voice = torch.randint(2, (rows,), generator=draws)
        first = torch.randint(V, (rows, 6), generator=draws)
        codes = torch.stack([(first + (3 * j + 1) * (j > 0) + 5 * voice[:, None] * (j > 0)) % V for j in range(K)], 2)
        prompt = voice[:, None, None].expand(rows, 2, K).contiguous()
        lengths = torch.full((rows,), 6)
        return Padded(first % 10, lengths), Padded(codes, lengths), Padded(prompt, torch.full((rows,), 2)), voice

    losses = []
    for _ in range(250):
        units, codes, prompt, _ = sample(32)
        loss = lm(units, codes, prompt)[0]["streams"].mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    lm.eval()
    units, codes, prompt, _ = sample(40)
    first = Padded(codes.data[..., 0], codes.lengths)
    written = lm.generate(units, prompt, first).data
    right = [(written[..., j] == codes.data[..., j]).float().mean() for j in range(K)]
    assert min(right) > 0.95
    # Another voice in the prompt: the other mapping.
    swapped = lm.generate(units, prompt.with_data(1 - prompt.data), first).data
    assert float((swapped[..., 1:] != written[..., 1:]).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda lm, u, c, p: lm(u, Padded(c.data[..., :3], c.lengths), p),
            r"codes: \(B, T, 4\) is needed, all streams",
        ),
        (lambda lm, u, c, p: lm(u, c, Padded(p.data[..., :1], p.lengths)), r"the prompt: \(B, T, 4\) is needed"),
        (lambda lm, u, c, p: lm.generate(u, p), "give `first`"),
        (lambda lm, u, c, p: model("delay").eval().generate(u, p), "give `frames`"),
        (lambda lm, u, c, p: model("later"), "pattern must be ar_nar, delay, parallel or flat; got 'later'"),
        (lambda lm, u, c, p: TransformerStreamLM(10, V, 1), "at least two streams"),
    ],
)
def test_what_cannot_be_is_refused(call, words: str):
    with pytest.raises(ValueError, match=words):
        call(model().eval(), *batch(5, 3))


def test_stages_have_tables_of_their_own_and_norms_begin_plain():
    lm = model()
    tables = [lm._table(k) for k in range(K)]
    assert all(not torch.equal(one, other) for one, other in pairwise(tables))
    norm = lm.layers[0].attention_norm  # pyright: ignore[reportIndexIssue]
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(norm(x, torch.zeros(2, 32)), torch.nn.functional.layer_norm(x, (32,)))
