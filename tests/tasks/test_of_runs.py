"""Cascades and consensus: what they answer is what their runs answer by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from voxzoo.components.errors import UserError
from voxzoo.components.search import SearchOptions
from voxzoo.configs import compose
from voxzoo.tasks import evaluate_run, load_run, train, translate
from voxzoo.tasks.checkpoints.files import write_unstepped
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.scoring.consensus import SentenceBleu, choose, expected_utilities, utility_of
from voxzoo.tasks.training.train import build_for_training, prepare_data

SEARCH = "task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:4,min_length:4,max_length:12}"
BOTH = "data.tasks={s2tt:true,asr:true}"


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`asr`, `mt` and `st` with random weights that write different texts, in one folder."""
    root = tmp_path_factory.mktemp("runs")
    for seed, (name, words) in enumerate(
        {
            "asr": ["task=speech_to_text", BOTH],
            "mt": ["task=text_to_text", "data.tasks={s2tt:false,t2tt:true}"],
            "st": ["task=speech_to_text", "text_seq2seq.dim=24", "adaptor.output_dim=24"],
        }.items()
    ):
        config = compose([*tiny, *words, SEARCH, f"name={name}", f"root={root}", f"seed={seed}"])
        folder = Path(config.run_dir)
        prepare_data(config)
        torch.manual_seed(seed)
        task = build_for_training(config, folder)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter += 0.8 * torch.randn_like(parameter)
        task.config["data"] = {**task.config["data"], "num_workers": 0}
        write_unstepped(task, folder / "checkpoints" / "last.ckpt")
        (folder / "config.yaml").write_text("stages: {}\n")
    return root


def hypotheses(answer: dict[str, Any]) -> dict[str, str]:
    lines = Path(answer["hypotheses"]).read_text().splitlines()
    return {row["id"]: row["hypothesis"] for row in map(json.loads, lines)}


def rows_of(runs: Path, count: int = 4) -> list[Any]:
    return list(load_run(runs / "asr").datamodule().rows("test"))[:count]


def by_hand(runs: Path, rows: list[Any], several: int = 1) -> dict[str, str]:
    """Recognise, then translate what was written: of `several` hypotheses the one whose scores sum up highest."""
    asr, mt = (load_run(runs / name).task for name in ("asr", "mt"))
    found = {}
    for row in rows:
        heard = asr.predict_several(
            asr.collator()([replace(row, task="asr", tgt_lang=row.src_lang)]), task="asr", count=several
        )[0]
        best = None
        for one in heard:
            read = mt.collator()([replace(row, task="t2tt", src_text=one.text)])
            (said,) = mt.predict(read, task="t2tt")
            if best is None or one.score + said.score > best[0]:
                best = one.score + said.score, said.text
        assert best is not None
        assert best[1]
        found[row.id] = best[1]
    return found


@pytest.mark.parametrize("pass_on", [1, 3])
def test_a_cascade_is_its_two_steps_by_hand(runs: Path, tiny: list[str], pass_on: int):
    name = f"cascade{pass_on}"
    words = [*tiny, "task=cascade", "task.runs=[asr,mt]", f"task.pass_on={pass_on}", f"root={runs}", f"name={name}"]
    done = train(words)
    assert done["task"] == "Cascade"
    assert done["parameters"] > 0
    answer = evaluate_run(runs / name, limit=4, batch_size=3, device="cpu")
    assert hypotheses(answer) == by_hand(runs, rows_of(runs), pass_on)
    assert answer["num_dropped"] == 0
    assert set(answer["tasks"]) == {"s2tt"}
    assert "state_dict" in torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert (runs / name / "checkpoints" / "last.ckpt").stat().st_size < 50_000  # no weights


def test_one_line_joins_runs_too(runs: Path):
    answer = evaluate_run(f"{runs / 'asr'}+{runs / 'mt'}", limit=4, device="cpu")
    assert hypotheses(answer) == by_hand(runs, rows_of(runs))
    assert Path(answer["hypotheses"]).parent == runs / "asr+mt" / "evaluation"


def test_a_third_run_reads_what_the_second_wrote_in_the_language_of_the_target(runs: Path):
    answer = evaluate_run("+".join(str(runs / name) for name in ("asr", "mt", "mt")), limit=4, device="cpu")
    mt, rows = load_run(runs / "mt").task, rows_of(runs)
    second = by_hand(runs, rows)
    for row in rows:
        read = replace(row, task="t2tt", src_lang=row.tgt_lang, src_text=second[row.id])
        assert hypotheses(answer)[row.id] == mt.predict(mt.collator()([read]), task="t2tt")[0].text


def test_translate_serves_a_cascade(runs: Path, tmp_path: Path):
    row = rows_of(runs, 1)[0]
    (line,) = translate(
        f"{runs / 'asr'}+{runs / 'mt'}", [row.audio], "s2tt", row.tgt_lang, source=row.src_lang, device="cpu"
    )
    assert line["text"] == by_hand(runs, [row])[row.id]


def test_a_cascade_found_by_a_moved_folder(runs: Path, tmp_path: Path, tiny: list[str]):
    train([*tiny, "task=cascade", "task.runs=[asr,mt]", f"root={runs}", "name=moving"])
    everything = tmp_path / "elsewhere"
    everything.symlink_to(runs)
    assert len(load_run(everything / "moving").task.steps) == 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.runs=[asr]"], "runs must be two or three; got 1: asr"),
        (["task.runs=[asr,mt]", "task.pass_on=0"], "pass_on must be at least 1; got 0"),
        (["task.runs=[mt,asr]"], "mt stands at place 1, which must do asr or s2tt; it can do t2tt"),
        (["task.runs=[asr,st]"], "st stands at place 2, which must do t2tt or t2st; it can do asr, s2tt"),
        (["task.runs=[asr,none]"], "task.runs: none, of .*refused, is not there; looked for"),
        (["task.runs=[asr,mt]", "task.languages=[spa,eng]"], "languages must be 1, one for each of runs but the last"),
    ],
)
def test_what_is_no_cascade_is_refused(runs: Path, tiny: list[str], words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        train([*tiny, "task=cascade", f"root={runs}", "name=refused", *words])


def test_more_hypotheses_than_the_search_gives_are_refused(runs: Path):
    task = load_run(f"{runs / 'asr'}+{runs / 'mt'}").task
    task.pass_on = 9  # pyright: ignore[reportAttributeAccessIssue]
    batch = task.collator()(rows_of(runs, 1))
    with pytest.raises(UserError, match=r"task\.pass_on=9: the search of a run gives 4; take --beam 9"):
        task.predict(batch, task="s2tt")


# Minimum Bayes risk


TEXTS = [
    "the train leaves",
    "the train is leaving",
    "a house",
    "",
    "the train leaves",
    "the trains leave at nine o'clock",
]


@pytest.mark.parametrize(("utility", "peer"), [("chrf", CHRF()), ("bleu", BLEU(effective_order=True))])
def test_expected_utilities_are_means_of_sacrebleu(utility: str, peer: Any):
    found = expected_utilities(TEXTS, utility_of(utility))
    wanted = [np.mean([peer.sentence_score(one, [other]).score for other in TEXTS]) for one in TEXTS]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert choose(TEXTS, utility_of(utility)) == int(np.argmax(wanted)) == 0


def test_sentence_bleu_of_any_length_is_that_of_sacrebleu():
    generator, words = np.random.default_rng(0), ["the", "a", "train", "house", "near", "old", "two", "stops", ",", "."]
    sides = [[" ".join(generator.choice(words, generator.integers(0, 9))) for _ in range(200)] for _ in range(2)]
    metric, peer = SentenceBleu(), BLEU(effective_order=True)
    found = metric.scores(metric.statistics(*sides).astype(float))
    wanted = [peer.sentence_score(one, [other]).score for one, other in zip(*sides, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("utility", ["chrf", "bleu"])
def test_a_consensus_is_what_the_candidates_of_its_runs_agree_on(runs: Path, capfd, utility: str):
    names = [str(runs / "st"), f"{runs / 'asr'}+{runs / 'mt'}"]
    words = ["--mbr", ",".join(names), "--candidates", "3", "--utility", utility, "--limit", "4", "--device", "cpu"]
    assert main(["evaluate", *words, "--out", str(runs / "mbr"), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    peer = CHRF() if utility == "chrf" else BLEU(effective_order=True)
    tasks = [load_run(name).task for name in names]
    for row in rows_of(runs):
        texts = [
            one.text or ""
            for task in tasks
            for one in task.predict_several(task.collator()([row]), task="s2tt", count=3)[0]
        ]
        means = [np.mean([peer.sentence_score(one, [other]).score for other in texts]) for one in texts]
        assert hypotheses(answer)[row.id] == texts[int(np.argmax(np.round(means, 9)))]


def test_a_consensus_is_a_run_and_may_draw_its_candidates(runs: Path, tiny: list[str]):
    words = ["task=consensus", "task.runs=[asr,st]", "task.sample=true", "task.candidates=3", "name=drawn"]
    train([*tiny, *words, f"root={runs}"])
    answers = [hypotheses(evaluate_run(runs / "drawn", limit=3, device="cpu", out=runs / str(n))) for n in range(2)]
    assert answers[0] == answers[1]
    best = hypotheses(evaluate_run([runs / "asr", runs / "st"], limit=3, device="cpu", consensus={"candidates": 3}))
    assert answers[0] != best


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mbr", "{0}/asr,{0}/mt"], "there is no text that all can write"),
        (["{0}/asr", "--mbr", "{0}/asr,{0}/st"], "give RUN, or --mbr RUN,RUN"),
        ([], "give RUN, or --mbr RUN,RUN"),
        (["{0}/asr", "--utility", "bleu"], "--utility is for --mbr"),
        (["--mbr", "{0}/asr,{0}/st", "--candidates", "1"], "2 texts have no consensus"),
        (["--mbr", "{0}/asr,{0}/st", "--candidates", "9"], "candidates=9: the search of a run gives 4"),
    ],
)
def test_what_has_no_consensus_is_refused(runs: Path, capsys, words: list[str], message: str):
    assert main(["evaluate", *(word.format(runs) for word in words), "--limit", "1", "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_options_of_the_call_count_for_all_runs(runs: Path):
    task = load_run(f"{runs / 'asr'}+{runs / 'mt'}").task
    assert task.search.beam_size == 4  # pyright: ignore[reportAttributeAccessIssue]
    found = [task.options_of(step, SearchOptions(beam_size=2)) for step in task.steps]  # pyright: ignore[reportAttributeAccessIssue]
    assert [(one.beam_size, one.max_length) for one in found] == [(2, 12), (2, 12)]
