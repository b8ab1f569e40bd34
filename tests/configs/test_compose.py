"""What is composed once stays composed, and nothing that a caller does with it is seen by another."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from voxzoo import components
from voxzoo.components.errors import UserError
from voxzoo.components.roles import ROLES
from voxzoo.configs import compose as composed
from voxzoo.configs.compose import CONFIG_DIR, _composed, compose, compose_choices


@pytest.fixture
def composes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of each call of Hydra."""
    import sys

    import voxzoo.configs.compose  # noqa: F401 - the package has a function of that name

    module = sys.modules["voxzoo.configs.compose"]
    calls: list[list[str]] = []
    real = module.hydra_compose

    def counted(name: str, overrides: list[str]):
        calls.append(overrides)
        return real(name, overrides=overrides)

    monkeypatch.setattr(module, "hydra_compose", counted)
    _composed.cache_clear()
    return calls


def test_the_same_config_is_composed_once(composes: list[list[str]]):
    assert composed is compose
    first = compose(["experiment=quickstart"], stage="vocoder")
    assert len(composes) == 2  # all of it, and with what the stage chooses
    second = compose(["experiment=quickstart"], stage="vocoder")
    compose(["experiment=quickstart"])
    assert len(composes) == 2
    assert first == second
    first.optim.lr = 7.0
    del first.data
    OmegaConf.set_struct(second, True)
    third = compose(["experiment=quickstart"], stage="vocoder")
    assert third.optim.lr == second.optim.lr == 2e-3
    assert third.data == second.data
    assert not OmegaConf.is_struct(third)


def test_settings_of_a_stage_are_no_config_of_their_own_for_hydra(composes: list[list[str]]):
    plain = compose(["experiment=quickstart"])
    words = ["experiment=quickstart", "stages.vocoder.set.optim.lr=1e-3", "stages.units=null", "lr=1e-4"]
    found = compose(words)
    assert len(composes) == 2  # the other rate, with and without the words on stages
    assert found.stages.vocoder.set.optim.lr == 1e-3
    assert found.stages.units is None
    assert list(found.stages) == list(plain.stages)
    assert compose(words, stage="vocoder").optim.lr == 1e-4  # the command line wins over a stage


@pytest.mark.parametrize(
    "words",
    [
        ["++stages.vocoder.set.optim.lr=1e-3", "++stages.vocoder.set={seed: 7, optim: {lr: 2}}"],
        ["++stages.vocoder.after=[units]", "++lr=1e-4", "++stages.units=null"],
        ["++stages.new.choose.task=fit_units", "++stages.new.set.name='${name}-${seed}'"],
        ["++stages.vocoder=null", "++stages.vocoder.choose.task=fit_units"],
        ["++stages=null", "++stages.vocoder.choose.task=fit_units"],
    ],
)
def test_settings_of_stages_are_laid_on_as_hydra_does_it(words: list[str]):
    import sys

    module = sys.modules["voxzoo.configs.compose"]
    words = ["experiment=quickstart", *words]
    with module.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        expected = module.hydra_compose("config", overrides=words)
    found = module._hydra(words, (CONFIG_DIR,))
    assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
    assert OmegaConf.is_struct(found)


def test_changed_files_are_composed_anew(composes: list[list[str]], tmp_path: Path):
    own = tmp_path / "adaptor" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("_target_: voxzoo.components.StackAdaptor\nfactor: 2\n")
    words, folders = ["adaptor=mine"], [str(tmp_path)]
    assert compose(words, config_dirs=folders).adaptor.factor == 2
    own.write_text("_target_: voxzoo.components.StackAdaptor\nfactor: 16\n")
    assert compose(words, config_dirs=folders).adaptor.factor == 16
    own.with_name("other.yaml").write_text("_target_: voxzoo.components.NoAdaptor\n")
    assert compose(["adaptor=other"], config_dirs=folders).adaptor._target_.endswith("NoAdaptor")
    assert len(composes) == 3


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("one", "two"):
        monkeypatch.setenv("VOXZOO_CACHE", str(tmp_path / name))
        assert compose().cache_dir == str(tmp_path / name)


@pytest.mark.parametrize(
    "words",
    [
        ["vocoder=seamless_m4t_v2", "unit_extractor.num_units=10000"],
        ["speech_encoder=whisper_base", "frontend=whisper"],
        ["text_seq2seq=nllb_600m", "tokenizer=nllb"],
        ["t2u=tiny_unity2"],
        ["unit_extractor=none"],
    ],
)
def test_choices_give_what_composing_gives(words: list[str]):
    assert OmegaConf.to_container(compose_choices(words)) == OmegaConf.to_container(compose(words))


def test_choices_with_defaults_of_their_own_are_composed():
    with pytest.raises(UserError, match="experiment=quickstart: this choice has defaults of its own"):
        compose_choices(["experiment=quickstart"])
    with pytest.raises(UserError, match="did you mean 'stack'"):
        compose_choices(["adaptor=stak"])


def test_nothing_overrides_a_part_behind_its_choice():
    """Else a choice put in the place of another would not be what composing gives."""
    root = OmegaConf.load(CONFIG_DIR / "config.yaml")
    assert not set(components.parts()) & {str(key) for key in root}
    assert [*components.parts(), "data"] == list(ROLES)
