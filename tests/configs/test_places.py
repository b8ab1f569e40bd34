"""What may stand in a config follows from the place: looked at from the outside in, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from voxzoo.components.errors import UserError
from voxzoo.components.roles import ROLES
from voxzoo.configs import build, compose
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
