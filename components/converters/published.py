"""Published models as parts, and parts as published models."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, faults_of, few
from ..layers.lora import is_lora, merged_state
from ..limits import stacks
from ..whole import whole_folder
from .compat import apply_compat
from .family import Compat, Family, Nodes
from .fidelity import compare
from .files import Weights, published_folder, read_json, write_weights
from .generation import unread
from .keymap import Loaded
from .settings import LEFT_OUT, read_json_if
from .transformer import fill_copies, with_source

# model_type -> module of this package that has its FAMILY.
_FAMILIES = {
    "encodec": "encodec",
    "hubert": "hubert",
    "m2m_100": "m2m_100",
    "seamless_m4t": "seamless_m4t",
    "seamless_m4t_v2": "seamless_m4t_v2",
    "wav2vec2": "wav2vec2",
    "wav2vec2-bert": "wav2vec2_bert",
    "whisper": "whisper",
}
_CARRIED_SUFFIXES = (".json", ".model", ".txt")
_CARRIED_BYTES = 64_000_000


def family_of(model_type: Any, where: str) -> Family:
    """The family that reads a `model_type`.

    Raises:
        UserError: there is none; names those there are.
    """
    if model_type not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UserError(f"{where}: model_type {model_type!r} is none that voxzoo has; expected one of {known}")
    return importlib.import_module(f".{_FAMILIES[model_type]}", __package__).FAMILY


def describe(source: str | Path) -> Nodes:
    """Config nodes of the parts of a published folder, without its weights (see `Family.nodes`).

    Raises:
        UserError: a folder or config that is none, see `published_folder`.
    """
    folder = published_folder(source)
    settings = read_json(folder / "config.json")
    return _nodes(settings, folder)[1]


def _nodes(settings: dict[str, Any], folder: Path) -> tuple[Family, Nodes]:
    """The family of a folder whose config.json holds `settings`, and its nodes."""
    with faults_of(folder):
        family = family_of(settings.get("model_type"), str(folder / "config.json"))
        return family, family.nodes(settings, folder)


class PublishedModel(nn.Module):
    """A published model in voxzoo's parts, `model.speech_encoder` and so on by role.

    Attributes:
        model_type: the layout it came from.
        nodes: config node of each role.
        files: name -> content of the small files beside its weights, as uint8; they go out again on export.
        tokenizer, frontend: or None.
        left: published keys that nothing here takes.
        notes: lines on settings of the folder that are not taken and change what is generated.
        lora: role -> settings of `LoRA`, of parts that an adapter adapts (`peft.from_peft`).
    """

    def __init__(self, model_type: str, nodes: Nodes, files: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model_type = model_type
        self.nodes = nodes
        self.files = dict(files)
        self.tokenizer: Any = None
        self.frontend: Any = None
        self.left: list[str] = []
        self.notes: list[str] = []
        self.lora: dict[str, dict[str, Any]] = {}

    def parts(self) -> dict[str, nn.Module]:
        """Role -> part."""
        return dict(self.named_children())


def from_transformers(
    source: str | Path,
    *,
    roles: Iterable[str] | None = None,
    compat: Compat = "transformers",
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
) -> PublishedModel:
    """Read a folder in the layout of transformers (or a hub name): its parts with their weights, in evaluation mode.

    Args:
        source: a folder with config.json, weights as safetensors (single or sharded) and the tokenizer's files. A hub
            name is fetched inside `with online():` alone; elsewhere the cache of huggingface_hub is looked into.
        roles: take these parts alone; None: all.
        compat: whose behaviour the switches are set to (`compat.TABLE`).
        dtype: of the parameters.
        tokenizer: a folder whose tokenizer (and preprocessor_config.json) goes with it: what a transformers Trainer's
            `checkpoint-N` does not have.

    Raises:
        UserError: not such a folder, an unknown model type, damaged weights, keys without a place or parts without
            weights; one line that names file and keys.
    """
    folder = published_folder(source)
    settings = read_json(folder / "config.json")
    model_type = settings.get("model_type")
    family, nodes = _nodes(settings, folder)
    files = carried_files(folder)
    if tokenizer is not None:
        beside = published_folder(tokenizer)
        with faults_of(beside):
            nodes = _with_tokenizer(nodes, family, settings, folder, beside)
        own = {"config.json", "generation_config.json", *files}
        files.update({name: content for name, content in carried_files(beside).items() if name not in own})
    if compat != "transformers":
        nodes = apply_compat(nodes, compat)
    chosen = set(nodes if roles is None else roles)
    absent = sorted(chosen - nodes.keys())
    if absent:
        there = ", ".join(role for role in nodes if role != "task")
        raise UserError(f"{folder}: a {model_type} model has no {', '.join(absent)}; it has: {there}")
    model = PublishedModel(str(model_type), {role: node for role, node in nodes.items() if role in chosen}, {})
    model.files = files
    add_parts(model, folder)
    # All sums: what is written of it gets sums of its own.
    fill_parts(model, family, Weights(folder, verify=True), folder, dtype, nodes=nodes)
    if "task" in model.nodes:
        model.notes = unread({**settings, **read_json_if(folder, "generation_config.json")})
    return model.eval()


def add_parts(model: PublishedModel, where: Any) -> None:
    """Build what the nodes of a model say: parts without memory for their weights, front end, tokenizer if there is
    none yet."""
    for role, node in model.nodes.items():
        if role in ("tokenizer", "frontend"):
            if getattr(model, role) is None:
                setattr(model, role, build_part(role, node, where))
        elif role != "task":
            with torch.device("meta"):
                part = build_part(role, node, where)
            model.add_module(role, part)


def fill_parts(
    model: PublishedModel,
    family: Family,
    weights: Mapping[str, Tensor],
    where: Any,
    dtype: torch.dtype,
    names: Mapping[str, str] | None = None,
    nodes: Nodes | None = None,
) -> None:
    """Give the parts of a model their weights.

    Args:
        weights: by published key.
        where: the file or folder, for messages.
        dtype: of the parameters.
        names: published key -> what the file calls it, for messages.
        nodes: of the whole model, where the model has some of its parts; None: its own.

    Raises:
        UserError: keys without a place, or parts without weights.
    """
    said = names or {}
    expected = {key: value.shape for key, value in model.state_dict().items()}
    loaded = family.key_map(model.nodes if nodes is None else nodes).load(weights, expected)
    loaded.unused = [said.get(key, key) for key in loaded.unused]
    refuse_gaps(loaded, where)
    for key, value in loaded.state.items():
        if value.is_floating_point():
            loaded.state[key] = value.to(dtype)
    model.load_state_dict(loaded.state, assign=True)
    model.left = [said.get(key, key) for key in loaded.left]


def _with_tokenizer(nodes: Nodes, family: Family, settings: dict[str, Any], folder: Path, beside: Path) -> Nodes:
    """The nodes of a folder with the tokenizer of another, and its front end where the folder says nothing of one.

    Raises:
        UserError: the other folder has no tokenizer that goes with such a model, or the folder has one itself.
    """
    if "tokenizer" in nodes:
        raise UserError(f"--tokenizer {beside}: {folder} has a tokenizer already ({nodes['tokenizer']['model']})")
    there = family.nodes(settings, beside)
    if "tokenizer" not in there:
        found = ", ".join(sorted(path.name for path in beside.iterdir())[:12]) or "nothing"
        raise UserError(
            f"--tokenizer {beside}: no tokenizer of a {settings.get('model_type')} model there; it holds {found}"
        )
    taken = ["tokenizer"]
    if "frontend" in nodes and not (folder / "preprocessor_config.json").exists() and "frontend" in there:
        taken.append("frontend")
    return {**nodes, **{role: there[role] for role in taken}}


def load_part(part: nn.Module, role: str, source: str | Path) -> Loaded:
    """Fill one part with what a published folder has for its role; what the folder lacks keeps its values.

    Returns:
        What was loaded (`state`), what of the part is new (`missing`) and what of the role was left (`beyond`).

    Raises:
        UserError: a folder that is none, a model without that role, or tensors of another shape.
    """
    shapes = {key: value.shape for key, value in part.state_dict().items() if not is_lora(key)}
    loaded = read_part(role, source, shapes)
    loaded.beyond = [key for key in loaded.beyond if key.startswith(f"{role}.")]
    if loaded.unused:
        raise UserError(
            f"{role}.pretrained={source}: {len(loaded.unused)} keys that this model type does not have: "
            f"{few(loaded.unused)}"
        )
    if not loaded.state:
        raise UserError(f"{role}.pretrained={source}: its weights hold nothing for {type(part).__name__}")
    part.load_state_dict({key.removeprefix(f"{role}."): value for key, value in loaded.state.items()}, strict=False)
    return loaded


def read_part(role: str, source: str | Path, shapes: Mapping[str, torch.Size]) -> Loaded:
    """What a published folder has for a role, by our keys (with the role in front).

    Args:
        role: as in `describe`.
        source: a folder or hub name.
        shapes: of the tensors that are wanted, by key without the role.

    Raises:
        UserError: as `load_part`.
    """
    folder = published_folder(source)
    settings = read_json(folder / "config.json")
    family, nodes = _nodes(settings, folder)
    if role not in nodes:
        raise UserError(f"{role}.pretrained={source}: a {settings.get('model_type')} model has no {role}")
    wanted = with_source(shapes) if role == "text_seq2seq" else shapes
    loaded = family.key_map(nodes).load(Weights(folder), {f"{role}.{key}": shape for key, shape in wanted.items()})
    state = {key.removeprefix(f"{role}."): value for key, value in loaded.state.items()}
    fill_copies(state, shapes)
    loaded.state = {f"{role}.{key}": value for key, value in state.items() if key in shapes}
    loaded.missing = [f"{role}.{key}" for key in shapes if key not in state]
    return loaded


def build_part(role: str, node: Mapping[str, Any], where: Any) -> Any:
    """Build one node; a value that its class refuses is the folder's fault."""
    from ... import components

    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        stacks(arguments)
        return getattr(components, str(node["_target_"]).rpartition(".")[2])(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: its {role} cannot be built: {' '.join(str(error).split())}") from error


def refuse_gaps(loaded: Loaded, folder: Any) -> None:
    """Raise one UserError that lists keys without a place and keys of ours without a value."""
    problems = []
    if loaded.unused:
        problems.append(f"{len(loaded.unused)} keys that this model type does not have: {few(loaded.unused)}")
    if loaded.missing:
        problems.append(f"{len(loaded.missing)} missing: {few(loaded.missing)}")
    if problems:
        raise UserError(f"{folder}: the weights do not fit config.json; " + "; ".join(problems))


def layout_of(nodes: Nodes) -> str:
    """The one layout that has a place for every part.

    Raises:
        UserError: none has, or several have; names the choices.
    """
    fitting = []
    for model_type in sorted(_FAMILIES):
        try:
            family_of(model_type, "export").settings(nodes)
        except UserError:
            continue
        fitting.append(model_type)
    if len(fitting) == 1:
        return fitting[0]
    named = ", ".join(fitting or sorted(_FAMILIES))
    found = f"these have places for its parts: {named}" if fitting else f"there are {named}"
    example = fitting[0] if fitting else "whisper"
    why = "" if fitting else " (it says which part has no place there)"
    raise UserError(f"which published layout? {found}; say it with `--as {example}` (model_type={example!r}){why}")


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def to_transformers(
    model: Any,
    path: str | Path,
    *,
    model_type: str | None = None,
    compat: Literal["transformers"] | None = None,
    note: Callable[[str], None] = _warn,
) -> Path:
    """Write a folder that transformers loads: config.json, safetensors and the tokenizer's files.

    Args:
        model: a `PublishedModel`, or a `Task` (with `parts()` and a resolved `config`).
        path: a folder that does not exist yet or is empty. It appears complete or not at all.
        model_type: the layout; None: the one the model came from, or the only one with a place for each of its parts.
        compat: `transformers`: take its value of switches that the layout does not hold, also where that changes
            results (each is noted). None: refuse them, but for a model that came from this layout: published weights
            are read there as transformers reads them.
        note: is given each line on what the layout cannot say (`Family.notes`, `fidelity.compare`); a Python warning
            by default.

    Returns:
        The folder.

    Raises:
        UserError: no layout named where not just one would do, parts or settings that it has no place for, or a folder
            that holds something.
    """
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another folder, nothing is overwritten")
    nodes: Nodes = model.nodes if isinstance(model, PublishedModel) else nodes_of(model)
    files: dict[str, Tensor] = getattr(model, "files", {})
    for name in files:  # out of a checkpoint, which may come from anywhere
        if Path(name).name != name or Path(name).suffix not in _CARRIED_SUFFIXES:
            raise UserError(f"export: refused to write a file named {name!r} that the checkpoint carries")
    source = getattr(model, "model_type", None) or getattr(model, "config", {}).get("model_type")
    model_type = str(model_type or source or layout_of(nodes))
    family = family_of(model_type, "export")
    nodes, behind = family.kept(nodes, came_from=model_type == source)
    left = {**behind, **{role: why for role, why in LEFT_OUT.items() if nodes.get(role, {}).get("_target_")}}
    settings = family.settings(nodes)
    state = {
        f"{role}.{key}": value
        for role, part in model.parts().items()
        for key, value in merged_state(part).items()
        if not f"{role}.{key}".startswith(tuple(f"{name}." for name in left))
    }
    tensors = family.key_map(nodes).save(state)
    with whole_folder(target) as part_folder:
        for name, content in files.items():
            (part_folder / name).write_bytes(content.numpy().tobytes())
        if not files:
            family.export_frontend(nodes, part_folder)
            if getattr(model, "tokenizer", None) is not None:
                family.export_tokenizer(model.tokenizer, nodes, part_folder)
        old = json.loads(files["config.json"].numpy().tobytes()) if "config.json" in files else {}
        cast = _lossless(tensors, old.get("dtype") or old.get("torch_dtype"))
        own = next((value.dtype for value in tensors.values() if value.is_floating_point()), torch.float32)
        dtype = str(cast or own).removeprefix("torch.")
        ids = {} if old else family.special_ids(getattr(model, "tokenizer", None), nodes)
        merged = {**ids, **old, **settings, "model_type": model_type, "dtype": dtype}
        merged.pop("torch_dtype", None)
        (part_folder / "config.json").write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")
        write_weights(part_folder, tensors, cast)
        notes = compare(
            nodes,
            family.nodes(merged, part_folder),
            model_type,
            accept=compat is not None or source == model_type,
            generates=(part_folder / "generation_config.json").exists(),
        )
    for line in (*family.notes(nodes), *notes, *(f"{name}: left out, {why}" for name, why in left.items())):
        note(line)
    return target


def _lossless(tensors: Mapping[str, Tensor], name: Any) -> torch.dtype | None:
    """The dtype that a folder was published in, where casting to it loses nothing: what was not trained since."""
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(str(name))
    if dtype is None:
        return None
    exact = (torch.equal(v.to(dtype).to(v.dtype), v) for v in tensors.values() if v.is_floating_point())
    return dtype if all(exact) else None


def nodes_of(task: Any) -> Nodes:
    """The nodes of a task's roles out of its resolved config."""
    roles = (*task.parts(), "frontend", "tokenizer", "task")
    return {role: dict(task.config[role]) for role in roles if task.config.get(role)}


def carried_files(folder: Path) -> dict[str, Tensor]:
    """Small files beside the weights, as uint8 tensors: what an export writes back as it was.

    Raises:
        UserError: one is a link out of the folder: a file of this machine would go along with the model.
    """
    found = {}
    # The cache of huggingface_hub has links from snapshots/REVISION to blobs.
    own = [folder.resolve(), folder.resolve().parent.parent / "blobs"]
    for path in sorted(folder.iterdir()):
        if path.suffix not in _CARRIED_SUFFIXES or path.name.endswith(".index.json") or not path.is_file():
            continue
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in own):
            raise UserError(
                f"{path}: a symbolic link out of the folder, to {path.resolve()}; put the file itself there"
            )
        if path.stat().st_size <= _CARRIED_BYTES:
            found[path.name] = torch.frombuffer(bytearray(path.read_bytes() or b"\n"), dtype=torch.uint8)
    return found
