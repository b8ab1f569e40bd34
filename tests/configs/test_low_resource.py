"""The low-resource matrix: every row of it composes, is sound, and shares what it has in common with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from published import publish_nllb, publish_seamless
from voxzoo.configs import compose
from voxzoo.configs.origins import ROOT
from voxzoo.tasks.ablation.points import points_of
from voxzoo.tasks.ablation.prepared import prepare

POINTS = ROOT / "experiment" / "points"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models and eight clips with German text and English translations."""
    folder = tmp_path_factory.mktemp("low")
    publish_seamless(folder / "m4t", 2)
    publish_nllb(folder / "nllb")
    lines = []
    for number in range(8):
        samples = 0.1 * np.random.default_rng(number).standard_normal(16000 + 800 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        row = {"id": str(number), "audio": f"{number}.wav", "duration": 1 + 0.05 * number, "src_lang": "deu",
               "tgt_lang": "eng", "src_text": "der Zug hält an.", "tgt_text": "two small trains stop here"}  # fmt: skip
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def words_of(corpus: Path) -> list[str]:
    data = [f"data.{split}={corpus}/rows.jsonl" for split in ("train", "valid", "test.test")]
    return ["experiment=low_resource", f"from={corpus}/m4t", f"root={corpus}/runs", *data]


@pytest.fixture(scope="module")
def matrix(corpus: Path) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(corpus)  # where `nllb` lies
        return prepare(points_of(words_of(corpus), named=POINTS / "low_resource.yaml"), corpus / "runs", "matrix")


def test_the_whole_matrix_has_at_most_forty_lines():
    assert len((POINTS / "low_resource.yaml").read_text().splitlines()) <= 40


def test_every_row_is_sound_and_shares_its_recognition_and_translation(matrix):
    points, trainings = matrix
    assert {point.point.system: point.error for point in points if point.error} == {}
    keys = {point.point.system: point.keys for point in points}
    assert keys["ASR"]["asr"] == keys["cascade"]["asr"] == keys["multi-task"]["asr"] == keys["MBR"]["asr"]
    assert keys["MT"]["mt"] == keys["cascade"]["mt"] == keys["ST from MT"]["mt"]
    assert keys["MT, NLLB"]["mt"] != keys["MT"]["mt"]
    assert keys["multi-task"]["st"] == keys["MBR"]["st"]
    own = [keys[name]["st"] for name in keys if "st" in keys[name] and name != "MBR"]
    assert len(set(own)) == len(own)
    assert len(trainings) == len({key for one in keys.values() for key in one.values()})


def test_published_settings_are_the_defaults(corpus: Path):
    words = [*words_of(corpus), "name=settings"]
    asr, mt, st = (compose(words, stage=stage) for stage in ("asr", "mt", "st"))
    assert (st.optim.lr, list(st.optim.betas), st.optim.weight_decay) == (1e-4, [0.9, 0.98], 0)
    assert st.schedule._target_.endswith("inverse_sqrt")
    assert (st.schedule.warmup_share, st.trainer.max_epochs, st.trainer.max_steps) == (0.1, 10, -1)
    sizes = [one.data.batch_size * one.trainer.accumulate_grad_batches for one in (asr, mt, st)]
    assert sizes == [120, 256, 120]
    for one in (asr, mt, st):
        assert one.task.label_smoothing == 0.2
        assert (one.task.search.method, one.task.search.beam_size, one.task.search.length_penalty) == ("beam", 5, 1.0)
    assert (st.task.loss_on_lang_token, st.text_seq2seq.tie_output) == (False, False)
    assert (st.adaptor.attention_dropout, st.adaptor.ffn_inner_dropout) == (0.1, 0.0)
    multi = compose([*words, "stages.st.choose.task=speech_and_text_to_text"], stage="st")
    assert (multi.task.mt_weight, multi.task.kd_weight, multi.task.kd_loss) == (1.0, 2.0, "kl")
    assert multi.task.label_smoothing == 0.2


def test_their_table_of_code_bases_is_one_command(corpus: Path):
    words = [*words_of(corpus), "stages.asr=null", "stages.mt=null"]
    found = points_of(words, named=POINTS / "code_bases.yaml")
    points, trainings = prepare(found, corpus / "runs", "code_bases")
    assert [point.error for point in points] == [None] * 7
    assert len(trainings) == 7
    configs = {one.system: compose([*one.words, "name=x"], stage="st") for one in found}

    def switches(name: str) -> tuple[Any, ...]:
        one = configs[name]
        return (
            one.text_seq2seq.tie_output, one.text_seq2seq.ffn_dropout, one.adaptor.attention_dropout,
            one.adaptor.ffn_inner_dropout, one.task.loss_on_lang_token,
        )  # fmt: skip

    assert switches("transformers") == (True, 0.0, 0.0, None, True)
    assert switches("output layer untied") == (False, 0.0, 0.0, None, True)
    assert switches("untied, dropout") == (False, 0.1, 0.1, 0.0, True)
    assert switches("untied, no loss on the language") == (False, 0.0, 0.0, None, False)
    assert switches("all three") == (False, 0.1, 0.1, 0.0, False)
    assert switches("dropout") == (True, 0.1, 0.1, 0.0, True)
    assert configs["original code"].text_seq2seq.position_start == 2
    assert configs["transformers"].text_seq2seq.position_start == 1


def test_a_row_of_all_kinds_is_trained_and_scored(corpus: Path, voxzoo):
    """MBR over multi-task training from both and a cascade: five trainings of two steps."""
    points = corpus / "one.yaml"
    lines = (POINTS / "low_resource.yaml").read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("multi-task: &multi"))
    chosen = [*lines[start : start + 5], next(line for line in lines if line.startswith("MBR:"))]
    points.write_text("\n".join(chosen) + "\n")
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accumulate_grad_batches=1"]
    short = [f"stages.{name}.set.task.search.max_length=8" for name in ("asr", "mt", "st")]
    done = voxzoo(
        "ablate", *words_of(corpus), *steps, *short, "logger=none", "name=tried", "data.num_workers=0",
        "--points", points, "--recogniser", "none", "--quality", "none", "--json", cwd=corpus, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["trainings"] == answer["trained_now"] == 4
    assert set(answer["results"]["systems"]) == {"multi-task", "MBR"}
    assert answer["results"]["scores"]["bleu"]["num_utterances"] == 8
