"""The task of a speech LM: shares of tasks and directions, prompts, cards, learning, serving, running on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import logged
from lightning import LightningModule
from speech_lm_corpus import UNITS, K, V, corpus, toy
from voxzoo.components import EnCodec, TransformerSpeechLM, TransformerStreamLM
from voxzoo.components.cards import Card
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions
from voxzoo.components.types import Padded
from voxzoo.configs import build, check, compose
from voxzoo.tasks import SpeechToSpeechLM, load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.contract import check_task, tiny_task
from voxzoo.tasks.speech_lm.chain import Given
from voxzoo.tasks.training.train import prepare_data, train
from voxzoo.tasks.units import extract_codes, extract_units

CSV = ("logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}")
CHAIN = "<bos> <lang:src> S_src A_prompt <trans> <lang:tgt> | S_tgt <gen> A_tgt <eos>"


def task(stream: bool = True, lm: dict[str, Any] | None = None, **settings: Any) -> SpeechToSpeechLM:
    torch.manual_seed(1)
    sizes = {"dim": 48, "num_heads": 4, "ffn_dim": 96, "num_layers": 2, "dropout": 0.0}
    speech_lm = TransformerSpeechLM(UNITS, V, ["eng", "spa"], **{**sizes, "positions": "rotary", **(lm or {})})
    stream_lm = TransformerStreamLM(UNITS, V, K, **sizes) if stream else None  # pyright: ignore
    return SpeechToSpeechLM(speech_lm=speech_lm, stream_lm=stream_lm, **settings)


# Shares


def test_translations_come_three_times_as_often_and_directions_take_turns(monkeypatch: pytest.MonkeyPatch):
    one, batch = task(stream=False).train(), toy(50, 0)
    seen: Counter[tuple[str, str]] = Counter()
    for epoch in range(8):
        monkeypatch.setattr(LightningModule, "current_epoch", epoch)
        examples, _ = one.examples(batch)
        assert [each.whose for each in examples] == [f"utterance {name}" for name in batch.ids]
        found = Counter((each.template.name, each.langs[0]) for each in examples)
        assert min(found.values()) > 0  # mixed in each epoch
        seen += found
    assert seen == {("trans", "spa"): 150, ("trans", "eng"): 150, ("gen", "spa"): 50, ("gen", "eng"): 50}


def test_validation_measures_every_task_in_both_directions():
    one, batch = task().eval(), toy(5, 0)
    examples, spoken = one.examples(batch)
    assert len(examples) == 5 * 2 * 2
    assert spoken is not None
    assert len(spoken.units) == 5 * 2
    losses, statistics = one.measure(batch)
    assert list(losses) == ["lm", "streams"]
    assert float(losses["lm"].count) == sum(float(statistics[f"loss_{name}"].count) for name in ("trans", "gen"))
    tokens = sum(len(row) + 1 for column in (batch.units, batch.source_units) for row in column.unpad())  # pyright: ignore
    assert int(statistics["loss_trans"].count) == tokens
    assert list(one.templates) == ["gen", "trans"]


def test_how_a_batch_is_cut_up_changes_no_sum():
    one, batch = task(prompt="target").train(), toy(6, 0)
    whole, _ = one.measure(batch)
    parts = []
    for row in range(6):
        columns = {name: getattr(batch, name) for name in ("units", "source_units", "codes", "source_codes")}
        alone = {n: Padded(c.unpad()[row][None], c.lengths[row : row + 1]) for n, c in columns.items()}
        some = replace(batch, ids=batch.ids[row : row + 1], src_lang=("spa",), tgt_lang=("eng",), **alone)
        parts.append(one.measure(some)[0])
    for name in ("lm", "streams"):
        assert sum(float(part[name].total.detach()) for part in parts) == pytest.approx(
            float(whole[name].total.detach()), rel=1e-5
        )
        assert int(sum(part[name].count for part in parts)) == int(whole[name].count)


# Prompts


def test_prompts_are_of_the_source_or_cut_out_of_the_target():
    batch = toy(4, 0)
    long = Padded.from_list([torch.arange(40)[:, None].expand(40, K) % V for _ in range(4)])
    batch = replace(batch, source_codes=long)
    one = task(prompt_frames=7).eval()
    columns = {name: one.maker.column(batch, name) for name in sorted(one.needs)}
    pieces, codes, prompt = one.maker.pieces(columns, 0, "a", False, 1, None)
    assert prompt.shape == (7, K)
    assert torch.equal(prompt[:, 0], (prompt[0, 0] + torch.arange(7)) % V)
    assert torch.equal(pieces["A_prompt"], prompt[:, 0])
    assert torch.equal(codes, batch.codes.unpad()[0])  # pyright: ignore[reportOptionalMemberAccess]
    assert one.maker.pieces(columns, 0, "a", True, 1, None)[2].shape[0] == min(7, len(codes))
    cut = task(prompt="target", prompt_share=[0.25, 0.3]).eval()
    sizes = [len(cut.maker.pieces(columns, 0, name, True, 1, None)[2]) for name in "abcdefgh"]
    assert set(sizes) <= {10, 11, 12}
    assert len({int(cut.maker.pieces(columns, 0, name, True, 1, None)[2][0, 0]) for name in "abcdefgh"}) > 2


def test_what_a_task_reads_follows_from_what_it_learns():
    everything = {"units", "source_units", "codes", "source_codes"}
    assert task().needs == everything
    trans, gen = "<bos> S_src <trans> | S_tgt <eos>", "<bos> S_tgt A_prompt <gen> | A_tgt <eos>"
    assert task(stream=False, templates={"trans": trans}).needs == {"units", "source_units"}
    acoustic = task(stream=False, directions="forward", templates={"gen": gen})
    assert acoustic.needs == {"units", "codes", "source_codes"}
    assert task(stream=False, directions="backward", templates={"gen": gen}).needs == everything
    assert task(directions="forward", prompt="target").needs == {"units", "source_units", "codes"}


# Learning and serving


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multitask", "chain"])
def test_a_toy_is_learned_and_spoken_in_the_voice_of_the_prompt(kind: str):
    chain = {"chain": CHAIN} if kind == "chain" else None
    greedy = SearchOptions(method="greedy", min_length_a=1.0, max_length_a=1.0, max_length_b=1)
    one = task(
        templates=chain, upsample={"trans": 1}, directions="forward", search=greedy, acoustic_search=greedy,
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(one.parameters(), 4e-3)
    first = None
    for step in range(450):
        losses = one.losses(toy(32, 100 + step))
        loss = losses["lm"].mean + losses["streams"].mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or float(loss.detach())
    assert float(loss.detach()) < 0.2 * first  # pyright: ignore
    one.eval()
    test = toy(20, 7, voice=0)
    units = one.chain.source_units(test)
    found = one.predict(test)
    right = [p.units == row.tolist() for p, row in zip(found, test.units.unpad())]  # pyright: ignore
    assert sum(right) >= 19
    assert all(p.audio is None for p in found)  # there is no codec
    assert {p.src_lang for p in found} == {"spa"}
    spoken = {}
    for voice in (0, 1):
        given = toy(20, 7, voice=voice)
        prompts = [codes[:, 0] for codes in given.source_codes.unpad()]  # pyright: ignore[reportOptionalMemberAccess]
        rows = [{"S_src": row, "A_prompt": codes} for row, codes in zip(units.unpad(), prompts)]
        langs, names = [("spa", "eng")] * 20, [f"u{n}" for n in range(20)]
        template = one.templates["chain" if chain else "trans"]
        written = Given(rows, langs, names)
        one.chain.write(template, 0, written, greedy, units.lengths.tolist())
        acoustic, number = (template, 1) if chain else (one.templates["gen"], 0)
        one.chain.write(acoustic, number, written, greedy, [len(row["S_tgt"]) for row in rows])
        wanted = [codes[:, 0] for codes in given.codes.unpad()]  # pyright: ignore
        equal = [torch.equal(row["A_tgt"], codes) for row, codes in zip(rows, wanted)]
        assert sum(equal) >= 17, (voice, sum(equal))
        spoken[voice] = [row["A_tgt"] for row in rows]
    # Another prompt, another voice.
    assert sum(not torch.equal(a, b) for a, b in zip(spoken[0], spoken[1])) == 20


def test_nothing_outside_of_a_templates_block_comes_out_of_random_weights():
    sample = SearchOptions(method="sample", temperature=9.0, beam_size=1, min_length=20, max_length=25)
    one, batch = task(templates={"chain": CHAIN}, search=sample).eval(), toy(12, 0)
    for prediction in one.predict(batch):
        assert prediction.units is not None
        assert len(prediction.units) >= 20
        assert set(prediction.units) <= set(range(UNITS))


# Refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: task(upsample={"tran": 3}), "task.upsample.tran: there is no such template; there are: gen, trans"),
        (lambda: task(upsample={"trans": 0}), "task.upsample.trans=0: expected at least 1"),
        (lambda: task(templates={"trans": None}), "nothing is left to learn"),
        (lambda: task(templates={"t": "<bos> S_src <sing> | S_tgt <eos>"}), "there is no token <sing>"),
        (lambda: task(prompt_share=[0.4, 0.3]), "task.prompt_share=[0.4, 0.3]: expected [least, greatest]"),
        (lambda: task(directions="sideways"), "task.directions=sideways: expected both, forward, backward"),
        (lambda: task(prompt_frames=0), "task.prompt_frames=0: expected at least 1"),
        (
            lambda: task().measure(replace(toy(2, 0), codes=_streams(toy(2, 0).codes, 2))),
            "data.codes has 2 streams, but stream_lm.num_streams is 3",
        ),
        (
            lambda: task(lm={"positions": "learned", "max_positions": 8}).measure(toy(3, 0)),
            "but speech_lm has positions for 8: leave it out (data.max_seconds)",
        ),
        (
            lambda: task(lm={"positions": "learned", "max_positions": 6}).eval().predict(toy(3, 0)),
            "a prompt of 9 tokens, but speech_lm has positions for 6: give shorter speech",
        ),
        (lambda: task().measure(replace(toy(2, 0), units=_plus(toy(2, 0).units))), "is outside of the vocabulary"),
        (
            lambda: task().eval().predict(replace(toy(2, 0), source_units=None)),
            "this model has no unit extractor: give data.source_units",
        ),
        (
            lambda: task().eval().predict(replace(toy(2, 0), source_codes=_streams(toy(2, 0).source_codes, 2))),
            "data.source_codes has 2 streams, but stream_lm.num_streams is 3",
        ),
        (
            lambda: task().measure(replace(toy(2, 0), codes=_shifted(toy(2, 0).codes))),
            "but the codebooks have 12 entries (0 to 11): they are of another codec; write them again",
        ),
        (
            lambda: task().eval().predict(replace(toy(2, 0), source_codes=_shifted(toy(2, 0).source_codes))),
            "data.source_codes has the code",
        ),
        (
            lambda: task().eval().predict(replace(toy(2, 0), source_units=_plus(toy(2, 0).source_units))),
            "units of the source: units 9 is outside of the vocabulary",
        ),
        (
            lambda: task().eval().predict(replace(toy(2, 0), source_units=_none(toy(2, 0).source_units))),
            "utterance 0-0: units of the source are empty, too short for one step",
        ),
        (
            lambda: speaking().predict(replace(toy(2, 0), source_codes=_none(toy(2, 0).source_codes))),
            "utterance 0-0: the acoustic prompt is empty, too short for one step",
        ),
        (
            lambda: speaking({"positions": "learned", "max_positions": 12}).predict(
                replace(toy(3, 0), source_codes=_longer(toy(3, 0).source_codes))
            ),
            "tokens, but speech_lm has positions for 12: give shorter speech (--segment), or lower task.prompt_frames",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(call, words: str):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_frozen_speech_lm_beside_a_stream_lm_has_no_loss(monkeypatch: pytest.MonkeyPatch):
    one, batch = task().train(), toy(4, 0)
    torch.manual_seed(1)  # a stage is drawn
    before = one.measure(batch)[0]["streams"]
    one.freeze_parts(["speech_lm"])
    monkeypatch.setattr(one.speech_lm, "decode", None)  # and is not run
    torch.manual_seed(1)
    losses, statistics = one.measure(batch)
    assert list(losses) == ["streams"]
    torch.testing.assert_close(losses["streams"].total, before.total)
    assert set(statistics) == {"accuracy_stream_2", "accuracy_stream_3"}
    alone = task(stream=False)
    alone.freeze_parts(["speech_lm"])  # of an evaluation
    assert list(alone.measure(batch)[0]) == ["lm"]


def _streams(codes: Any, count: int) -> Padded:
    return codes.with_data(codes.data[..., :count])


def _shifted(codes: Any) -> Padded:
    """Of another codec, behind the first stream."""
    return codes.with_data(codes.data + torch.tensor([0, V, 0]))


def _none(steps: Any) -> Padded:
    return Padded(steps.data[:, :0], torch.zeros(len(steps), dtype=torch.int64))


def speaking(lm: dict[str, Any] | None = None) -> SpeechToSpeechLM:
    """One with a codec."""
    one = task(lm=lm)
    one.codec = EnCodec(
        sample_rate=16000, num_codebooks=K, codebook_size=V, dim=8, num_filters=4, ratios=[8, 8, 5], num_lstm_layers=1
    )
    return one.eval()


def _longer(codes: Any) -> Padded:
    return Padded(codes.data.repeat(1, 12, 1), codes.lengths * 12)


def _plus(units: Any) -> Padded:
    return units.with_data(units.data + UNITS)


def test_parts_that_do_not_fit_are_refused():
    lm = TransformerSpeechLM(UNITS, V, ["eng"], dim=16, num_heads=2, ffn_dim=16, num_layers=1)
    stream = TransformerStreamLM(UNITS + 1, V, K, dim=16, num_heads=2, ffn_dim=16, num_layers=1)
    with pytest.raises(UserError, match=r"stream_lm.num_units is 7, but speech_lm has 6"):
        SpeechToSpeechLM(speech_lm=lm, stream_lm=stream)


def test_cards_that_differ_are_refused():
    one = task()
    cards = {"units": Card("units", {"centroids": "a"}), "source_units": Card("units", {"centroids": "b"})}
    with pytest.raises(
        UserError, match=r'data.source_units, other units than those of data.units: centroids is "b", exp'
    ):
        one.card(cards)
    assert one.card({"units": cards["units"], "codes": None})["units"] == {"kind": "units", "centroids": "a"}


# Runs


def test_a_run_trains_goes_on_and_serves_and_refuses_other_units(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = [*corpus(tmp_path), f"root={tmp_path}/runs", "trainer.val_check_interval=3", "checkpoint.every_steps=3"]
    assert check(compose(words)) == []
    whole = train([*words, "name=whole", "trainer.max_steps=6"])
    said = capfd.readouterr().err
    assert "trans: 12 utterances, " in said
    assert "target tokens in both directions, 3 of 4 examples" in said
    train([*words, "name=parts", "trainer.max_steps=3"])
    train([*words, "name=parts", "trainer.max_steps=6"])
    runs = [load_run(tmp_path / "runs" / name) for name in ("whole", "parts")]
    states = [run.task.state_dict() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    card = json.loads(bytes(runs[0].task.files["vocabulary.card.json"].numpy()))
    assert card["units"] == {"kind": "units", "centroids": "a"}
    assert card["blocks"]["codes"] == {"start": 5 + 2 + UNITS, "size": V}
    assert len(runs[0].task.predict(toy(3, 5))) == 3
    assert whole is not None
    for name in ("units", "source_units"):
        (tmp_path / f"{name}.card.json").write_text(json.dumps({"centroids": "z"}))
    with pytest.raises(
        UserError, match=r'this run: units.centroids is "z", expected "a"; the checkpoint learned other'
    ):
        train([*words, "name=parts", "trainer.max_steps=9"])


def test_losses_and_perplexities_of_each_task_are_logged(tmp_path: Path):
    words = [
        *corpus(tmp_path),
        f"root={tmp_path}/runs",
        *CSV,
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
        "name=run",
    ]
    train([*words, "trainer.val_check_interval=2"])
    for name in ("lm", "loss_trans", "perplexity_trans", "accuracy_trans", "streams"):
        assert logged(tmp_path / "runs" / "run", f"train/{name}")
    names = ("loss", "lm", "streams", "perplexity_gen", "loss_gen")
    loss, lm, streams, perplexity, gen = (logged(tmp_path / "runs" / "run", f"valid/{name}")[0] for name in names)
    assert loss == pytest.approx(lm + streams, rel=1e-5)
    assert perplexity == pytest.approx(np.exp(gen), rel=1e-5)


@pytest.mark.parametrize("words", [["stream_lm=tiny_delay"], ["task.prompt=target", "task.loss_on=all"]])
def test_the_task_keeps_its_contract_and_speaks(words: list[str], tiny: list[str]):
    cache = next(word for word in tiny if word.startswith("cache_dir"))
    one, batches = tiny_task(["task=speech_to_speech_lm", cache, *words])
    check_task(one, batches)
    for prediction in one.eval().predict(batches[0]):
        frames = len(prediction.units or [])  # the tiny codec has a frame a unit
        assert prediction.audio is not None
        assert bool(prediction.audio.isfinite().all())
        assert 0.8 * 320 * frames <= len(prediction.audio) <= 1.2 * 320 * frames + 640


@pytest.mark.slow
def test_a_wav_becomes_a_wav(tmp_path: Path, tiny: list[str], capfd: pytest.CaptureFixture[str]):
    """Units fitted, units and codes of both sides written, an LM trained, a file translated, a split scored."""
    cache = next(word for word in tiny if word.startswith("cache_dir"))
    words = ["data=tiny", cache, "unit_extractor=tiny", f"root={tmp_path}", "logger=none"]
    train([*words, "task=fit_units", "name=fit"])
    words += ["task=speech_to_speech_lm", "codec=tiny", "speech_lm=tiny", "stream_lm=tiny", "trainer.max_steps=2"]
    words += ["trainer.val_check_interval=2", f"init.unit_extractor={tmp_path}/fit"]
    config = compose(words)
    data, codec = prepare_data(config), build(config.codec).eval()
    rows = [row for split in data.splits() for row in data.rows(split)]
    extractor: Any = load_run(tmp_path / "fit").task.parts()["unit_extractor"]
    sides: tuple[tuple[Any, str], ...] = (("tgt_audio", ""), ("audio", "source_"))
    for column, name in sides:
        extract_units(extractor, rows, column, tmp_path / f"{name}units.jsonl")
        extract_codes(codec, rows, column, tmp_path / f"{name}codes.jsonl")
        words += [f"data.{name}{kind}={tmp_path}/{name}{kind}.jsonl" for kind in ("units", "codes")]
    # This codec was drawn at random, and so is the task's: another one, which is refused.
    with pytest.raises(UserError, match=r"^codec, other codec than those of data.codes: weights is .*"):
        train([*words, "name=refused"])
    for name in ("codes", "source_codes"):
        (tmp_path / f"{name}.card.json").unlink()
    train([*words, "name=run"])
    capfd.readouterr()
    command = ["translate", str(tmp_path / "run"), str(rows[0].audio), "--task", "s2st", "--out", str(tmp_path)]
    assert main([*command, "--to", "en"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["tgt_lang"], said["text"]) == ("en", None)
    assert len(said["units"]) > 3
    samples, rate = soundfile.read(said["audio"])
    assert rate == 16000
    assert abs(len(samples) - 320 * len(said["units"])) <= 0.15 * len(samples) + 640
    assert main([*command, "--to", "fra"]) == 1
    assert "--to fra: unknown language; this run knows eng, spa" in capfd.readouterr().err
