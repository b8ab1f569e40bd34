"""Where the keys of a config come from, what follows when a part is swapped, and which stages `task=` reaches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from voxzoo.components.errors import UserError
from voxzoo.configs.check import check, require_valid
from voxzoo.configs.compose import CONFIG_DIR, compose, origins
from voxzoo.configs.origins import lines_of

QUICKSTART = "experiment=quickstart"


def where(path: str, *overrides: str, **asked: Any) -> str:
    return str(origins(overrides, **asked).of(path))


def line_of(file: Path, text: str) -> int:
    """The number of the only line that begins with a text, whatever stands before it."""
    (found,) = [n for n, line in enumerate(file.read_text().splitlines(), 1) if line.strip().startswith(text)]
    return found


def test_each_key_is_found_at_its_line():
    quickstart, encoder = CONFIG_DIR / "experiment" / "quickstart.yaml", CONFIG_DIR / "speech_encoder" / "small.yaml"
    file = "configs/experiment/quickstart.yaml"
    assert where("frontend.stack", QUICKSTART) == f"{file}:{line_of(quickstart, 'stack: 8')}"
    spec = "speech_encoder.spec_augment"
    assert where(f"{spec}.time_masks", QUICKSTART) == f"{file}:{line_of(quickstart, 'time_masks:')}"
    assert (
        where("speech_encoder.ffn_dim", QUICKSTART)
        == f"configs/speech_encoder/small.yaml:{line_of(encoder, 'ffn_dim')}"
    )
    root = CONFIG_DIR / "config.yaml"
    assert where("checkpoint.keep_best", QUICKSTART) == f"configs/config.yaml:{line_of(root, 'keep_best')}"
    assert where("checkpoint.every_steps", QUICKSTART).startswith(file)
    # What is not written anywhere belongs to the node around it.
    assert where("adaptor.gone", "adaptor=stack").startswith("configs/adaptor/stack.yaml:")
    assert origins([]).of("gone") is None


def test_every_shipped_key_has_the_line_that_holds_it():
    for file in CONFIG_DIR.glob("*/*.yaml"):
        lines = file.read_text().splitlines()
        for path, line, _ in lines_of(file):
            assert f"{path.rpartition('.')[2]}:" in lines[line - 1]
        keys = {key for key in yaml.safe_load(file.read_text()) or () if key != "defaults"}
        assert keys == {path for path, _, _ in lines_of(file) if "." not in path}


def test_the_later_one_counts():
    assert where("frontend.stack", QUICKSTART, "frontend.stack=2") == "on the command line"
    assert where("trainer.max_steps", QUICKSTART, stage="vocoder").startswith("configs/experiment/quickstart.yaml:")
    assert where("trainer.max_steps", QUICKSTART, "trainer.max_steps=3", stage="vocoder") == "on the command line"
    word = "stages.vocoder.set.trainer.max_steps=3"
    assert where("trainer.max_steps", QUICKSTART, word, stage="vocoder") == "on the command line"
    assert where("trainer.max_steps", QUICKSTART).startswith("configs/trainer/cpu.yaml:")
    assert where("discriminator._target_", "task=gan_vocoder").startswith("configs/discriminator/hifi_gan.yaml:")
    # A value in the place of a map.
    assert where("data.tasks.asr", "data.tasks=null") == "on the command line"


def test_a_file_of_ones_own_is_named_as_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "my_configs"
    for name, text in {
        "adaptor/mine.yaml": "# Mine.\n_target_: voxzoo.components.StackAdaptor\n\nstak: 3\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults: [override /adaptor: mine]\n\ntrainer:\n  max_steps: x",
    }.items():
        (own / name).parent.mkdir(parents=True)
        (own / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    words, dirs = ["experiment=mine"], [str(own)]
    with pytest.raises(UserError) as error:
        require_valid(compose(words, config_dirs=dirs), origins(words, config_dirs=dirs))
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    at = "my_configs/experiment/mine.yaml:5; ~trainer.max_steps leaves it out"
    assert f"trainer.max_steps: 'x' is not a whole number ({at})" in lines
    (line,) = [line for line in lines if line.startswith("adaptor.stak:")]
    assert line.endswith("(my_configs/adaptor/mine.yaml:4)")


# What an experiment sets beside its choices


@pytest.mark.parametrize("group", ["frontend", "speech_encoder"])
def test_an_experiments_extras_follow_every_choice_of_the_part(group: str):
    left = set()
    for file in sorted((CONFIG_DIR / group).glob("*.yaml")):
        if file.stem in ("pretrained", "source"):  # settings come from a folder
            continue
        notes: list[str] = []
        words = [QUICKSTART, f"{group}={file.stem}"]
        config = compose(words, stage="first_pass", note=notes.append)
        mine = [str(fault) for fault in check(config) if "no such parameter" in fault.message]
        assert mine == []
        left |= {note.partition(" (configs/experiment/quickstart.yaml:")[0] for note in notes}
    assert (
        left
        == {
            "frontend": {"frontend.stack"},
            "speech_encoder": {"speech_encoder.conv_dropout", "speech_encoder.spec_augment"},
        }[group]
    )


def test_what_is_left_out_is_said_with_its_line_and_the_rest_is_as_composed():
    notes: list[str] = []
    words = [QUICKSTART, "frontend=raw", "speech_encoder=hubert_base"]
    config = compose(words, stage="first_pass", note=notes.append)
    assert check(config) == []
    left = ["frontend.stack", "speech_encoder.conv_dropout", "speech_encoder.spec_augment"]
    assert [note.partition(" (")[0] for note in notes] == left
    assert re.fullmatch(
        r"frontend.stack \(configs/experiment/quickstart.yaml:\d+\) is left out: RawWaveform has no such setting",
        notes[0],
    )
    by_hand = [*words, *(f"~{key}" for key in left)]
    assert compose(by_hand, stage="first_pass") == config
    # A part that has the setting keeps it, and nothing else is looked at.
    assert compose([QUICKSTART, "frontend=fbank"], note=notes.append).frontend.stack == 8
    compose([QUICKSTART, "adaptor=none", "text_seq2seq=tiny"], note=notes.append)
    assert [note.partition(" (")[0] for note in notes[len(left) :]] == ["adaptor.dropout"]


def test_a_setting_of_the_users_own_is_never_left_out():
    words = [QUICKSTART, "frontend=raw", "speech_encoder=hubert_base", "frontend.stack=4"]
    config = compose(words, stage="first_pass")
    with pytest.raises(UserError, match=r"frontend.stack: RawWaveform has no such parameter.*\(on the command line\)"):
        require_valid(config, origins(words, stage="first_pass"))


def test_extras_of_a_task_and_of_a_stage_follow_too(tmp_path: Path):
    notes: list[str] = []
    config = compose(["experiment=seamless_m4t_large_v2", "task=speech_to_text"], note=notes.append)
    assert check(config) == []
    assert [note.partition(" (")[0] for note in notes] == ["task.t2u_input", "task.vocoder_languages"]
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "staged.yaml"
    file.write_text(
        "# @package _global_\n# A stage that sets a parameter of its schedule.\nname: staged\n"
        "stages:\n  one:\n    choose: {schedule: exponential}\n    set: {schedule: {decay: 0.9}}\n"
    )
    asked: dict[str, Any] = {"stage": "one", "config_dirs": [str(tmp_path)]}
    assert compose(["experiment=staged"], **asked).schedule.decay == 0.9
    other = compose(["experiment=staged", "schedule=constant"], note=notes.append, **asked)
    assert "decay" not in other.schedule
    assert notes[-1].startswith(f"schedule.decay ({file}:7) is left out: constant has no such setting")


def test_what_refers_to_a_setting_that_was_left_out_is_named():
    words = [QUICKSTART, "frontend=raw"]
    with pytest.raises(UserError) as error:
        require_valid(compose(words, stage="first_pass"), origins(words, stage="first_pass"))
    (line,) = [line for line in str(error.value).splitlines() if "speech_encoder.spec_augment.stack" in line]
    assert "refers to frontend.stack, which does not exist (configs/experiment/quickstart.yaml:" in line
    assert line.endswith("~speech_encoder.spec_augment.stack leaves it out)")


def test_what_is_advised_to_be_left_out_can_be(tmp_path: Path):
    """Also what only a stage sets, and what is null."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text(
        "# @package _global_\nname: odd\nfrontend: {stak: null}\n"
        "stages:\n  one:\n    set: {adaptor: {strid: 2}, data: {batch_size: many}}\n"
    )
    asked: Any = {"stage": "one", "config_dirs": [str(tmp_path)]}
    words = ["experiment=odd"]
    with pytest.raises(UserError, match="3 faults") as error:
        require_valid(compose(words, **asked), origins(words, **asked))
    advised = re.findall(r"; (~\S+) leaves it out", str(error.value))
    assert sorted(advised) == ["~frontend.stak", "~stages.one.set.adaptor.strid", "~stages.one.set.data.batch_size"]
    assert check(compose([*words, *advised], **asked)) == []
    by_key = compose([*words, "~frontend.stak", "~adaptor.strid", "data.batch_size=3"], **asked)
    assert check(by_key) == []
    with pytest.raises(UserError, match=r"~frontend\.gone: there is no such key to leave out"):
        compose(["~frontend.gone"])


# Which stages `task=` reaches


@pytest.mark.parametrize("asked", [{}, {"stage": "first_pass"}])
def test_a_task_that_no_stage_takes_is_refused(asked: dict[str, str]):
    with pytest.raises(UserError, match=r"task=speech_to_text: each stage has a task of its own \(units: fit_units"):
        compose([QUICKSTART, "task=speech_to_text"], **asked)
    with pytest.raises(UserError, match=r"as in stages\.first_pass\.choose\.task=text_to_text"):
        compose([QUICKSTART, "t2u=none", "task=text_to_text"], **asked)


def test_the_advice_of_that_refusal_works():
    words = [QUICKSTART, "stages.first_pass.choose.task=text_to_text"]
    tasks = {stage: compose(words, stage=stage).task._target_ for stage in compose(words).stages}
    assert tasks["first_pass"] == "voxzoo.tasks.TextToText"
    assert tasks["units"] == "voxzoo.tasks.FitUnits"
    alone = compose([QUICKSTART, "stages=null", "task=text_to_text"])
    assert (alone.task._target_, alone.stages) == ("voxzoo.tasks.TextToText", None)


def test_a_task_reaches_stages_without_one_of_their_own(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "two.yaml").write_text(
        "# @package _global_\nname: two\nstages:\n  units: {choose: {task: fit_units}}\n  main: {after: [units]}\n"
    )
    asked: Any = {"config_dirs": [str(tmp_path)]}
    words = ["experiment=two", "task=text_to_text"]
    assert compose(words, stage="units", **asked).task._target_ == "voxzoo.tasks.FitUnits"
    assert compose(words, stage="main", **asked).task._target_ == "voxzoo.tasks.TextToText"
    assert compose(["experiment=two"], stage="main", **asked).task._target_ == "voxzoo.tasks.SpeechToText"
