"""Composition, the check of a config against signatures, and building."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from omegaconf import OmegaConf
from voxzoo.components import ConformerEncoder, StackAdaptor
from voxzoo.components.errors import UserError
from voxzoo.components.roles import Adaptor
from voxzoo.configs import build, check, compose, require_valid
from voxzoo.configs.compose import CONFIG_DIR, to_yaml
from voxzoo.configs.inputs import missing_inputs
from voxzoo.configs.stages import active_stages
from voxzoo.configs.targets import allow_list, locate, trusted
from voxzoo.datamodules import SpokenPhrases
from voxzoo.tasks import load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.training import settling
from voxzoo.tasks.training.settling import settle_config
from voxzoo.tasks.training.train import train


def messages(*overrides: str) -> list[str]:
    return [str(fault) for fault in check(compose(overrides))]


def test_the_default_config_is_valid():
    assert messages() == []


def test_an_override_swaps_a_part_and_widths_follow():
    config = compose(["adaptor=stack", "speech_encoder.dim=96", "text_seq2seq.dim=72"])
    assert config.adaptor._target_ == "voxzoo.components.StackAdaptor"
    assert config.adaptor.input_dim == 96
    assert config.task.adaptor.output_dim == 72
    assert isinstance(build(config.adaptor), StackAdaptor)


def test_all_faults_are_reported_at_once_with_path_and_nearest_name():
    found = messages(
        "speech_encoder.num_layer=2",
        "adaptor.stride=two",
        "task.ctc_on=encoderr",
        "tranier.max_steps=5",
        "speech_encoder.position=relative_keys",
    )
    assert "speech_encoder.num_layer: ConformerEncoder has no such parameter; did you mean 'num_layers'?" in found
    assert "adaptor.stride: 'two' is not a whole number" in found
    assert "task.ctc_on: 'encoderr' is not one of 'encoder', 'adaptor'; did you mean 'encoder'?" in found
    assert "tranier: unknown key; did you mean 'trainer'?" in found
    assert any(line.startswith("speech_encoder.position: 'relative_keys' is not one of") for line in found)
    assert len(found) == 5


def test_settings_of_the_run_are_checked_too():
    assert messages("checkpoint.every_step=3", "checkpoint.mode=least", "threads=many", "stage_jobs=null") == [
        "threads: 'many' is not a whole number",
        "stage_jobs: None is not a whole number",
        "checkpoint.mode: 'least' is not one of 'min', 'max'",
        "checkpoint.every_step: unknown key; did you mean 'every_steps'?",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trainer.gradient_clip_val=-1", "-1: expected at least 0 (the norm to clip"),
        ("trainer.accumulate_grad_batches=0", "0: expected at least 1"),
        ("trainer.val_check_interval=0", "0: expected at least 1"),
        ("trainer.val_check_interval=0.5", "0.5: expected a whole number of steps"),
        ("trainer.max_steps=0", "0: expected at least 1, or -1 for no limit"),
        ("trainer.max_epochs=-2", "-2: expected at least 1, or -1 for no limit"),
        ("trainer.limit_train_batches=0", "0: expected a whole number from 1 on, or a share"),
        ("trainer.limit_train_batches=1.5", "1.5: expected a whole number from 1 on, or a share"),
        ("trainer.log_every_n_steps=0", "0: expected at least 1"),
        ("trainer.num_nodes=0", "0: expected at least 1"),
        ("trainer.devices=0", "0: expected a number of processes from 1 on, or auto, on a CPU"),
        ("trainer.devices=-1", "-1: expected a number of processes from 1 on, or auto, on a CPU"),
        ("trainer.devices=[0]", "[0]: expected a number of processes from 1 on, or auto, on a CPU"),
        ("trainer=gpu trainer.devices=abc", "'abc': expected a number from 1 on, -1 or auto for all, or a list"),
        ("trainer=gpu trainer.devices=[0,0]", "[0, 0]: expected a number from 1 on"),
        ("trainer.accelerator=cup", "'cup': there is no such accelerator; there are: auto, gpu, cpu, cuda"),
        ("trainer.precision=16-true", "16-true: float16 ends at 65504"),
        ("trainer.gradient_clip_algorithm=nrom", "'nrom': expected norm or value"),
        ("trainer.use_distributed_sampler=true", "true: expected false"),
        ("data.batch_size=0", "0: expected more than 0"),
        ("data.batch_seconds=-1.5", "-1.5: expected more than 0"),
        ("data.num_workers=-1", "-1: expected at least 0"),
        ("data.max_seconds=0.05", "0.05: expected more than min_seconds=0.1"),
        ("checkpoint.every_steps=0", "0: expected at least 1"),
        ("checkpoint.keep_best=-1", "-1: expected at least 0"),
        ("optim.lr=0", "0: expected more than 0"),
        ("optim.lr=inf", "inf: expected a finite number"),
        ("optim.lr=nan", "nan: expected more than 0"),
        ("optim.weight_decay=inf", "inf: expected a finite number"),
        ("trainer.overfit_batches=1", "1: the data module deals other batches in each epoch"),
        ("task.search.beam_siz=3", "SearchOptions has no such parameter; did you mean 'beam_size'?"),
        ("task.search.beam_size=x", "'x' is not a whole number"),
        ("task.search=3", "3 is not a map of settings of SearchOptions"),
        ("threads=0", "0: expected at least 1"),
        ("threads=100000000", "100000000: expected at most 4096"),
        ("data.num_workers=1000000000", "1000000000: expected at most 4096"),
        ("seed=18446744073709551616", "18446744073709551616: expected at most 18446744073709551615"),
        ("seed=-1", "-1: expected at least 0"),
        ("data.max_tokens=0", "0: expected at least 1"),
        ("data.min_seconds=-1", "-1: expected at least 0"),
        ("schedule=constant schedule.warmup_steps=-5", "-5: expected at least 0"),
        ("schedule=inverse_sqrt schedule.warmup_steps=-5", "-5: expected at least 0"),
        ("schedule=linear schedule.warmup_steps=-5", "-5: expected at least 0"),
        ("schedule=exponential schedule.warmup_steps=-5", "-5: expected at least 0"),
        ("schedule=cosine schedule.final=7", "7: expected a share of the full rate, from 0 to 1"),
        ("schedule=exponential schedule.decay=1.1", "1.1: expected a share of the full rate, from 0 to 1"),
        ("schedule=exponential schedule.every_steps=0", "0: expected at least 1"),
    ],
)
def test_values_out_of_bounds_are_named(words: str, expected: str):
    (found,) = messages(*words.split())
    assert found.startswith(f"{words.split()[-1].partition('=')[0]}: {expected}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("debug=1", "debug: unknown key"),
        (
            "experiment.x=1",
            "experiment: unknown key; does the file of the experiment begin with `# @package _global_`?",
        ),
        ("name=", "name: is empty"),
        ("allow=3", "allow: 3 is not a list"),
        ("callbacks.mine=3", "callbacks.mine: expected a map with _target_"),
        ("model_type=3", "model_type: 3 is not text"),
    ],
)
def test_keys_of_the_root_that_mean_nothing_are_named(words: str, expected: str):
    (found,) = messages(*words.split())
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stages=3"], "stages: 3 is not a map of names to stages"),
        (["stages.units=3"], "stages.units: 3 is not a map of after, requires, unless, choose, set"),
        (["stages.units.chose.task=x"], "stages.units.chose: a stage has .*; did you mean 'choose'?"),
        (["stages.vocodr.set.optim.lr=1"], "stages.vocodr.*: there is no stage 'vocodr'; did you mean 'vocoder'?"),
        (
            ["stages.vocodr.choose.task=gan_vocoder"],
            "did you mean 'vocoder'?.* A new one is made by \\+stages.voc",
        ),
        (["stages=null", "stages.vocoder.set.optim.lr=1"], "there is no stage 'vocoder'; this config has none."),
        (["stages.vocoder.after=[unit]"], "stages.vocoder.after: there is no stage 'unit'; did you mean 'units'?"),
    ],
)
def test_what_no_stage_has_is_refused(words: list[str], expected: str):
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        compose(["experiment=quickstart", *words])


def test_a_new_stage_is_asked_for_or_written(tmp_path: Path):
    config = compose(["experiment=quickstart", "+stages.more.choose.task=fit_units", "stages.more.after=[vocoder]"])
    assert list(config.stages)[-1] == "more"
    assert config.stages.more.after == ["vocoder"]
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [quickstart]\nname: x\nstages: {mine: {set: {optim: {lr: 1}}}}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(text)
    own = compose(["experiment=own", "stages.mine.set.optim.lr=2"], config_dirs=[str(tmp_path)])
    assert own.stages.mine.set.optim.lr == 2


def test_files_that_are_not_there_are_faults_like_others(tiny: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "runs" / "whisper").mkdir(parents=True)
    words = [*tiny, "adaptor.dmi=3", "data=manifest", "data.train=trian.jsonl", "data.valid=train.jsonl"]
    words += [
        "data.test={dev: gone.jsonl}",
        "data.units=u.jsonl",
        "init.adaptor=runs/wisper",
        "init.text_seq2seq=whisper",
    ]
    with pytest.raises(UserError) as error:
        train(words)
    lines = str(error.value).splitlines()
    assert lines[0] == "5 faults in the config:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        "adaptor.dmi", "data.train", "data.test.dev", "data.units", "init.adaptor"
    ]  # fmt: skip
    assert f"{tmp_path}/trian.jsonl: no such manifest; did you mean {tmp_path}/train.jsonl?" in lines[2]
    assert "runs/wisper: no such run folder or checkpoint; did you mean runs/whisper?" in lines[5]
    config = compose([word for word in words if "dmi" not in word])
    assert [key for key, _ in missing_inputs(config)] == ["data.train", "data.test.dev", "data.units", "init.adaptor"]
    (tmp_path / "runs" / config.name / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / config.name / "checkpoints" / "last.ckpt").touch()  # it has weights
    assert [key for key, _ in missing_inputs(config)] == ["data.train", "data.test.dev", "data.units"]
    (tmp_path / "runs" / config.name / "done.json").touch()
    assert list(missing_inputs(config)) == []
    for stage in ("vocoder", "second_pass"):  # what an earlier stage makes
        assert list(missing_inputs(compose(["experiment=quickstart"], stage=stage))) == []


@pytest.mark.parametrize(
    ("given", "near"),
    [("runs/wisper", "runs/whisper"), ("run/whisper", "runs/whisper"), ("whispr", None), ("nllb-60M", "nllb-600M"),
     ("runs/quite_another", None), ("nllb-600/", "nllb-600M")],
)  # fmt: skip
def test_a_misspelt_folder_is_no_name_of_the_hub(given: str, near: str | None, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "runs" / "whisper").mkdir(parents=True)
    (tmp_path / "nllb-600M").mkdir()
    with pytest.raises(UserError) as error:
        compose(["experiment=finetune", f"from={given}"])
    hint = f"; did you mean {near}?" if near else ""
    assert str(error.value) == f"from={given}: neither a run nor a published model; {given}: no such folder{hint}"
    with pytest.raises(UserError, match="to fetch it as a hub name install huggingface_hub"):
        compose(["experiment=finetune", "from=facebook/nllb-600M"])


def test_the_role_that_the_folder_is_given_for_is_named(tmp_path: Path):
    """A front end takes its folder from the encoder: the encoder's is missing."""
    with pytest.raises(
        UserError, match=r"^speech_encoder.pretrained: give the folder.*frontend=pretrained takes it from"
    ):
        compose(["frontend=pretrained", "speech_encoder=pretrained"])
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match=f"^speech_encoder.pretrained={gone}: no such folder"):
        compose(["frontend=pretrained", "speech_encoder=pretrained", f"speech_encoder.pretrained={gone}"])
    with pytest.raises(UserError, match=f"^frontend.pretrained={gone}: no such folder"):
        compose(["frontend=pretrained", f"frontend.pretrained={gone}"])
    with pytest.raises(UserError, match=r"^t2u.pretrained: give the folder"):
        compose(["t2u=pretrained", "vocoder=pretrained"])


@pytest.mark.parametrize("words", ["seed=1,2", "adaptor=none,stack", "optim.lr=range(1,3)", "trainer=choice(cpu,gpu)"])
def test_several_values_are_refused_without_advice_for_another_program(words: str):
    with pytest.raises(UserError, match="several values are several runs") as error:
        compose([words])
    assert "multirun" not in str(error.value)


def test_a_choice_that_the_root_makes_may_have_a_plus():
    """As users of other programs write it."""
    assert compose(["+adaptor=none", "+experiment=quickstart"]) == compose(["adaptor=none", "experiment=quickstart"])


class Widthless(Adaptor):
    """Says nothing about its widths, which the task compares."""

    def forward(self, states, text=None):
        return states

    def output_lengths(self, lengths):
        return lengths


def test_a_part_without_what_its_role_states_is_named():
    with pytest.raises(
        UserError, match=r"Widthless: has no input_dim \(int\), which each Adaptor states: set self.input"
    ):
        build({"_target_": f"{__name__}.Widthless"}, allowed=(f"{__name__}.",))


def test_bounds_of_a_constructor_and_of_the_table_come_at_once():
    found = messages(
        "trainer.max_steps=0",
        "data.batch_size=0",
        "data.batch_seconds=0",
        "checkpoint.every_steps=0",
        "adaptor.strid=2",
    )
    keys = ["adaptor.strid", "trainer.max_steps", "data.batch_seconds", "data.batch_size", "checkpoint.every_steps"]
    assert [line.partition(":")[0] for line in found] == keys
    (fault,) = messages("optim.betas=[0.9,2]")
    assert fault == "optim: Invalid beta parameter at index 1: 2"
    (fault,) = messages("data.batch_size=null", "data.batch_seconds=null")
    assert fault == "data: needs a budget: set batch_seconds, batch_tokens or batch_size"


@pytest.mark.parametrize(
    "words",
    [
        "trainer.gradient_clip_val=0",
        "trainer.gradient_clip_val=null",
        "trainer.max_steps=-1 trainer.max_epochs=null",
        "trainer.limit_train_batches=0.5 trainer.limit_val_batches=0",
        "trainer.val_check_interval=1.0 trainer.check_val_every_n_epoch=1",
        "trainer.val_check_interval='00:01:00:00'",
        "trainer=ddp trainer.devices=-1",
        "trainer=ddp trainer.devices='0,1'",
        "trainer.devices='${oc.decode:${oc.env:VOXZOO_NONE,2}}'",
        "trainer.num_nodes='${oc.decode:${oc.env:VOXZOO_NONE,1}}'",
        "trainer.precision=null trainer.accelerator=auto",
        "data=manifest data.batch_seconds=null",
        "checkpoint.keep_best=0",
    ],
)
def test_values_at_their_bounds_are_valid(words: str):
    assert messages(*words.split()) == []


def test_a_map_stands_for_the_value_that_its_place_is_typed_as(tiny: list[str], tmp_path: Path):
    from voxzoo.components.search import SearchOptions
    from voxzoo.tasks.planning.shapes import FakeTokenizer
    from voxzoo.tasks.runs.assembly import assemble

    config = compose([*tiny, "task.search.beam_size=3", "task.search.unk_penalty=inf"])
    assert check(config) == []
    task = assemble(config, allow_list(config), weights="fake", tokenizer=FakeTokenizer(400, ["eng", "spa"]))
    assert task.search == SearchOptions(beam_size=3, unk_penalty=float("inf"))
    (fault,) = messages("data=manifest", "data.corpus.num_train=3")
    assert fault == "data.corpus: a map of settings is no SpokenPhrases: say its class, _target_"


def test_what_is_compiled_computed_again_or_frozen_is_there():
    found = messages(
        "compile=nonsense", "activation_checkpointing={speech_encodr: true, adaptor: false}", "freeze.vocodr=true"
    )
    assert [line.partition(":")[0] for line in found] == [
        "compile", "activation_checkpointing.speech_encodr", "freeze.vocodr"
    ]  # fmt: skip
    assert "TESTING_ONLY" not in found[0]
    assert "inductor" in found[0]
    assert "there are: speech_encoder, adaptor, text_seq2seq" in found[1]
    (found,) = messages("adaptor=none", "activation_checkpointing={adaptor: true}")
    assert found == "activation_checkpointing.adaptor: NoAdaptor has no stack of layers; leave it out"
    (found,) = messages("freeze.vocoder=true")
    assert found.startswith("freeze.vocoder: SpeechToText has no such part")
    assert messages("freeze={adaptor: 3}", "init=5") == [
        "freeze: 3 is not true or false", "init: 5 is not text or 5 is not a map of names to values"
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"freeze=true: there is no such choice\. Choices: decoder, encoder, first_pass"
    ):
        compose(["freeze=true"])
    for valid in ("compile=aot_eager", "compile=true", "activation_checkpointing={speech_encoder: true}"):
        assert messages(valid, "activation_checkpointing.t2u=false", "freeze.vocoder=false") == []


def test_nothing_is_trained_or_written_before_faults_are_named(tiny: list[str], tmp_path: Path):
    with pytest.raises(UserError, match="2 faults"):
        train([*tiny, f"root={tmp_path}", "trainer.max_steps=0", "optim.lr=-1"])
    assert not list(tmp_path.iterdir())


def test_a_part_in_the_wrong_slot_is_named():
    assert messages("adaptor._target_=voxzoo.components.ConformerEncoder") == [
        "adaptor: ConformerEncoder is not a Adaptor: the part is in the wrong slot; it fills the role SpeechEncoder: "
        "its key is speech_encoder"
    ]
    assert messages("task.adaptor=conformer") == [
        "task.adaptor: 'conformer' is not a Adaptor; choose one by adaptor=conformer"
    ]
    assert messages("task.adaptor=conf") == ["task.adaptor: 'conf' is not a Adaptor; choose one by adaptor=CHOICE"]


def test_a_needed_part_that_is_none_is_named():
    found = messages("task=unit_vocoder")
    assert "vocoder: UnitVocoderTask needs a vocoder, but it is none" in found or any("vocoder" in m for m in found)
    assert found


def test_a_class_path_that_does_not_exist_names_the_nearest():
    (found,) = messages("adaptor._target_=voxzoo.components.StackAdapter")
    assert "did you mean 'StackAdaptor'?" in found


def test_class_paths_of_before_are_found(tmp_path: Path):
    assert locate("voxzoo.tasks.schedules.cosine") is locate("voxzoo.tasks.training.schedules.cosine")
    assert locate("voxzoo.tasks.strategies.FSDP2") is locate("voxzoo.tasks.distributed.strategies.FSDP2")
    text = to_yaml(compose(["schedule=cosine"]))
    settle_config(tmp_path, text.replace("voxzoo.tasks.training.schedules", "voxzoo.tasks.schedules"))
    settle_config(tmp_path, text)  # the same run
    with pytest.raises(UserError, match="holds a run of another config"):
        settle_config(tmp_path, text.replace("schedules.cosine", "schedules.linear"))


def test_stages_may_be_executed_otherwise_in_a_run(tmp_path: Path):
    words, stage = ["experiment=quickstart"], "stages.second_pass.set."
    settle_config(tmp_path, to_yaml(compose(words)))
    free = [f"{stage}trainer.devices=2", f"{stage}trainer.accumulate_grad_batches=1", f"{stage}data.num_workers=0"]
    settle_config(tmp_path, to_yaml(compose([*words, *free])))
    with pytest.raises(UserError, match="another config"):
        settle_config(tmp_path, to_yaml(compose([*words, f"{stage}data.batch_size=16"])))


def test_what_only_saves_and_shows_may_change_in_a_run(tmp_path: Path):
    """All that is free is a setting somewhere: none is misspelled."""
    words = ["trainer=ddp", "adaptor=none"]
    settle_config(tmp_path, to_yaml(compose(words)))
    free = [
        "trainer.log_every_n_steps=3", "checkpoint.every_steps=9", "checkpoint.keep_best=4", "max_skipped_steps=1",
        "logger=none", "cache_dir=elsewhere", "threads=2", "trainer.num_sanity_val_steps=2", "data.num_workers=1",
        "trainer.enable_progress_bar=false", "trainer=cpu", "trainer.precision=bf16-mixed",
    ]  # fmt: skip
    settle_config(tmp_path, to_yaml(compose([*words, *free])))
    for word in ("checkpoint.monitor=valid/text", "trainer.val_check_interval=7", "seed=2", "data.batch_size=3"):
        with pytest.raises(UserError, match="another config"):
            settle_config(tmp_path, to_yaml(compose([*words, word])))
    known = {name for cls in (Trainer, SpokenPhrases) for name in inspect.signature(cls).parameters}
    for key in settling._FREE:
        head, _, tail = key.rpartition(".")
        owner = OmegaConf.select(compose(), head) if head else compose()
        assert tail in owner or (head and tail in known)


def test_code_outside_the_allow_list_is_refused_and_can_be_allowed():
    (found,) = messages("adaptor._target_=os.system")
    assert "outside voxzoo" in found
    assert "VOXZOO_ALLOW=os in the environment, or by allow=[os]" in found
    with pytest.raises(PermissionError):
        locate("subprocess.run")
    with pytest.raises(UserError, match="outside voxzoo"):
        build({"_target_": "os.getcwd"})
    assert not any("outside voxzoo" in m for m in messages("adaptor._target_=os.system", "allow=[os]"))


@pytest.mark.parametrize(
    "path",
    [
        "torch.hub.load",
        "torch.load",
        "torch.utils.collect_env.run",
        "torch.nn.utils.clip_grad_norm_",  # a function, even where classes are welcome
        "torch.optim.lr_scheduler.partial",  # what a module imports is not its own
        "lightning.pytorch.callbacks.model_checkpoint.Path",
        "lightning.pytorch.cli.LightningCLI",
        "voxzoo.tasks.training.train._Stage",
        "voxzoo.tasks.processes.child.Child",
        "voxzoo.tasks.training.stages.Child",  # which it imports
        "voxzoo.tasks.ablation.cluster.Call",
        "voxzoo.tasks.train",
        "voxzoo.configs.targets.locate",
        "voxzoo.tasks.checkpoints.files.Path",
        "voxzoo.datamodules.spoken_phrases.__main__.main",
    ],
)
def test_no_way_around_the_allow_list(path: str):
    with pytest.raises(PermissionError, match="if you trust it"):
        locate(path)


def test_nothing_is_reached_through_a_class_or_an_imported_module():
    for path in ("lightning.LightningModule.load_from_checkpoint", "voxzoo.tasks.training.train.subprocess.Popen"):
        with pytest.raises(ImportError, match="cannot import"):
            locate(path)


def test_a_trusted_package_may_name_functions(monkeypatch: pytest.MonkeyPatch):
    assert build({"_target_": "math.sqrt", "_partial_": True}, allowed=allow_list({"allow": ["math"]})).func(4) == 2
    monkeypatch.setenv("VOXZOO_ALLOW", "fractions, math")
    assert locate("math.sqrt", trusted())(9) == 3


def test_advice_for_a_run_with_classes_of_ones_own_works_where_it_is_given(tmp_path: Path, monkeypatch, capsys):
    config = {"task": {"_target_": "zoo_of_mine.Mine"}}
    torch.save({"voxzoo": {"config": config, "assets": {}}, "state_dict": {}}, tmp_path / "x.ckpt")
    (tmp_path / "zoo_of_mine.py").write_text("class Mine:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["evaluate", "x.ckpt"]) == 1
    said = capsys.readouterr().err
    assert "if you trust it, allow it by VOXZOO_ALLOW=zoo_of_mine in the environment" in said
    assert "allow=[" not in said  # which evaluate does not take
    monkeypatch.setenv("VOXZOO_ALLOW", "zoo_of_mine")
    assert main(["evaluate", "x.ckpt"]) == 1
    assert "zoo_of_mine.Mine, which is not a Task" in capsys.readouterr().err


def test_a_checkpoint_does_not_say_what_is_trusted(tmp_path: Path):
    config = {"allow": ["os"], "task": {"_target_": "os.mkdir", "path": str(tmp_path / "made")}}
    torch.save({"voxzoo": {"config": config, "assets": {}}, "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="outside voxzoo"):
        load_run(tmp_path / "x.ckpt")
    assert not (tmp_path / "made").exists()


def test_a_missing_value_is_reported():
    assert "speech_encoder.dim: a value is needed (???)" in messages("speech_encoder.dim=???")


def test_an_unknown_choice_names_the_nearest_and_all():
    with pytest.raises(UserError, match=r"adaptor=stak: there is no such choice; did you mean 'stack'\?.*conformer"):
        compose(["adaptor=stak"])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("adaptor=xls_r_1b", r"xls_r_1b is a choice of speech_encoder: speech_encoder=xls_r_1b\. Choices: conformer"),
        ("adaptor=istf", r"there is no such choice\. Choices"),
        ("optim=hifi_gan5", "did you mean 'hifi_gan'"),
        ("adaptor=hifi_gan", "hifi_gan is a choice of discriminator and optim: discriminator=hifi_gan or optim=hifi"),
        ("adaptor=StackAdaptor", r"no such choice; StackAdaptor is a class of adaptor: adaptor=stack"),
        ("optim=tiny", r"there is no such choice\. Choices"),  # of so many groups that it says nothing
        ("optim=../x", r"there is no such choice\. Choices"),
    ],
)
def test_a_choice_of_another_role_names_its_key(word: str, told: str):
    with pytest.raises(UserError, match=told):
        compose([word])


def test_choices_of_own_groups_are_known_too(tmp_path: Path):
    (tmp_path / "adaptor").mkdir()
    (tmp_path / "adaptor" / "own.yaml").write_text("_target_: voxzoo.components.NoAdaptor\n")
    with pytest.raises(UserError, match="own is a choice of adaptor: adaptor=own"):
        compose(["speech_encoder=own"], config_dirs=[str(tmp_path)])


def test_all_wrong_choices_are_said_at_once():
    with pytest.raises(UserError) as caught:
        compose(["adaptor=stak", "speech_encoder=tiny", "vocoder=hifigann", "trainer.max_steps=[1,"])
    told = str(caught.value).splitlines()
    assert told[0] == "3 faults in the overrides:"
    assert [line.split(":")[0].strip() for line in told[1:]] == [
        "adaptor=stak", "vocoder=hifigann", "override 'trainer.max_steps=[1,' does not parse (key=value is expected)"
    ]  # fmt: skip


def test_an_override_that_does_not_parse_is_one_line():
    with pytest.raises(UserError, match="does not parse"):
        compose(["trainer.max_steps=[1,"])


def test_require_valid_lists_all():
    with pytest.raises(UserError, match=r"2 faults in the config:\n.*\n.*"):
        require_valid(compose(["adaptor.strid=2", "seeed=1"]))


def test_absent_parts_build_to_none_and_partials_to_partials():
    assert build({"_target_": None, "num_units": 3}) is None
    optimizer = build(compose().optim)
    assert optimizer.keywords["lr"] == pytest.approx(1e-3)


def test_building_reports_the_class_of_a_refused_value():
    with pytest.raises(UserError, match=r"voxzoo\.components\.ConformerEncoder"):
        build(compose(["speech_encoder.num_heads=5"]).speech_encoder)


def test_your_own_folder_of_groups(tmp_path: Path):
    (tmp_path / "adaptor").mkdir()
    (tmp_path / "adaptor" / "mine.yaml").write_text(
        "_target_: voxzoo.components.NoAdaptor\ninput_dim: 3\noutput_dim: 4\n"
    )
    config = compose(["adaptor=mine"], config_dirs=[str(tmp_path)])
    assert config.adaptor.output_dim == 4
    with pytest.raises(UserError, match="no such folder"):
        compose([], config_dirs=[str(tmp_path / "absent")])


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    config = compose(["data=manifest", "data.train=a/train.jsonl", "data.valid=valid.jsonl"])
    assert config.data.train == str(tmp_path / "a" / "train.jsonl")
    assert config.run_dir == str(tmp_path / "runs" / "default")


@pytest.mark.parametrize(
    "path", sorted(CONFIG_DIR.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_yaml_composes_and_is_valid(path: Path, tmp_path: Path):
    override = f"{path.parent.name}={path.stem}"
    if path.stem == "pretrained":  # with a folder: tests/test_published_runs.py
        with pytest.raises(UserError, match=f"{path.parent.name}.pretrained: give the folder"):
            compose([override])
        return
    # With a run or a folder: tests/tasks/runs/test_finetune.py, tests/configs/test_low_resource.py.
    if path.stem in ("source", "finetune", "low_resource"):
        with pytest.raises(UserError, match=r"from: give the run or the published folder to begin with"):
            compose([override])
        return
    manifest = override in ("data=manifest", "experiment=whisper_mixed", "experiment=mslm", "experiment=mslm_cascade")
    extra = ["data.train=t.jsonl", "data.valid=v.jsonl"] if manifest else []
    if override == "experiment=whisper_mixed":  # settings of a published encoder come from its folder
        sizes = {
            f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads", "ffn_dim")
        }
        published = {"model_type": "whisper", "d_model": 8, "vocab_size": 99, "num_mel_bins": 80, **sizes}
        (tmp_path / "config.json").write_text(json.dumps(published))
        extra.append(f"speech_encoder.pretrained={tmp_path}")
    config = compose([override, *extra])
    about = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    assert about.startswith("# "), "every YAML opens with a line that says what it is"
    needs = {
        "task=unit_vocoder": ["unit_extractor=tiny", "vocoder=tiny"],
        "task=gan_vocoder": ["unit_extractor=tiny", "vocoder=tiny_istft"],
        "task=fit_units": ["unit_extractor=tiny"],
        "task=speech_to_speech_unity": ["unit_extractor=tiny", "vocoder=tiny", "t2u=tiny"],
        "task=text_to_text": ["text_seq2seq=tiny"],
        "task=speech_and_text_to_text": ["text_seq2seq=tiny"],
        "task=cascade": ["task.runs=[asr,mt]"],
        "task=consensus": ["task.runs=[asr,st]"],
    }.get(override, [])
    config = compose([override, *extra, *needs])
    assert [str(fault) for fault in check(config)] == []
    for name in active_stages(config):
        assert [str(fault) for fault in check(compose([override, *extra, *needs], stage=name))] == []


def test_stage_settings_are_laid_over_and_the_command_line_wins():
    config = compose(["experiment=quickstart", "stages.first_pass.set.trainer.max_steps=7"], stage="first_pass")
    assert config.trainer.max_steps == 7
    assert config.name == "quickstart/stages/first_pass"
    assert config.task._target_ == "voxzoo.tasks.SpeechToText"
    plain = compose(["experiment=quickstart", "trainer.max_steps=4"], stage="vocoder")
    assert plain.trainer.max_steps == 4
    second = compose(["experiment=quickstart", "root=somewhere"], stage="second_pass")
    assert second.data.units.endswith("somewhere/quickstart/stages/units/units.jsonl")


def test_shipped_configs_hold_no_machine_path():
    for path in CONFIG_DIR.rglob("*.yaml"):
        assert not any(str(parent) in path.read_text() for parent in list(CONFIG_DIR.parents)[:-1])
        assert "/home" not in OmegaConf.to_yaml(OmegaConf.load(path), resolve=False)


def test_the_encoder_is_what_the_config_says():
    encoder = build(compose(["speech_encoder=tiny"]).speech_encoder)
    assert isinstance(encoder, ConformerEncoder)


def test_compat_sets_every_switch_and_the_command_line_wins():
    words = ["adaptor=conformer", "text_seq2seq=tiny"]
    new, ported, original = (compose([*words, f"compat={name}"]) for name in ("null", "transformers", "fairseq2"))
    assert [c.text_seq2seq.position_start for c in (new, ported, original)] == [2, 1, 2]
    assert [c.adaptor.leak_padding for c in (new, ported, original)] == [False, True, True]
    assert ported.task.search.method == "greedy"
    assert original.task.search.score == "with_prefix"
    for config in (new, ported, original):
        assert [str(fault) for fault in check(config)] == []
    said = compose([*words, "compat=transformers", "adaptor.leak_padding=false", "task.search.max_length=7"])
    assert said.adaptor.leak_padding is False
    assert said.task.search.max_length == 7
    assert said.text_seq2seq.position_start == 1
    with pytest.raises(UserError, match="compat=espnet: expected transformers or fairseq2"):
        compose(["compat=espnet"])


def test_weight_averages_are_refused_where_weights_are_cut():
    ema = ["callbacks={ema:{_target_:lightning.pytorch.callbacks.EMAWeightAveraging}}"]
    for trainer in ("fsdp2", "fsdp"):
        (fault,) = check(compose([f"trainer={trainer}", *ema]))
        assert fault.path == "callbacks.ema"
        assert "EMAWeightAveraging keeps the whole model on each process" in fault.message
    assert check(compose(["trainer=ddp", *ema])) == []


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_2", "{_target_: lightning.pytorch.strategies.FSDPStrategy}"])
def test_strategies_that_are_not_ours_are_refused(name: str):
    (fault,) = check(compose(["trainer=gpu", f"+trainer.strategy={name}"]))
    assert fault.path == "trainer.strategy"
    assert "take trainer=fsdp2" in fault.message


@pytest.mark.parametrize("stage", [None, "one"])
def test_a_file_cannot_widen_what_is_trusted(tmp_path: Path, stage: str | None):
    (tmp_path / "experiment").mkdir()
    staged = "stages: {one: {set: {allow: [os]}}}\n" if stage else "allow: [os]\n"
    text = f"# @package _global_\n{staged}adaptor: {{_target_: os.system, command: 'touch {tmp_path}/ran'}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"allow: \['os'\] stands in a YAML file"):
        compose(["experiment=mine"], config_dirs=[str(tmp_path)], stage=stage)
    config = compose(["experiment=mine", "allow=[json]"], config_dirs=[str(tmp_path)], stage=stage)
    assert list(config.allow) == ["json"]
    assert not (tmp_path / "ran").exists()
