"""Sweeps of tiny models: what is trained once, what again, and what a kill, an error and a new name change."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forkserver
import pytest
import torch
from voxzoo.tasks.ablation import board
from voxzoo.tasks.commands import cli

# A model that has learned nothing does not stop by itself.
SHORT = "{search:{_target_:voxzoo.components.search.SearchOptions,beam_size:1,max_length:6}}"
TABLES = ("table.csv", "table.md", "table.tex", "table.json", "page.html")
SCORED = ["--limit", "6", "--recogniser", "none", "--quality", "none", "--split", "test_seen"]


def staged(tiny: list[str], root: Path, name: str, *swept: str) -> list[str]:
    """A run of four stages, two steps each."""
    return [
        *("ablate", "experiment=quickstart", *tiny, "unit_extractor=tiny", "t2u=tiny", "vocoder=tiny", "adaptor=stack"),
        *(f"stages.{stage}.set.task={SHORT}" for stage in ("first_pass", "second_pass")),
        *common(root, name),
        *swept,
    ]


def single(tiny: list[str], root: Path, name: str, *swept: str) -> list[str]:
    """One training a point, two steps each."""
    return ["ablate", "task=speech_to_text", *tiny, f"+task.search={SHORT[8:-1]}", *common(root, name), *swept]


def common(root: Path, name: str) -> list[str]:
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=2", "checkpoint.every_steps=1"]
    return [f"root={root}", f"name={name}", "logger=none", *steps, *SCORED, "--json"]


def answer(done: Any) -> dict[str, Any]:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def without_times(text: str) -> str:
    """A page without what was measured of time and memory, which stands in a section of its own."""
    return re.sub(r'<section id="costs".*?</section>', "", text, flags=re.DOTALL)


def ended(folder: Path) -> dict[str, int]:
    """When each training ended."""
    return {str(path.parent): path.stat().st_mtime_ns for path in folder.glob("*/*/done.json")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def swept(voxzoo, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learning rate in two values, and one of which nothing is learned."""
    root = tmp_path_factory.mktemp("swept")
    done = voxzoo(*single(tiny, root, "lr", "lr=1e-3,1e-2,1e30", "max_skipped_steps=1"), cwd=root)
    assert done.returncode == 1, done.stderr
    (root / "answer.json").write_text(done.stdout)
    return root


def test_a_point_that_fails_is_a_row_with_its_reason(swept: Path):
    found = json.loads((swept / "answer.json").read_text())
    assert found["status"] == "failed"
    systems = found["results"]["systems"]
    assert list(systems) == ["lr=0.001", "lr=0.01", "lr=1e+30"]
    assert [bool(one["failed"]) for one in systems.values()] == [False, False, True]
    assert "NaN" in systems["lr=1e+30"]["failed"]["lr=1e+30"]
    scores = found["results"]["scores"]["bleu"]
    assert list(scores["systems"]) == ["lr=0.001", "lr=0.01"]
    assert scores["num_utterances"] == 6
    assert "p_randomisation_holm" in scores["systems"]["lr=0.01"]
    facts = systems["lr=0.001"]["facts"]
    assert facts["steps"] == 2
    assert facts["parameters"] >= facts["trainable"] > 1000
    assert facts["audio_hours"] > 0
    for name in TABLES:
        assert "failed" in (swept / "lr" / name).read_text()
    page = (swept / "lr" / "page.html").read_text()
    assert found["page"] == str(swept / "lr" / "page.html")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])  # pyright: ignore[reportOptionalSubscript]
    assert [system["name"] for system in data["systems"]] == ["lr=0.001", "lr=0.01"]
    assert [line["points"][0][0] for line in data["curves"][0]["lines"]] == [2, 2]
    assert [field["name"] for field in data["fields"]][:1] == ["reference length"]
    assert data["source"][0]
    assert "optim.lr" in page


def test_finished_points_are_not_trained_again_whatever_they_are_called(voxzoo, tiny: list[str], swept: Path):
    before, ends = tables(swept / "lr"), ended(swept / "lr")
    (swept / "points.yaml").write_text("large: [lr=1e-2]\nsmall: [optim.lr=0.001]\nbroken: [lr=1e30]\n")
    call = single(tiny, swept, "lr", "--points", str(swept / "points.yaml"), "max_skipped_steps=1")
    named = answer(voxzoo(*call, cwd=swept))
    assert named["trained_now"] == 0
    assert list(named["results"]["systems"]) == ["large", "small", "broken"]
    assert ended(swept / "lr") == ends
    again = answer(voxzoo(*single(tiny, swept, "lr", "lr=1e-3,1e-2,1e30", "max_skipped_steps=1"), cwd=swept))
    assert again["trained_now"] == 0
    assert tables(swept / "lr") == before


def test_a_point_is_not_made_longer_behind_the_back_of_its_table(voxzoo, tiny: list[str], tmp_path: Path):
    steady = ["schedule=constant", "schedule.warmup_steps=1"]
    call = single(tiny, tmp_path, "steady", *steady, "lr=1e-3", "--split", "none")
    found = answer(voxzoo(*call, cwd=tmp_path))
    (folder,) = (tmp_path / "steady" / "points").iterdir()
    words = [word for word in call[1:] if word not in ("lr=1e-3", *SCORED, "--split", "none")]
    of_point = ["train", *words, "lr=0.001", f"name=steady/points/{folder.name}"]
    assert json.loads(voxzoo(*of_point, cwd=tmp_path).stdout)["steps"] == 2
    longer = voxzoo(*of_point, "trainer.max_steps=3", cwd=tmp_path)
    assert "a longer run is another point of the ablation" in longer.stderr
    assert answer(voxzoo(*call, cwd=tmp_path))["trained_now"] == 0
    # Elsewhere the same run goes on, and there it is another point.
    assert found["trained_now"] == 1
    assert answer(voxzoo(*call, "trainer.max_steps=3", cwd=tmp_path))["trained_now"] == 1


def test_a_dry_run_says_what_is_new_and_writes_nothing(voxzoo, tiny: list[str], swept: Path):
    before = sorted(swept.rglob("*"))
    call = single(tiny, swept, "lr", "lr=1e-3,1e-1", "speech_encoder.dim=32,7", "--dry-run")
    found = answer(voxzoo(*call, cwd=swept))
    assert [bool(one["error"]) for one in found["points"]] == [False, True, False, True]
    assert {one["state"] for one in found["plan"]} == {"new"} or len(found["plan"]) == 2
    new = next(one for one in found["plan"] if one["state"] == "new")
    assert new["steps"] == 2
    assert new["peak_bytes"] > 10_000
    assert new["least_seconds"] >= 0
    assert sorted(swept.rglob("*")) == before


HARDER = ["--noise", "white", "--snr", "0", "--across-speakers"]


def test_conditions_are_asked_of_each_point_and_stand_in_the_table(voxzoo, tiny: list[str], swept: Path):
    (swept / "spa.txt").write_text("caramba\n")
    (swept / "eng.txt").write_text("darn\n")
    lists = [f"--toxicity={lang}={swept / lang}.txt" for lang in ("eng", "spa")]
    call = single(tiny, swept, "lr", "lr=1e-3,1e-2", *HARDER, *lists, "max_skipped_steps=1")
    found = answer(voxzoo(*call, cwd=swept))
    assert found["trained_now"] == 0
    scores = found["results"]["scores"]
    assert {"bleu in white 0 dB", "added_toxicity"} < scores.keys()
    head = (swept / "lr" / "table.csv").read_text().splitlines()[0]
    assert "BLEU in white 0 dB" in head
    assert "added toxicity %" in head
    written = sorted((swept / "lr").glob("points/*/scores/*/test_seen.json"), key=lambda path: path.stat().st_mtime)
    for path in written[-2:]:
        own = json.loads(path.read_text())
        values = [one["score"] for one in scores["bleu in white 0 dB"]["systems"].values()]
        assert own["conditions"]["white 0 dB"]["tasks"]["s2tt"]["bleu"]["score"] in values
    # Other words in a list: another score, of which the first is still there.
    (swept / "eng.txt").write_text("darn\nheck\n")
    again = answer(voxzoo(*call, cwd=swept))["results"]["scores"]
    assert again["added_toxicity"]["signature"] != scores["added_toxicity"]["signature"]
    assert len([*(swept / "lr").glob("points/*/scores/*/test_seen.json")]) == len(written) + 2


def test_what_cannot_be_scored_is_refused_before_anything_is_trained(voxzoo, tiny: list[str], tmp_path: Path):
    for words, said in (
        (["--noise", "white"], "--noise: also say --snr"),
        (["--noise", "rain", "--snr", "0"], "--noise rain: no such folder"),
        (["--toxicity", "eng=no.txt"], "--toxicity eng=no.txt: no such file"),
    ):
        done = voxzoo(*single(tiny, tmp_path, "x", "lr=1e-3", *words), cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "x").exists()


def test_models_of_the_hub_are_fetched_by_points_where_they_may_be(tiny: list[str], tmp_path: Path, monkeypatch):
    began: list[tuple[str, ...]] = []

    def start(self: Any, name: str, words: tuple[str, ...]) -> Any:
        began.append(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(board._Board, "_start", start)
    call = single(tiny, tmp_path, "x", "lr=1e-3", "--online")
    assert cli.main([word for word in call if word != "--json"]) == 130
    assert cli.main([word for word in call if word not in ("--json", "--online")]) == 130
    assert [words[:2] for words in began] == [("train", "--online"), ("train", "task=speech_to_text")]


def test_a_wrong_row_and_a_folder_in_use_are_said(voxzoo, tiny: list[str], swept: Path):
    from voxzoo.tasks.runs.folder import pid_lock

    done = voxzoo(*single(tiny, swept, "lr", "lr=1e-3,1e-2", "--base", "nothing"), cwd=swept)
    assert "--base nothing: no such row; there are: lr=0.001; lr=0.01" in done.stderr
    with pid_lock(swept / "lr"):
        done = voxzoo(*single(tiny, swept, "lr", "lr=1e-3"), cwd=swept)
    assert done.returncode == 1
    assert "is being trained by another process" in done.stderr


def test_what_no_stage_reads_makes_a_row_and_no_training(voxzoo, tiny: list[str], tmp_path: Path):
    """Two points of one folder: no second pass, and no adversary, whatever one is chosen."""
    swept = ["t2u=none", "discriminator=none,tiny", "--split", "none"]
    found = answer(voxzoo(*staged(tiny, tmp_path, "same", *swept), cwd=tmp_path, timeout=200))
    assert (found["status"], found["points"], found["trainings"], found["trained_now"]) == ("ok", 2, 1, 1)
    one, other = found["results"]["systems"].values()
    assert one == other


@pytest.mark.slow
def test_what_points_share_is_trained_once_and_is_that_of_a_point_alone(voxzoo, tiny: list[str], tmp_path: Path):
    found = answer(
        voxzoo(*staged(tiny, tmp_path, "shared", "t2u.dropout=0.0,0.5", "seed=1,2"), cwd=tmp_path, timeout=400)
    )
    assert found["status"] == "ok"
    assert found["trainings_without_sharing"] == 16
    assert (
        found["trainings"] == found["trained_now"] == 2 * (3 + 2)
    )  # a second pass for each point; seeds share nothing
    alone = [word for word in staged(tiny, tmp_path, "alone", "t2u.dropout=0.5", "seed=2")[1:] if word not in SCORED]
    done = voxzoo("train", *alone, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    keys = {json.dumps(point["words"]): Path(point["folder"]) for point in points(voxzoo, tiny, tmp_path)}
    folder = next(folder for words, folder in keys.items() if "t2u.dropout=0.5" in words and '"seed=2"' in words)
    for stage in ("units", "vocoder", "first_pass", "second_pass"):
        one, other = weights(folder / "stages" / stage), weights(tmp_path / "alone" / "stages" / stage)
        assert all(torch.equal(one[key], other[key]) for key in other)
    # A point is a run like any other, and its stages are those of others too: train finds all of it done.
    ends, of_point = ended(tmp_path / "shared"), [*alone, f"name=shared/points/{folder.name}", "--json"]
    assert answer(voxzoo("train", *of_point, cwd=tmp_path, timeout=400))["status"] == "ok"
    done = voxzoo("train", *of_point, "schedule=constant", "trainer.max_steps=4", cwd=tmp_path, timeout=400)
    assert "holds a run of another config" in done.stderr
    assert ended(tmp_path / "shared") == ends


def points(voxzoo: Callable[..., Any], tiny: list[str], root: Path) -> list[dict[str, Any]]:
    call = staged(tiny, root, "shared", "t2u.dropout=0.0,0.5", "seed=1,2", "--dry-run")
    return answer(voxzoo(*call, cwd=root, timeout=400))["points"]


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_to_the_same_table(voxzoo, tiny: list[str], tmp_path: Path):
    swept = ["speech_encoder.dropout=0.0,0.1", "seed=1,2"]
    whole = answer(voxzoo(*staged(tiny, tmp_path, "whole", "t2u=none", *swept), cwd=tmp_path, timeout=400))
    assert whole["status"] == "ok"
    call = staged(tiny, tmp_path, "killed", "t2u=none", "--jobs", "2", *swept)
    for number, seen in ((signal.SIGKILL, 0), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
        said = tmp_path / f"{number.name}.log"
        with said.open("w") as log:
            process = forkserver.popen(
                [*forkserver.COMMAND, *call], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log
            )
        deadline = time.monotonic() + 200
        # A process that has begun something: before that a signal meets Python's own start.
        while len(ended(tmp_path / "killed")) < seen or "begins" not in said.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
        if number != signal.SIGKILL:
            assert process.returncode in (75, 130, 0)
        else:
            time.sleep(2)  # its children see that it is gone
    ends = ended(tmp_path / "killed")
    found = answer(voxzoo(*call, cwd=tmp_path, timeout=400))
    assert found["status"] == "ok"
    assert {name: when for name, when in ended(tmp_path / "killed").items() if name in ends} == ends
    for name, content in tables(tmp_path / "killed").items():
        one, other = (text.decode().replace("killed", "whole") for text in (content, tables(tmp_path / "whole")[name]))
        assert without_times(one).splitlines() == without_times(other).splitlines()
    assert '"validations"' in next((tmp_path / "killed").glob("stages/first_pass-*/done.json")).read_text()
