"""Every class of lightning, torch and torchaudio at ten places of each config that may come from elsewhere: nothing but
parts is made, nothing is written, no socket is opened, nothing is imported from the folder where one stands."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from voxzoo.components.errors import UserError
from voxzoo.components.roles import DataModule, UnitExtractor
from voxzoo.configs import build, check, compose
from voxzoo.configs.targets import FOREIGN
from voxzoo.tasks import Task

LIBRARIES = ("lightning.pytorch", "lightning.fabric", "torch.nn", "torch.optim", "torch.utils.data", "torchaudio")
FEW = 60  # classes of each library in the fast suite


def classes(library: str) -> list[str]:
    """Paths of the classes that the modules of a library define, as far as they are imported already or easily."""
    root = importlib.import_module(library)
    for module in pkgutil.iter_modules(root.__path__, f"{library}."):
        if not module.name.rpartition(".")[2].startswith("_") and module.name not in sys.modules:
            try:
                importlib.import_module(module.name)
            except Exception:  # an extra that is not installed
                continue
    found = {
        f"{name}.{key}"
        for name, module in list(sys.modules.items())
        if module is not None and (name == library or name.startswith(f"{library}."))
        for key, value in list(vars(module).items())
        if inspect.isclass(value) and not key.startswith("_")
    }
    return sorted(found)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    roles = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "tokenizer")
    words = [
        "task=speech_to_text",
        "data=tiny",
        "logger=none",
        "unit_extractor=log_mel",
        *(f"{role}=tiny" for role in roles),
    ]
    found = OmegaConf.to_container(compose(words), resolve=True)
    assert isinstance(found, dict)
    return found  # pyright: ignore[reportReturnType]


PLACES = {
    "task": ("", "speech_encoder", "speech_encoder.dim", "speech_encoder.spec_augment", "adaptor", "adaptor.dropout",
             "text_seq2seq", "tokenizer", "frontend", "label_smoothing"),
    "unit_extractor": ("", "encoder", "frontend", "layer", "num_units", "features", "encoder.dim", "frontend.stack",
                       "encoder.spec_augment", "new_key"),
    "data": ("", "corpus", "corpus.root", "train", "valid", "frontend", "batch_size", "audio", "augment", "new_key"),
}  # fmt: skip
WANTED = {"task": Task, "unit_extractor": UnitExtractor, "data": DataModule}


def hostile(path: str, folder: Path) -> dict[str, Any]:
    where = str(folder / "made")
    return {"_target_": path, "save_dir": where, "root_dir": where, "log_dir": where, "dirpath": where, "root": where}


def put(node: dict[str, Any], place: str, value: dict[str, Any]) -> Any:
    if not place:
        return value
    copy = dict(node)
    key, _, rest = place.partition(".")
    inner = copy.get(key)
    if not isinstance(inner, dict):
        inner = {"_target_": node["_target_"]} if rest else {}
    copy[key] = put(inner, rest, value)
    return copy


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, with files that nobody may touch and modules that nobody may import; no sockets."""
    for name in ("metrics.csv", "last.ckpt", "notes.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "types_of_mine.py").write_text("raise SystemExit('imported from the current folder')")
    before = {path: path.read_text() for path in tmp_path.iterdir()}

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.chdir(tmp_path)
    for name in ("connect", "bind", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, opened)
    yield tmp_path
    assert {path: path.read_text() for path in tmp_path.rglob("*")} == before
    assert "types_of_mine" not in sys.modules


REFUSED = re.compile(
    "is outside voxzoo|not among the classes|which is not a|no class can stand there|is not meant for configs|"
    "is not a class that|not a class or function|cannot import|has no '"
)


def tried(paths: list[str], config: dict[str, Any], folder: Path) -> None:
    made: list[str] = []
    nodes = {key: config["task"] if key == "task" else config[key] for key in PLACES}
    for path in [*paths, "types_of_mine.Thing"]:
        for kind, places in PLACES.items():
            for place in places:
                try:
                    build(put(nodes[kind], place, hostile(path, folder)), allowed=FOREIGN, wanted=WANTED[kind])
                except UserError as error:
                    if REFUSED.search(str(error)):  # for its class, not for what else is wrong with it
                        continue
                    made.append(f"{path} at {kind}.{place}: {error}")
                    continue
                made.append(f"{path} at {kind}.{place}")
    assert not made


@pytest.mark.parametrize("library", LIBRARIES)
def test_some_of_their_classes_are_refused_at_every_place(library: str, config: dict[str, Any], still: Path):
    found = classes(library)
    tried(random.Random(0).sample(found, min(FEW, len(found))), config, still)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_all_of_their_classes_are_refused_at_every_place(library: str, config: dict[str, Any], still: Path):
    tried(classes(library), config, still)


@pytest.mark.parametrize("key", ["optim", "schedule", "logger", "callbacks.one", "trainer.strategy", "frontend"])
def test_a_folder_of_choices_that_was_downloaded_adds_no_class(key: str, still: Path, tmp_path_factory):
    groups = tmp_path_factory.mktemp("downloaded") / "experiment"
    groups.mkdir()
    for path in ("lightning.pytorch.loggers.WandbLogger", "os.system", "lightning.pytorch.callbacks.ModelCheckpoint"):
        node = OmegaConf.create()
        OmegaConf.update(node, key, hostile(path, still), force_add=True)
        text = f"# @package _global_\n{OmegaConf.to_yaml(node)}"
        (groups / "x.yaml").write_text(text)
        faults = [str(one) for one in check(compose(["experiment=x"], config_dirs=[str(groups.parent)]))]
        assert any(fault.startswith(key) and re.search("is outside|not among", fault) for fault in faults), faults
        (groups / "x.yaml").write_text(f"{text}allow: [os, lightning.pytorch]\n")
        with pytest.raises(UserError, match="cannot say what is trusted"):
            compose(["experiment=x"], config_dirs=[str(groups.parent)])
