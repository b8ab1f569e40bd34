"""What may stand in a config follows from the place: looked at from the outside in, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from voxzoo.components.errors import UserError
from voxzoo.components.roles import ROLES
from voxzoo.configs import build, check, compose
from voxzoo.configs.optimisation import factory
from voxzoo.configs.targets import FOREIGN, locate, trusted
from voxzoo.tasks import Task

LOGGER = "lightning.pytorch.loggers.CSVLogger"


def tiny() -> Any:
    words = ["task=speech_to_text", "data=tiny", "logger=none"]
    return compose([*words, *(f"{role}=tiny" for role in ("frontend", "speech_encoder", "adaptor", "text_seq2seq"))])


PLACES = [
    "task.speech_encoder", "task.speech_encoder.spec_augment", "task.speech_encoder.dim", "task.adaptor.dropout",
    "task.frontend", "task.tokenizer", "task.tokenizer.model", "task.search", "task.search.beam_size",
    "task.label_smoothing", "task.loss_weights", "task",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "path",
    [
        LOGGER, "lightning.pytorch.callbacks.ModelCheckpoint", "lightning.Trainer", "lightning.fabric.Fabric",
        "torch.nn.Linear", "torch.optim.AdamW", "torchaudio.transforms.Resample", "voxzoo.datamodules.SpokenPhrases",
        "voxzoo.tasks.checkpoints.Checkpointer", "lightning.fabric.loggers.csv_logs.CSVLogger",
    ],
)  # fmt: skip
def test_no_class_of_another_kind_is_built_in_a_model(place: str, path: str, tmp_path: Path):
    node = _plain(tiny().task)
    _put(node, place.partition(".")[2], {"_target_": path, "save_dir": str(tmp_path / "made"), "root": str(tmp_path)})
    with pytest.raises(UserError):
        build(node, wanted=Task)
    assert not list(tmp_path.iterdir())


def test_an_outer_class_of_another_kind_is_seen_before_an_inner_one_is_built(tmp_path: Path):
    inner = {"_target_": LOGGER, "save_dir": str(tmp_path / "made")}
    for outer in ("lightning.Trainer", "lightning.pytorch.callbacks.EarlyStopping", "torch.nn.Sequential"):
        with pytest.raises(UserError, match="which is not a"):
            build({"_target_": outer, "logger": inner}, wanted=ROLES["speech_encoder"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("role", [role for role in ROLES if role != "data"])
def test_each_role_takes_its_own_kind_alone(role: str):
    node = {"_target_": "voxzoo.components.NoAdaptor", "input_dim": 4, "output_dim": 4}
    if role == "adaptor":
        assert build(node, wanted=ROLES[role]).output_dim == 4
    else:
        with pytest.raises(UserError, match=f"the config is .*NoAdaptor, which is not a {ROLES[role].__name__}"):
            build(node, wanted=ROLES[role])


def test_maps_of_callbacks_hold_callbacks():
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "valid/loss"}
    assert list(build({"stop": stop, "absent": {"_target_": None}}, wanted=Callback)) == ["stop", "absent"]
    with pytest.raises(UserError, match=r"the config.log is .*CSVLogger, which is not a Callback"):
        build({"stop": stop, "log": {"_target_": LOGGER, "save_dir": "x"}}, wanted=Callback)


@pytest.mark.parametrize(
    "path",
    [
        "lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.OnExceptionCheckpoint",
        "lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger", "lightning.fabric.Fabric",
        "lightning.fabric.loggers.csv_logs.CSVLogger", "lightning.pytorch.loggers.csv_logs.ExperimentWriter",
        "lightning.pytorch.plugins.io.TorchCheckpointIO", "lightning.pytorch.LightningDataModule",
        "torch.nn.parallel.DistributedDataParallel", "torch.optim.swa_utils.SWALR",
    ],
)  # fmt: skip
def test_what_writes_or_fetches_is_on_no_list_until_it_is_named(path: str):
    with pytest.raises(PermissionError, match=f"not among the classes .* allow it by VOXZOO_ALLOW={path}"):
        locate(path)
    assert locate(path, trusted([path])).__name__ == path.rpartition(".")[2]


def test_a_config_that_came_with_weights_names_nothing_of_a_training():
    for path in ("lightning.pytorch.callbacks.EarlyStopping", "torch.optim.AdamW", "lightning.Trainer", LOGGER):
        assert locate(path).__name__ == path.rpartition(".")[2]
        with pytest.raises(PermissionError, match=r"is outside voxzoo, torch\.nn, torchaudio\.transforms"):
            locate(path, FOREIGN)
    assert locate("torch.nn.GELU", FOREIGN).__name__ == "GELU"


@pytest.mark.parametrize("key", ["schedule", "callbacks.one"])
def test_schedules_and_callbacks_are_of_their_kind_before_check_makes_them(key: str, tmp_path: Path):
    sign = "+" if key.startswith("callbacks") else "++"
    config = compose([f"{sign}{key}={{_target_: {LOGGER}, save_dir: {tmp_path / 'made'}}}", f"run_dir={tmp_path}"])
    faults = [str(fault) for fault in check(config)]
    assert any(fault.startswith(key) for fault in faults), faults
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", [Optimizer, LRScheduler])
def test_optimizers_and_schedules_are_of_their_kind(wanted: type, tmp_path: Path):
    node = {"_target_": LOGGER, "save_dir": str(tmp_path / "made")}
    for one in (node, {"_target_": "torch.optim.AdamW", "lr": node}):
        with pytest.raises(
            UserError, match=f"CSVLogger, which is not a|CSVLogger: no class|is not a {wanted.__name__}"
        ):
            factory(one, wanted=wanted)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("logger.save_dir='reference::http://127.0.0.1:1/r.json'", "logger.save_dir: 'reference::http"),
        ("logger.save_dir=memory://a", "logger.save_dir: 'memory://a'"),
        ("logger.save_dir=/somewhere", "logger.save_dir: '/somewhere': expected a folder in the run folder"),
        ("logger.name=../..", "logger.name: '../..'"),
        ("logger.version=/tmp/x", "logger.version: '/tmp/x'"),
        ("root='reference::http:'", "root: "),
        ("name='a::b'", "name: 'a::b'"),
        ("++trainer.default_root_dir='s3://bucket'", "trainer.default_root_dir: 's3://bucket'"),
        ("++trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler, dirpath: /somewhere}",
         "trainer.profiler.dirpath: '/somewhere'"),
    ],
)  # fmt: skip
def test_no_path_of_what_lightning_opens_leads_elsewhere(word: str, said: str):
    words = ["task=speech_to_text", "data=tiny", "logger=tensorboard", word]
    faults = [str(fault) for fault in check(compose(words))]
    assert any(fault.startswith(said) for fault in faults), faults
    sound = check(compose([*words[:-1], "++trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}"]))
    assert not [fault for fault in sound if fault.path.startswith(("logger", "trainer", "root", "name"))]


def _plain(node: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return found  # pyright: ignore[reportReturnType]


def _put(node: dict[str, Any], place: str, value: dict[str, Any]) -> None:
    if not place:
        node.clear()
        node.update(value)
        return
    *owners, last = place.split(".")
    for owner in owners:
        node[owner] = node.get(owner) or {"_target_": "voxzoo.components.search.SearchOptions"}
        node = node[owner]
    node[last] = value
