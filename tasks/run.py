"""A run on disk: `config.yaml`, `checkpoints/`, `logs/`, and `stages/` where it was trained in stages."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ..components.converters.keymap import Loaded
from ..components.converters.published import load_part
from ..components.errors import UserError, few
from ..components.layers.linear import pack_for_inference
from ..components.roles import Tokenizer
from ..configs.build import build
from ..configs.compose import to_yaml
from ..configs.pretrained import KEY, pretrained_sources
from ..configs.targets import locate, trusted
from .checkpoints import misfit, pick_checkpoint, read_checkpoint, write_atomically
from .lora import apply_lora, fit_weights, lora_settings, merge_lora
from .references import find_references
from .schedules import OF_ANY_LENGTH
from .task import FILES, Task

# What may differ between two calls of the same run: how it is executed, not what it computes.
_FREE = (
    "stage_jobs", "threads", "compile", "activation_checkpointing", "allow", "data.num_workers",
    "checkpoint.copy_frozen",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.accumulate_grad_batches",
)  # fmt: skip

_LENGTH = ("trainer.max_steps", "trainer.max_epochs")
_LEFT_BY_A_START = {"config.yaml", "tokenizer.model", ".lock", ".turn"}

_PACK_FROM = 20_000_000  # parameters: a small model is not worth the timing


@dataclass(frozen=True)
class Run:
    """A loaded run.

    Attributes:
        task: the trained task, in evaluation mode; LoRA is merged into its weights.
        config: its resolved config.
        folder: the run folder (the folder of the checkpoint's run, where a checkpoint was given).
        checkpoint: the file the weights came from.
        allowed: what its class paths may start with.
    """

    task: Task
    config: DictConfig
    folder: Path
    checkpoint: Path
    allowed: tuple[str, ...]

    def datamodule(self, manifest: str | None = None, split: str = "test") -> Any:
        """The DataModule of the run's config, with the run's tokenizer and what the task can read.

        Args:
            manifest: in place of the config's data: a manifest that holds `split`.
        """
        node: Any = self.config.data
        if manifest is not None:
            target = "voxzoo.datamodules.SpeechTranslationData"
            frontend = self.config.get("frontend")
            node = OmegaConf.create(
                {"_target_": target, "test": {split: manifest}, "frontend": frontend, "batch_size": 16}
            )
        data = build(node, allowed=self.allowed, tokenizer=self.task.tokenizer)
        data.needs = self.task.needs
        return data


def load_run(path: Any, *, allow: Iterable[str] = (), device: str = "cpu", pack: bool = False) -> Run:
    """Load a run folder (its last stage, its best checkpoint) or a checkpoint file.

    Args:
        path: the folder or file.
        device: where the task goes: `cpu`, `cuda`, `cuda:1` ..., or `auto`, a GPU where there is one.
        pack: on a CPU, give the linear layers of a model from 20 M parameters on packed weights where a timing says
            that they are faster here (`pack_for_inference`); results are the same to rounding.
        allow: packages besides voxzoo, torch and lightning that its config may name. The `allow` of the config itself
            does not count: it is part of a file that may come from anywhere. VOXZOO_ALLOW=name,name adds to them.

    Raises:
        UserError: the path does not exist, is not a run, or its checkpoint does not fit its config.
    """
    place = pick_device(device)
    choose_kernels()
    folder, checkpoint = find_checkpoint(Path(path))
    content = read_checkpoint(checkpoint)
    if not content["voxzoo"]["config"]:
        raise UserError(
            f"{checkpoint}: carries no config, so that nothing says what to build: its task was built by hand; "
            "`voxzoo.tasks.prepare` makes one that says it"
        )
    config = OmegaConf.create(content["voxzoo"]["config"])
    assert isinstance(config, DictConfig)
    allowed = trusted(allow)
    # Parts of published models hold nothing but their weights: neither initialised first nor twice in memory.
    empty = config.get("model_type") is not None
    task = build_task(config, content["voxzoo"]["assets"], allowed, empty=empty)
    problem = misfit(task.state_dict(), content["state_dict"])
    if problem:
        raise UserError(f"{checkpoint}: does not fit its own config; {problem}")
    task.load_state_dict(content["state_dict"], assign=empty)
    merge_lora(task)
    task.eval().to(place)
    if pack and place.type == "cpu" and sum(p.numel() for p in task.parameters()) >= _PACK_FROM:
        pack_for_inference(task)
    return Run(task, config, folder, checkpoint, allowed)


def choose_kernels() -> None:
    """Leave attention on GPUs to the flash and memory-efficient kernels. cuDNN's, which PyTorch prefers on the newest
    ones in half precision, makes a plan for each shape it meets, and batches of speech nearly always have a new one."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: there is none here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a RUN argument means."""
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return folder, path
    if not path.exists():
        raise UserError(f"{path}: no such run folder or checkpoint")
    if not (path / "config.yaml").exists():
        raise UserError(f"{path}: not a run (no config.yaml in it); a run is a folder that `voxzoo train` wrote")
    config = OmegaConf.load(path / "config.yaml")
    stages = active_stages(config)  # pyright: ignore[reportArgumentType]
    if stages:
        return find_checkpoint(path / "stages" / stages[-1])
    return path, pick_checkpoint(path / "checkpoints")


def active_stages(config: DictConfig) -> list[str]:
    """Names of the stages to run, in order; a stage whose `requires` names an absent part is left out."""
    names = []
    for name, stage in (config.get("stages") or {}).items():
        if stage is None:
            continue
        parts = [config.get(role) for role in stage.get("requires") or ()]
        if all(part is not None and part.get("_target_") is not None for part in parts):
            names.append(str(name))
    return names


def build_task(
    config: DictConfig,
    assets: dict[str, torch.Tensor],
    allowed: tuple[str, ...],
    *,
    empty: bool = False,
    parts: Mapping[str, torch.nn.Module] | None = None,
) -> Task:
    """Build the task of a config; files it needs come from the assets of its checkpoint.

    Args:
        empty: parameters on the meta device, to be filled by `load_state_dict(..., assign=True)`.
        parts: role -> part that is built already.
    """
    given: dict[str, Any] = dict(parts or {})
    if config.task.get("frontend") is not None:
        given["frontend"] = build(config.frontend, allowed=allowed)  # it may hold tables that no checkpoint has
    if "tokenizer" in assets:
        given["tokenizer"] = tokenizer_from_asset(config, assets["tokenizer"], allowed)
    with torch.device("meta") if empty else nullcontext():
        task = build(config.task, allowed=allowed, **given)
    apply_lora(task, config)
    task.files = {name.removeprefix(FILES): value for name, value in assets.items() if name.startswith(FILES)}
    task.config = OmegaConf.to_container(config, resolve=True)
    return task


def tokenizer_from_asset(config: DictConfig, content: torch.Tensor, allowed: tuple[str, ...]) -> Tokenizer:
    """Rebuild the tokenizer of a config from the bytes that a checkpoint carries."""
    settings = OmegaConf.to_container(config.tokenizer, resolve=True)
    assert isinstance(settings, dict)
    path = str(settings.pop("_target_"))
    try:
        cls = locate(path, allowed)
    except (ImportError, PermissionError) as error:
        raise UserError(f"{path}: {error}") from None
    notes = ("model", KEY)  # the file is in the bytes
    named = {str(key): value for key, value in settings.items() if key not in notes and not str(key).startswith("_")}
    return cls.from_bytes(content.numpy().tobytes(), **named)


def load_pretrained(task: Task, config: DictConfig, already: Mapping[str, Loaded] | None = None) -> list[str]:
    """Take parts of published models: `ROLE.pretrained` of the config. Returns one line a part, for the log.

    Args:
        already: role -> what was loaded, of parts that came with their weights.

    Raises:
        UserError: a folder that is none, or weights of another shape than the part.
    """
    parts = task.parts()
    # Front end and tokenizer have no weights.
    sources = {role: source for role, source in pretrained_sources(config).items() if role in parts}
    already = already or {}
    lines = [
        _loaded_line(role, already[role], source)
        if role in already
        else _load_published(role, parts[role], role, source)
        for role, source in sources.items()
    ]
    if "unit_extractor" in parts:
        lines += load_pretrained_encoder(parts["unit_extractor"], config)
    return lines


def published_references(task: Task, config: DictConfig) -> dict[str, Any]:
    """What the checkpoints of a task may leave to the published folders of its parts (`references.find_references`)."""
    parts = task.parts()
    sources = pretrained_sources(config)
    found = {role: (parts[role], role, source) for role, source in sources.items() if role in parts}
    source = OmegaConf.select(config, f"unit_extractor.encoder.{KEY}")
    encoder = getattr(parts.get("unit_extractor"), "encoder", None)
    if source is not None and encoder is not None:
        found["unit_extractor.encoder"] = (encoder, "speech_encoder", str(source))
    return find_references(found)


def load_pretrained_encoder(extractor: Any, config: DictConfig) -> list[str]:
    """The same for the encoder of a unit extractor, which is no role of its own: `unit_extractor.encoder.pretrained`,
    which is that of `speech_encoder` where the one is made as the other."""
    source = OmegaConf.select(config, f"unit_extractor.encoder.{KEY}")
    if source is None:
        return []
    return [_load_published("unit_extractor.encoder", extractor.encoder, "speech_encoder", str(source))]


def _load_published(name: str, part: torch.nn.Module, role: str, source: str) -> str:
    return _loaded_line(name, load_part(part, role, source), source)


def _loaded_line(name: str, loaded: Loaded, source: str) -> str:
    new = f"new: {few(loaded.missing)}" if loaded.missing else "nothing is new"
    left = f"left there: {few(loaded.beyond)}" if loaded.beyond else "nothing of it is left"
    return f"{name}: {len(loaded.state)} tensors from {source}; {new}; {left}"


def load_parts(task: Task, sources: dict[str, str], run_dir: Path) -> list[str]:
    """Take parts of a task from other runs: `init` of the config. Returns one line a part, for the log.

    Args:
        task: what to load into.
        sources: role -> run folder, checkpoint, or the name of an earlier stage of the same run.
        run_dir: folder of this run; stages are its siblings.

    Raises:
        UserError: an unknown role, a run without that part, or weights that do not fit it.
    """
    lines = []
    contents: dict[Path, dict[str, Any]] = {}  # several parts often come from one file
    for role, source in sources.items():
        if source is None:
            continue
        parts = task.parts()
        if role not in parts:
            raise UserError(f"init.{role}: {type(task).__name__} has no such part; it has: {', '.join(parts)}")
        sibling = run_dir.parent / source
        _, checkpoint = find_checkpoint(sibling if sibling.is_dir() else Path(source))
        if checkpoint not in contents:
            contents[checkpoint] = read_checkpoint(checkpoint)
        content = contents[checkpoint]
        state = content["state_dict"]
        prefix = f"{role}."
        weights = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if not weights:
            raise UserError(f"init.{role}: {checkpoint} holds no {role}")
        adapted = lora_settings(content["voxzoo"]["config"]).get(role)
        weights, note = fit_weights(parts[role], weights, adapted)
        problem = misfit(parts[role].state_dict(), weights)
        if problem:
            raise UserError(f"init.{role}: the {role} of {checkpoint} does not fit this config; {problem}")
        size = task.tokenizer.vocab_size if task.tokenizer is not None else None
        if any(value.shape[:1] == (size,) for value in weights.values()):
            _require_vocabulary(task, content["voxzoo"], role, checkpoint)
        parts[role].load_state_dict(weights)
        lines.append(f"{role}: {len(weights)} tensors from {checkpoint}" + (f"; {note}" if note else ""))
    return lines


def _require_vocabulary(task: Task, saved: Mapping[str, Any], role: str, checkpoint: Path) -> None:
    """Refuse weights whose rows stand for other tokens than those of this run."""
    theirs, ours = saved["assets"].get("tokenizer"), task.assets().get("tokenizer")
    if theirs is None or ours is None:
        return
    model = saved["config"]["tokenizer"].get("model")
    if not torch.equal(theirs, ours):
        raise UserError(
            f"init.{role}: {checkpoint} has rows for the tokens of another vocabulary; take that one: "
            f"tokenizer.model={model}"
        )
    there, here = (list(config["tokenizer"].get("languages") or ()) for config in (saved["config"], task.config))
    if there and here and there != here:
        raise UserError(
            f"init.{role}: {checkpoint} has rows for the languages {', '.join(there)}, this run for {', '.join(here)}; "
            f"give both the same: tokenizer.languages=[{','.join(dict.fromkeys([*there, *here]))}]"
        )


def settle_config(folder: Path, text: str) -> None:
    """Write the resolved config once; refuse another one in the same folder, showing the difference. The same run may
    be made longer where its schedule does not depend on its length: then it goes on where it ended.

    Raises:
        UserError: the folder holds the run of another config.
    """
    path = folder / "config.yaml"
    if path.exists():
        old, new = OmegaConf.load(path), OmegaConf.create(text)
        length = _LENGTH if _is_longer(old, new) else ()
        before, after = _settled(old, length), _settled(new, length)
        if before != after:
            changes = [
                line for line in difflib.unified_diff(before, after, lineterm="", n=1) if line[:3] not in ("---", "+++")
            ]
            shown = "\n    ".join(changes[:30])
            raise UserError(
                f"{folder} holds a run of another config (- there, + now):\n    {shown}\n"
                "  Give this run another `name=`, or delete the folder to start over"
            )
        if not length:
            return
        (folder / "done.json").unlink(missing_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def _is_longer(old: Any, new: Any) -> bool:
    """Whether a run is asked for more steps or epochs, each of them as it would have been."""
    schedule = str(OmegaConf.select(new, "schedule._target_")).rpartition(".")[2]
    if schedule not in OF_ANY_LENGTH:
        return False
    pairs = [(OmegaConf.select(old, key), OmegaConf.select(new, key)) for key in _LENGTH]
    pairs = [tuple(math.inf if value in (None, -1) else value for value in pair) for pair in pairs]
    return any(before != after for before, after in pairs) and all(before <= after for before, after in pairs)


def _settled(config: Any, free: Sequence[str] = ()) -> list[str]:
    """What may not change in a run, as lines of YAML."""
    for key in (*_FREE, *free):
        owner = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        if owner is not None:
            owner.pop(key.rpartition(".")[2], None)
    return OmegaConf.to_yaml(config, sort_keys=True).splitlines()


def take_languages(config: DictConfig, old: Any) -> None:
    """Fill in the languages that the run of the config `old` found in its data, where a config leaves them to that."""
    if "tokenizer" in config.task and not config.tokenizer.languages:
        config.tokenizer.languages = OmegaConf.select(old, "tokenizer.languages") or []


def forget_failed_start(folder: Path, config: DictConfig) -> None:
    """Give a folder free in which another config failed before it trained anything: what it left is a config and a
    vocabulary. Call it before the vocabulary is read."""
    path = folder / "config.yaml"
    if not path.exists() or {item.name for item in folder.iterdir()} - _LEFT_BY_A_START:
        return
    old, new = OmegaConf.load(path), config.copy()
    take_languages(new, old)
    if _settled(old.copy()) != _settled(OmegaConf.create(to_yaml(new))):
        model = OmegaConf.select(old, "tokenizer.model")
        if model and Path(str(model)).parent == folder:
            Path(str(model)).unlink(missing_ok=True)
        path.unlink()


def is_done(folder: Path) -> bool:
    """Whether the run in a folder has ended."""
    return (folder / "done.json").exists()


@contextmanager
def turns(folder: Path) -> Iterator[None]:
    """Let the processes of one run through one at a time: what the first one writes, the others find."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".turn", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pid_lock(folder: Path) -> Any:
    """Hold a run folder for one process; a second `train` on it is refused instead of corrupting it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "w")  # noqa: SIM115 - held open for the life of the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{folder} is being trained by another process") from None
    except OSError as error:
        file.close()
        raise UserError(
            f"{folder}: its file system has no locks ({error.strerror}), which keep two trainings apart; take another "
            "root=, or mount it with locks (Lustre: -o flock)"
        ) from None
    file.write(str(os.getpid()))
    file.flush()
    return file
