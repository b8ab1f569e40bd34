"""The template of data: an audiofolder, which trains and is planned as it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_role
from conftest import PARTS
from voxzoo.components.errors import UserError
from voxzoo.configs import check, compose
from voxzoo.tasks import train
from voxzoo.tasks.planning.rehearsal import Rehearsal
from voxzoo.tasks.serving.evaluation import evaluate_run
from voxzoo.tasks.templates import audiofolder_test
from voxzoo.tasks.templates.audiofolder import MineData
from voxzoo.tasks.templates.clips import write_clips

TEMPLATES = Path(__file__).resolve().parents[2] / "tasks" / "templates"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def words(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Overrides and folders of YAML of a tiny run over the clips, with the template's YAML."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "data").mkdir()
    text = (
        (TEMPLATES / "audiofolder.yaml")
        .read_text()
        .replace("my_zoo.data.mine.MineData", f"{MineData.__module__}.MineData")
    )
    (folder / "data" / "mine.yaml").write_text(text)
    overrides = [*PARTS, "data=mine", f"data.root={clips}", f"cache_dir={folder / 'cache'}"]
    return overrides, [str(folder)]


def test_the_template_trains_and_is_planned(words, tmp_path):
    overrides, folders = words
    config = compose(overrides, config_dirs=folders)
    assert check(config) == []
    found = Rehearsal(config).data
    assert (found.note, found.utterances, found.steps) == (config.data.root, 24, 3)
    assert found.hours == pytest.approx((24 * 2 * 0.2) / 3600)
    short = [f"root={tmp_path}", "tokenizer.vocab_size=40", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    result = train([*overrides, *short, "logger=none"], config_dirs=folders)
    assert result["status"] == "ok"
    scores = evaluate_run(result["run"], "test", recogniser="none", limit=2)
    assert (scores["num_utterances"], scores["dropped"]) == (2, [])


def test_its_own_tests_pass():
    for name, test in list(vars(audiofolder_test).items()):
        if name.startswith("test_"):
            test()


def test_jsonl_and_one_folder(clips, tmp_path):
    rows = [{"file_name": "a.wav", "sentence": "uno", "src_lang": "por", "speaker": "s"}, {"file_name": "b.wav"}]
    for row in rows:
        (tmp_path / row["file_name"]).write_bytes((clips / "train" / "00.wav").read_bytes())
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = MineData(root=str(tmp_path), batch_size=2, text="sentence", src_lang="fra")
    assert data.splits() == ("train",)
    first, second = data.rows("train")
    assert (first.src_text, first.src_lang, first.speaker, first.audio) == ("uno", "por", "s", str(tmp_path / "a.wav"))
    assert (second.src_text, second.src_lang, second.tgt_lang) == ("", "fra", "eng")
    assert data.languages() == ("eng", "fra", "por")


def test_faults_say_where(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=nowhere: no such folder; expected one with train/metadata\.csv"):
        MineData(root="nowhere", batch_size=2)
    (tmp_path / "metadata.csv").write_text("path,text\na.wav,uno\n")
    with pytest.raises(UserError, match=r"metadata\.csv: row 1 has no file_name; it has path, text"):
        MineData(root=str(tmp_path), batch_size=2).rows("train")


def test_audio_that_is_no_file_is_fitted_and_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXZOO_ALLOW", test_role.__name__)
    words = [f"data._target_={test_role.__name__}.Own", f"allow=[{test_role.__name__}]", "data=tiny", "~data.corpus",
             f"root={tmp_path}", "logger=none", *PARTS]  # fmt: skip
    fitted = train([*words, "task=fit_units", "task.column=audio", "unit_extractor=tiny", "name=units"])
    assert (fitted["extract"]["utterances"], fitted["extract"]["without_speech"]) == (14, 0)
    short = ["tokenizer.vocab_size=40", "trainer.max_steps=1", "trainer.val_check_interval=1", "name=text"]
    search = "+task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:1,max_length:4}"
    run = train([*words, *short, search])["run"]
    scores = evaluate_run(run, "valid", recogniser="none")
    assert (scores["num_utterances"], scores["dropped"]) == (3, [])
