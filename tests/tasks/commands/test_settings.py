"""What help and `parts NAME` say of settings: each has its line, and nothing that they list is missing."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import yaml
from voxzoo import components
from voxzoo.configs.compose import CONFIG_DIR, compose
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.commands.settings import groups, overview, settings_of
from voxzoo.tasks.planning.describe import describe_part

FILES = [
    "config.yaml",
    *(f"data/{name}.yaml" for name in ("manifest", "spoken_phrases", "spoken_phrases_one_voice")),
    "optim/adamw.yaml",
]
FILES += [f"trainer/{path.name}" for path in sorted((CONFIG_DIR / "trainer").glob("*.yaml"))]


@pytest.mark.parametrize("file", FILES)
def test_each_setting_has_its_line(file: str):
    said = {key: about for key, _, about in settings_of(CONFIG_DIR / file)}
    content = yaml.safe_load((CONFIG_DIR / file).read_text())
    assert set(said) >= {key for key in content if key != "defaults" and not key.startswith("_")}
    assert [key for key, about in said.items() if not about] == []


def test_help_of_train_lists_groups_choices_and_settings(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capfd.readouterr().out
    assert overview() in said
    for group, choices in groups().items():
        assert choices
        assert choices == sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    assert set(groups()) >= {*components.parts(), "data", "optim", "schedule", "trainer", "task", "experiment"}
    assert all(f"  {key}=" in said for key in compose() if key not in groups())


def test_every_part_says_what_each_argument_is():
    """Also what its YAML sets, as it is written there."""
    for role, names in components.parts().items():
        for name in names:
            part = describe_part(name)
            taken = [key for key in inspect.signature(getattr(components, name)).parameters if key != "self"]
            assert [each["name"] for each in part["arguments"]] == taken
            assert [each["name"] for each in part["arguments"] if not each["about"]] == [], (role, name)


def test_a_choice_shows_its_values(capfd: pytest.CaptureFixture[str]):
    assert main(["parts", "adaptor=conformer", "ConformerAdaptor", "--json"]) == 0
    choice, cls = json.loads(capfd.readouterr().out)["parts"].values()
    by_name = {each["name"]: each for each in choice["arguments"]}
    assert by_name["input_dim"]["value"] == "${speech_encoder.dim}"
    assert (by_name["stride"]["value"], by_name["stride"]["default"], by_name["stride"]["type"]) == ("2", "8", "int")
    assert [each["value"] for each in cls["arguments"]] == [None] * len(by_name)
    for word in ("adaptor=confromer", "ConformerAdaptr", "adaptr", "adptor=none"):
        assert main(["parts", word]) == 1
        assert "did you mean" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("conformer", ["adaptor=conformer: voxzoo.components.ConformerAdaptor", "final_norm"]),
        ("hifi_gan", ["discriminator=hifi_gan: ", "optim=hifi_gan: torch.optim.AdamW"]),
        (
            "lora=attention",
            ["speech_encoder.targets.qv", "*attention.[qv]", "LoRA on query and value", "layers.lora.L"],
        ),
        ("freeze=encoder", ["speech_encoder", "true", "The speech encoder stands still."]),
        ("vocoder=none", ["No vocoder"]),
        ("experiment=finetune", ["optim.lr", "1e-05", "trainer.max_steps"]),
        ("trainer=cpu", ["log_every_n_steps"]),
        ("lora", ["lora=attention", 'targets.qv="*attention.[qv]"']),
        ("task", ["task=gan_vocoder", "GanVocoder"]),
    ],
)
def test_a_choice_is_found_by_name_and_without_a_class(word: str, told: list[str], capfd: pytest.CaptureFixture[str]):
    assert main(["parts", word]) == 0
    out = capfd.readouterr().out
    assert [each for each in told if each not in out] == []
    assert "@package" not in out


def test_a_choice_of_many_groups_is_not_guessed(capfd: pytest.CaptureFixture[str]):
    assert main(["parts", "tiny"]) == 1
    assert "groups have such a choice; say of which: adaptor=tiny, " in capfd.readouterr().err


def test_choices_of_ones_own_are_listed_and_explained(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "adaptor").mkdir()
    (tmp_path / "adaptor" / "mine.yaml").write_text(
        "# My own one.\n_target_: voxzoo.components.StackAdaptor\ninput_dim: 4\noutput_dim: 4\nstack: 3\n"
    )
    assert main(["parts", "adaptor", "--config-dir", str(tmp_path), "--json"]) == 0
    found = {each["choice"]: each for each in json.loads(capfd.readouterr().out)["roles"]["adaptor"]}
    assert found["mine"]["about"] == "My own one."
    assert "conformer" in found
    assert main(["parts", "adaptor=mine", "--config-dir", str(tmp_path)]) == 0
    assert "StackAdaptor" in capfd.readouterr().out
