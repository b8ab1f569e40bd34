"""Whole commands on what somebody else made: whatever stands in it, they write where they were told to, open no socket,
start no process, look up no variable and import nothing from the current folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import yaml
from voxzoo.tasks.commands.cli import main
from watch import snapshot, watched

SECRET = "hush-0815-hush"
MODULE = """import pathlib
pathlib.Path({marker!r}).write_text(__name__)
class Thing:
    def __init__(self, *args, **kwargs):
        pathlib.Path({marker!r}).write_text('made')
"""


@dataclass
class World:
    """What is on the machine: a home with secrets, a folder to stand in with modules in it, and places to write in."""

    top: Path
    cache: Path
    temp: Path

    @property
    def run(self) -> Path:
        return self.top / "root" / "run"

    @property
    def out(self) -> Path:
        return self.top / "out"

    @property
    def victim(self) -> Path:
        return self.top / "victim"

    @property
    def written(self) -> list[Path]:
        """Where commands may write."""
        return [self.run, self.run.with_name(".run.part"), self.out, self.cache, self.top / "cache", self.temp]


@dataclass(frozen=True)
class Base:
    """A run of one step, the words that train it, and a published model."""

    run: Path
    words: list[str]
    content: dict[str, Any]
    published: Path


@pytest.fixture(scope="module")
def base(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Base:
    root = tmp_path_factory.mktemp("base")
    words = ["task=speech_to_text", *tiny, "trainer.val_check_interval=1", "logger=none", "schedule=constant"]
    assert main(["train", *words, "trainer.max_steps=1", f"root={root}", "name=run"]) == 0
    content = torch.load(root / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return Base(root / "run", words, content, published.publish_hubert(root / "hubert"))


@pytest.fixture(scope="session")
def temp() -> Iterator[Path]:
    """A short path: data workers hand on tensors by a socket there, whose path has 107 bytes at most."""
    folder = tempfile.mkdtemp(prefix="voxzoo-")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def world(tmp_path: Path, shared: Path, temp: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path, shared / "corpora", temp)
    for name in ("home/.ssh", "here", "victim", "cache", "out", "root"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "id_rsa").write_text(SECRET)
    for name in ("victim.txt", "metrics.csv", "hparams.yaml", "step00000001.ckpt", ".last.ckpt.1.tmp", "test.json"):
        (world.victim / name).write_text("mine")
    marker = str(tmp_path / "imported")
    for name in ("random", "types", "evil", "sitecustomize", "yaml", "numbers"):
        (tmp_path / "here" / f"{name}.py").write_text(MODULE.format(marker=marker))
    rows = [{"id": "a", "audio": "a.wav", "src_lang": "spa", "tgt_lang": "eng", "src_text": "uno", "tgt_text": "one"}]
    rows[0]["tgt_audio"] = "a.wav"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "u.jsonl").write_text('{"id": "a", "units": [1, 2]}\n')
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(range(1, 255)) * 60)
    for name, value in {"HOME": tmp_path / "home", "SECRET": SECRET, "VOXZOO_CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    monkeypatch.chdir(tmp_path / "here")
    return world


# What they may have put there

CLASSES = (
    "lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.csv_logs.ExperimentWriter",
    "lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.Trainer", "lightning.fabric.Fabric", "torch.hub.load", "torch.hub.download_url_to_file",
    "torch.utils.tensorboard.SummaryWriter", "torchaudio.transforms.Resample", "fsspec.open", "subprocess.Popen",
    "fsspec.implementations.reference.ReferenceFileSystem", "os.system", "builtins.exec", "evil.Thing", "random.Thing",
    "voxzoo.datamodules.SpokenPhrases", "voxzoo.tasks.checkpoints.files.Checkpointer",
)  # fmt: skip
PLACES = (
    "task", "task.speech_encoder", "task.speech_encoder.spec_augment", "task.speech_encoder.dim", "task.tokenizer",
    "task.frontend", "task.adaptor", "task.text_seq2seq", "task.search", "task.label_smoothing", "tokenizer",
    "frontend", "data", "data.corpus", "data.train", "optim", "schedule", "logger", "callbacks.one", "trainer",
    "trainer.strategy", "lora", "init", "name", "from", "speech_encoder", "unit_extractor",
)  # fmt: skip


def node(path: str, world: World) -> dict[str, Any]:
    """A class with whatever arguments would write, fetch or run something."""
    where = str(world.victim)
    keys = ("save_dir", "root_dir", "log_dir", "dirpath", "root", "folder", "default_root_dir", "dst")
    url = "reference::http://127.0.0.1:9/x.json"
    return {"_target_": path, **dict.fromkeys(keys, where), "urlpath": url, "fo": url, "url": url, "repo_or_dir": url,
            "args": "touch " + where + "/made", "command": "touch " + where + "/made"}  # fmt: skip


def put(config: dict[str, Any], place: str, value: Any) -> None:
    *owners, last = place.split(".")
    for owner in owners:
        if not isinstance(config.get(owner), dict):
            config[owner] = {}
        config = config[owner]
    config[last] = value


Change = Callable[[dict[str, Any], World], Any]
"""Of a config, in place."""


def nested(place: str, path: str) -> Change:
    return lambda config, world: put(config, place, node(path, world))


def several(values: dict[str, Any]) -> Change:
    def change(config: dict[str, Any], world: World) -> None:
        for key, value in values.items():
            text = json.dumps(value).replace("VICTIM", str(world.victim))
            put(config, key, json.loads(text))

    return change


CONFIGS: dict[str, Change] = {
    **{f"{place} is {path}": nested(place, path) for place in PLACES for path in CLASSES},
    "allow": several({"allow": ["os", "evil"], "task.frontend": {"_target_": "evil.Thing"}}),
    "environment": several({"name": "${oc.env:SECRET}", "root": "${oc.env:SECRET}"}),
    "environment of a hub name": several({"from": "${oc.env:SECRET}/x", "init": "${oc.env:SECRET}/x"}),
    "environment below": several({"task.label_smoothing": "${oc.env:SECRET}", "data.train": "${oc.env:SECRET}"}),
    "folders": several({"root": "VICTIM", "name": "../../victim", "run_dir": "VICTIM", "stage_dir": "VICTIM"}),
    "caches": several({"cache_dir": "VICTIM", "data.cache_dir": "VICTIM", "data.corpus.root": "VICTIM"}),
    "files": several({"tokenizer.model": "VICTIM/../home/.ssh/id_rsa", "task.tokenizer.model": "VICTIM/victim.txt"}),
    "protocols": several({"data.cache_dir": "reference::http://127.0.0.1:9/x", "root": "http://127.0.0.1:9/x"}),
    "logs": several({"logger": {"_target_": CLASSES[0], "save_dir": "VICTIM", "name": "", "version": ""}}),
    "stages": several({"stages": {"../../victim": {"set": {"root": "VICTIM"}}, "x": {"after": [], "set": {}}}}),
    "a hub name": several({"from": "someone/else", "speech_encoder.pretrained": "someone/else"}),
    "a published folder": several({"task.speech_encoder.pretrained": "VICTIM", "init": {"speech_encoder": "VICTIM"}}),
}  # fmt: skip
FEW = [f"{place} is {CLASSES[number % len(CLASSES)]}" for number, place in enumerate(PLACES)]
FEW += [name for name in CONFIGS if " is " not in name]
"""Each place and each class once, and all others."""


EVERY = bool(os.environ.get("VOXZOO_EVERY_CASE"))
"""All cases take an hour: without it one in ten of those that are slow is tried."""


def some(names: Any, step: int) -> list[Any]:
    """Every `step`-th of some cases; the others are slow."""
    cases = [pytest.param(name, marks=[pytest.mark.slow] * (place % step > 0)) for place, name in enumerate(names)]
    return [case for place, case in enumerate(cases) if EVERY or place % step == 0 or place % 10 == 1]


CONTENTS: dict[str, Change] = {
    "best": lambda content, world: put(
        content, "callbacks", {key: {"best": {"../../../victim/victim.txt": -1e9}} for key in content["callbacks"]}
    ),
    "published": lambda content, world: put(
        content, "published.speech_encoder",
        {"role": "speech_encoder", "source": "someone/else", "sha256": "0", "tensors": {"absent": ["float32", [1]]}},
    ),
    "a published folder elsewhere": lambda content, world: put(
        content, "published.speech_encoder",
        {"role": "../../victim", "source": str(world.victim), "sha256": "0", "tensors": {"x": ["load", [1]]}},
    ),
    "shards": lambda content, world: put(
        content, "shards", {"folder": "../../../victim", "files": {"../victim.txt": 4}, "tensors": {}}
    ),
    "files": lambda content, world: put(
        content["voxzoo"]["assets"], "file:../../../victim/victim.txt", torch.zeros(4, dtype=torch.uint8)
    ),
    "hyper parameters": lambda content, world: content.update(
        {"hyper_parameters": {"_instantiator": "os.system"}, "datamodule_hyper_parameters": {"_instantiator": "evil"},
         "hparams_name": "evil.Thing", "legacy": {"_target_": "evil.Thing"}, "pytorch-lightning_version": "0.1"}
    ),
    "loops": lambda content, world: put(content, "loops", {"fit_loop": {"state_dict": {"_target_": "evil.Thing"}}}),
}  # fmt: skip


# What is done with it


def commands(world: World, base: Base) -> dict[str, list[Any]]:
    """Verb -> words of a call that reads a run."""
    run, out, manifest = world.run, world.out, world.top / "m.jsonl"
    own = [f"root={world.run.parent}", f"cache_dir={world.top / 'cache'}", "data=manifest", f"data.train={manifest}"]
    return {
        "translate": ["translate", run, world.top / "a.wav", "--task", "s2tt", "--to", "eng", "--beam", "1"],
        "evaluate": ["evaluate", run, "--split", "test", "--limit", "1", "--beam", "1"],
        "evaluate a manifest": ["evaluate", run, "--manifest", manifest, "--task", "s2tt", "--out", out / "scores"],
        "export": ["export", run, out / "exported"],
        "consolidate": ["consolidate", run],
        "data validate": ["data", "validate", manifest, "--run", run],
        "units fit": [
            "units",
            "fit",
            manifest,
            "--out",
            out / "units",
            "--encoder",
            run,
            "--layer",
            "1",
            "--set",
            "unit_extractor.num_units=4",
        ],
        "units extract": ["units", "extract", run, manifest, "--out", out / "u.jsonl"],
        "units codes": ["units", "codes", run, manifest, "--out", out / "c.jsonl"],
        "units resynthesise": ["units", "resynthesise", run, world.top / "u.jsonl", "--out", out / "wavs"],
        "codec": ["codec", run, manifest],
        "check from": ["check", "experiment=finetune", f"from={run}", *own, "name=new"],
        "check init": ["check", *base.words, f"root={run.parent}", "name=new", f"init={run}"],
    }


def call(words: list[Any], world: World, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command, and what it printed; nothing else has changed by it."""
    before = snapshot(world.top, world.written)
    modules = set(sys.modules)
    with watched(world.written) as watch:
        try:
            code = main([str(word) for word in words])
        except SystemExit as error:  # of argparse
            code = int(error.code or 0)
    said = "".join(capsys.readouterr())
    assert not watch.tried, (watch.tried, said)
    after = snapshot(world.top, world.written)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed, (changed, said)
    here = str(world.top / "here")
    assert not [
        name for name in set(sys.modules) - modules if str(getattr(sys.modules[name], "__file__", "")).startswith(here)
    ]
    assert here not in sys.path
    assert SECRET not in said
    for folder in (world.run, world.out):
        for path in folder.rglob("*"):
            assert not path.is_file() or path.is_symlink() or SECRET.encode() not in path.read_bytes(), path
    assert code in (0, 1), said
    assert "should not happen" not in said
    assert "Traceback" not in said
    return code, said


def foreign_run(world: World, base: Base, change: Change, where: str) -> None:
    """A run folder of somebody else's making: in `config` of its checkpoint and its config.yaml, or in the checkpoint's
    content."""
    content = {**base.content, "voxzoo": copy.deepcopy(base.content["voxzoo"])}
    content["callbacks"] = dict(content["callbacks"])
    change(content["voxzoo"]["config"] if where == "config" else content, world)
    shutil.rmtree(world.run, ignore_errors=True)
    (world.run / "checkpoints").mkdir(parents=True)
    torch.save(content, world.run / "checkpoints" / "last.ckpt")
    config = yaml.safe_dump(content["voxzoo"]["config"])
    (world.run / "config.yaml").write_text(config)


def resume(world: World, base: Base, config: str) -> list[Any]:
    """Words that go on with the foreign run."""
    (world.run / "config.yaml").write_text(config)
    return ["train", *base.words, "trainer.max_steps=2", f"root={world.run.parent}", "name=run"]


def own_config(world: World, base: Base) -> str:
    """The config of the base run as it would stand in the folder of this one."""
    return (base.run / "config.yaml").read_text().replace(str(base.run.parent), str(world.run.parent))


@pytest.mark.parametrize("name", some(FEW, 5))
def test_a_foreign_config_in_a_run(name: str, world: World, base: Base, capsys):
    """Two commands on each; all commands on all are slow."""
    foreign_run(world, base, CONFIGS[name], "config")
    every = commands(world, base)
    verbs = list(every)
    first = list(CONFIGS).index(name)
    for verb in ("translate", verbs[first % len(verbs)]):
        call(every[verb], world, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS if EVERY else FEW[::10])
def test_every_foreign_config_in_a_run(name: str, world: World, base: Base, capsys):
    foreign_run(world, base, CONFIGS[name], "config")
    for words in commands(world, base).values():
        call(words, world, capsys)
    call(resume(world, base, own_config(world, base)), world, capsys)


@pytest.mark.parametrize("name", some(CONTENTS, 4))
def test_foreign_content_in_a_checkpoint(name: str, world: World, base: Base, capsys):
    foreign_run(world, base, CONTENTS[name], "content")
    for verb in ("translate", "export", "consolidate", "evaluate"):
        call(commands(world, base)[verb], world, capsys)
    foreign_run(world, base, CONTENTS[name], "content")
    call(resume(world, base, own_config(world, base)), world, capsys)


@pytest.mark.slow
def test_without_anything_foreign_the_commands_do_what_they_do(world: World, base: Base, capsys):
    """Or the others would prove nothing."""
    foreign_run(world, base, lambda config, world: None, "config")
    codes = {verb: call(words, world, capsys)[0] for verb, words in commands(world, base).items()}
    done = {verb for verb, code in codes.items() if code == 0}
    assert done >= {"translate", "evaluate", "evaluate a manifest", "data validate", "units fit", "consolidate"}, codes
    assert call(resume(world, base, own_config(world, base)), world, capsys)[0] == 0


LINKS = {
    "evaluation": "victim", "evaluation/test.json": "victim/test.json", "evaluation/test": "victim",
    "checkpoints/step00000002.ckpt": "victim/victim.txt", "logs": "victim", "logs/metrics.csv": "victim/metrics.csv",
    ".lock": "victim/victim.txt", ".turn": "victim/victim.txt", "skipped.jsonl": "victim/victim.txt",
    "tokenizer.model": "victim/victim.txt", "done.json": "victim/victim.txt", "stages": "victim",
    "checkpoints/best.json": "victim/victim.txt", ".part": "victim/not_there",
}  # fmt: skip


@pytest.mark.parametrize("name", some(LINKS, 7))
def test_links_in_a_foreign_run_lead_nowhere(name: str, world: World, base: Base, capsys):
    foreign_run(world, base, lambda config, world: None, "config")
    path = world.run / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(world.top / LINKS[name])
    for verb in ("evaluate", "translate", "consolidate"):
        call(commands(world, base)[verb], world, capsys)
    config = own_config(world, base)
    code, said = call(resume(world, base, config), world, capsys)
    assert code == 1
    assert "symbolic link" in said


def test_a_folder_of_checkpoints_that_is_a_link_leads_nowhere(world: World, base: Base, capsys):
    foreign_run(world, base, lambda config, world: None, "config")
    shutil.copytree(world.run / "checkpoints", world.victim / "checkpoints")
    shutil.rmtree(world.run / "checkpoints")
    (world.run / "checkpoints").symlink_to(world.victim / "checkpoints")
    call(commands(world, base)["consolidate"], world, capsys)
    code, said = call(resume(world, base, own_config(world, base)), world, capsys)
    assert code == 1
    assert f"a symbolic link that leads out of the run, to {world.victim / 'checkpoints'}" in said


# Other folders


EXTRACTORS: dict[str, Change] = {
    name: change for name, change in CONFIGS.items() if name.startswith(("unit_extractor is", "environment", "allow"))
} | {
    f"{place} is {path}": nested(f"unit_extractor.{place}", path)
    for place in ("encoder", "frontend", "layer", "num_units", "encoder.spec_augment")
    for path in CLASSES[::3]
}


@pytest.mark.parametrize("name", some(EXTRACTORS, 9))
def test_a_foreign_unit_extractor(name: str, world: World, capsys):
    config: dict[str, Any] = {"unit_extractor": {"_target_": "voxzoo.components.KMeansUnits", "num_units": 4}}
    EXTRACTORS[name](config, world)
    own = config.pop("unit_extractor")
    folder = world.top / "extractor"
    folder.mkdir()
    content = {"config": {**own, **config} if isinstance(own, dict) else own, "card": {"_target_": "evil.Thing"}}
    (folder / "unit_extractor.json").write_text(json.dumps(content))
    (folder / "unit_extractor.safetensors").symlink_to(world.victim / "victim.txt")
    words = ["units", "extract", folder, world.top / "m.jsonl", "--out", world.out / "u.jsonl"]
    assert call(words, world, capsys)[0] == 1


def folder_of(change: dict[str, Any], file: str = "config.json") -> Callable[[Path, World], None]:
    """A published folder whose file says other things."""

    def write(folder: Path, world: World) -> None:
        path = folder / file
        own = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps({**own, **change}).replace("VICTIM", str(world.victim))
        path.write_text(text)

    return write


def linked(name: str) -> Callable[[Path, World], None]:
    def link(folder: Path, world: World) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(world.top / "home" / ".ssh" / "id_rsa")

    return link


_NODE = {"_target_": CLASSES[0], "save_dir": "VICTIM"}
_FOLDERS: dict[str, Callable[[Path, World], None]] = {
    "its class": folder_of(_NODE),
    "its type is a path": folder_of({"model_type": "../../victim/evil"}),
    "its type is a module": folder_of({"model_type": "os.system"}),
    "code beside it": folder_of({"auto_map": {"AutoModel": "evil.Thing"}, "trust_remote_code": True}),
    "an activation": folder_of({"hidden_act": _NODE}),
    "a function": folder_of({"hidden_act": "os.system"}),
    "a name of the hub": folder_of({"_name_or_path": "someone/else", "base_model_name_or_path": "someone/else"}),
    "the environment": folder_of({"hidden_size": "${oc.env:SECRET}", "name_or_path": "${oc.env:SECRET}"}),
    "a list of layers": folder_of({"conv_dim": [_NODE], "conv_kernel": {"_target_": "evil.Thing"}}),
    "a front end": folder_of({"feature_extractor_type": "evil.Thing", **_NODE}, "preprocessor_config.json"),
    "a tokenizer": folder_of({"tokenizer_class": "evil.Thing", "vocab_file": "VICTIM/x"}, "tokenizer_config.json"),
    "shards elsewhere": folder_of({"weight_map": {"x": "../victim/victim.txt"}}, "model.safetensors.index.json"),
    "an adapter": folder_of({"peft_type": "LORA", "base_model_name_or_path": "someone/else"}, "adapter_config.json"),
    "weights are a link": linked("model.safetensors"),
    "a text is a link": linked("notes.txt"),
    "json is a link": linked("special_tokens_map.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", some(_FOLDERS, 7))
def test_a_foreign_published_folder(name: str, world: World, base: Base, capsys):
    folder = world.top / "published"
    shutil.copytree(base.published, folder)
    _FOLDERS[name](folder, world)
    if name == "an adapter":
        (folder / "config.json").unlink()
    own = ["frontend=raw", f"root={world.run.parent}", f"cache_dir={world.top / 'cache'}", "name=run"]
    part = ["speech_encoder=pretrained", f"speech_encoder.pretrained={folder}", *own]
    call(["import", folder, world.run], world, capsys)
    if world.run.exists():
        call(["export", world.run, world.out / "again"], world, capsys)
        shutil.rmtree(world.run)
    call(["check", *part], world, capsys)
    call(["check", "experiment=finetune", f"from={folder}", *own, "text_seq2seq=tiny"], world, capsys)
    call(["parts", "check", *part[:3]], world, capsys)


CHOICES: dict[str, dict[str, Any]] = {
    "defaults lead out": {"defaults": ["/data: ../../../home/.ssh/id_rsa"]},
    "defaults of the environment": {"defaults": ["/data: ${oc.env:SECRET}"]},
    "hydra": {"hydra": {"run": {"dir": "VICTIM"}, "searchpath": ["file://VICTIM"], "output_subdir": "VICTIM"}},
    "a decoded value": {"name": "${oc.decode:'${oc.env:SECRET}'}"},
}


def folder_of_choices(change: Change, world: World, base: Base) -> Path:
    """A folder with one experiment: of what it changes in the config of a run, that alone."""
    before = copy.deepcopy(base.content["voxzoo"]["config"])
    after = copy.deepcopy(before)
    change(after, world)
    found = {key: value for key, value in after.items() if value != before.get(key)}
    folder = world.top / "choices"
    (folder / "experiment").mkdir(parents=True)
    text = "# @package _global_\n" + yaml.safe_dump(found, sort_keys=False)
    (folder / "experiment" / "x.yaml").write_text(text)
    return folder


def of_choices(folder: Path, world: World, base: Base) -> dict[str, list[Any]]:
    """Verb -> words of a call with a folder of choices."""
    words = ["--config-dir", folder, "experiment=x", *base.words, f"root={world.run.parent}", "name=run"]
    return {
        "check": ["check", *words],
        "check --print-config": ["check", "--print-config", "--plan", *words],
        "parts check": ["parts", "check", *words],
        "parts": ["parts", "--config-dir", folder, "experiment"],
        "train": ["train", *words, "trainer.max_steps=1"],
    }


@pytest.mark.parametrize("name", some([*FEW, *CHOICES], 16))
def test_a_foreign_folder_of_choices(name: str, world: World, base: Base, capsys):
    change = CONFIGS.get(name) or several(CHOICES[name])
    every = of_choices(folder_of_choices(change, world, base), world, base)
    verbs = ["parts check", "parts", "train", "check --print-config"]
    first = [*CONFIGS, *CHOICES].index(name)
    for verb in ("check", verbs[first % len(verbs)]):
        call(every[verb], world, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, *CHOICES] if EVERY else FEW[2::10])
def test_every_foreign_folder_of_choices(name: str, world: World, base: Base, capsys):
    change = CONFIGS.get(name) or several(CHOICES[name])
    for words in of_choices(folder_of_choices(change, world, base), world, base).values():
        call(words, world, capsys)


AUDIO = (
    "reference::http://127.0.0.1:9/x.json", "http://127.0.0.1:9/x.wav", "| touch ../made", "$(touch made).wav",
    "../../../../../../dev/zero", "/proc/self/environ", "../home/.ssh/id_rsa", "s3://bucket/x.wav", "a\0b.wav", "-",
)  # fmt: skip


@pytest.mark.parametrize("audio", some(AUDIO, 7))
def test_a_foreign_manifest(audio: str, world: World, base: Base, capsys):
    foreign_run(world, base, lambda config, world: None, "config")
    path = world.top / "foreign.jsonl"
    row = {"id": "../../victim/victim", "src_lang": "spa", "tgt_lang": "eng", "src_text": "uno", "tgt_text": "one"}
    path.write_text(json.dumps({**row, "audio": audio, "tgt_audio": audio}) + "\n")
    call(["data", "validate", path], world, capsys)
    call(["evaluate", world.run, "--manifest", path, "--task", "s2tt", "--out", world.out], world, capsys)
    call(["units", "fit", path, "--out", world.out / "units"], world, capsys)
    call(["translate", world.run, audio, "--task", "s2tt", "--to", "eng"], world, capsys)
    assert os.getcwd() == str(world.top / "here")
