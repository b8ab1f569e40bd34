"""The weights that a run begins with: of published models (`ROLE.pretrained`) and of other runs (`init`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ...components.cards import Card
from ...components.converters.keymap import Loaded
from ...components.converters.published import load_part
from ...components.converters.transformer import fill_copies
from ...components.errors import UserError, few
from ...components.roles import ROLES, UnitExtractor
from ...configs.pretrained import KEY, pretrained_sources
from ..checkpoints.files import misfit, read_checkpoint
from ..checkpoints.references import find_references
from ..task import Task
from ..units import unit_card
from .extractor_files import CONFIG, is_extractor, read_config, read_weights
from .lora import fit_weights, lora_settings
from .run import find_checkpoint


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
    if not loaded.beyond:
        return f"{name}: {len(loaded.state)} tensors from {source}; {new}; all that is there is used"
    line = f"{name}: {len(loaded.state)} tensors from {source}; {new}"
    many = f"{len(loaded.beyond)} tensors" if len(loaded.beyond) > 1 else "a tensor"
    return f"{line}; not used: {many} of layers that this part, as configured, does not have ({few(loaded.beyond, 2)})"


def load_parts(
    task: Task, sources: str | Mapping[str, str | None], run_dir: Path, origin: str | None = None
) -> list[str]:
    """Take parts of a task from other runs: `init` of the config. Returns one line a part, for the log.

    Args:
        task: what to load into.
        sources: role -> run folder, checkpoint, or the name of an earlier stage of the same run; of a unit extractor
            also a folder of `voxzoo units fit`. Or one of these alone: every part that fits is taken from there, and
            the lines say why others are not.
        run_dir: folder of this run; stages are its siblings.
        origin: `from` of the config. A part of that run may have more or less here, which its line says, and heads of
            the task come along where the vocabulary does.

    Raises:
        UserError: an unknown role, a run without that part, or weights that do not fit it; a run of which nothing fits.
    """
    parts = task.parts()
    if isinstance(sources, str):
        taken, left = [], []
        other = _Other(sources, run_dir)
        for role in parts:
            try:
                taken.append(_load_part(task, role, other))
            except UserError as error:
                left.append(str(error).replace(f"init.{role}", role, 1))
        if not taken:
            raise UserError(f"init={sources}: nothing fits: {'; '.join(left)}")
        gone = sorted(other.roles() - parts.keys())
        return [
            *taken,
            *(f"not taken: {line}" for line in left),
            *(f"not taken: {role}: no such part here" for role in gone),
        ]
    lines = []
    others: dict[str, _Other] = {}  # several parts often come from one file
    for role, source in sources.items():
        if source is None or role == "tokenizer":  # its file was taken before the task was built
            continue
        if role not in parts:
            raise UserError(f"init.{role}: {type(task).__name__} has no such part; it has: {', '.join(parts)}")
        if source not in others:
            others[source] = _Other(source, run_dir)
        lines.append(_load_part(task, role, others[source], partial=source == origin))
    if origin in others and sources.get("tokenizer") == origin:
        lines += _load_heads(task, others[origin])
    return lines


class _Other:
    """Another run, or an earlier stage of the same: its checkpoint. Or a unit extractor as a folder, as if it were one.

    Attributes:
        card: of the units of such a folder, where it says it.
    """

    def __init__(self, source: str, run_dir: Path) -> None:
        sibling = run_dir.parent / source
        path = sibling if sibling.is_dir() else Path(source)
        self.card: dict[str, Any] | None = None
        if is_extractor(path):
            self.checkpoint = path
            settings, self.card = read_config(path)
            state = {f"unit_extractor.{name}": value for name, value in read_weights(path).items()}
            self.content = {"state_dict": state, "voxzoo": {"config": {"unit_extractor": settings}, "assets": {}}}
        else:
            _, self.checkpoint = find_checkpoint(path)
            self.content = read_checkpoint(self.checkpoint, states=False)

    def roles(self) -> set[str]:
        """Roles that it has weights of."""
        return {key.partition(".")[0] for key in self.content["state_dict"]} & ROLES.keys()


def _load_part(task: Task, role: str, other: _Other, partial: bool = False) -> str:
    part, checkpoint, content = task.parts()[role], other.checkpoint, other.content
    if not part.state_dict():
        return f"{role}: has no weights"
    if role == "unit_extractor" and role not in other.roles() and "speech_encoder" in other.roles():
        return _load_encoder(part, other)
    prefix = f"{role}."
    weights = {k.removeprefix(prefix): value for k, value in content["state_dict"].items() if k.startswith(prefix)}
    if not weights:
        raise UserError(f"init.{role}: {checkpoint} holds no {role}")
    weights, note = fit_weights(part, weights, lora_settings(content["voxzoo"]["config"]).get(role))
    own = part.state_dict()
    copied = fill_copies(weights, own) if role == "text_seq2seq" else []
    new, left = (sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())) if partial else ([], [])
    weights = {key: value for key, value in weights.items() if key not in left}
    problem = misfit({key: value for key, value in own.items() if key not in new}, weights)
    if problem:
        raise UserError(f"init.{role}: the {role} of {checkpoint} does not fit this config; {problem}")
    size = task.tokenizer.vocab_size if task.tokenizer is not None else None
    if any(value.shape[:1] == (size,) for value in weights.values()):
        _require_vocabulary(task, content["voxzoo"], role, checkpoint)
    part.load_state_dict(weights, strict=not partial)
    if other.card is not None and isinstance(part, UnitExtractor):
        advice = f"take the settings of {checkpoint / CONFIG}"
        unit_card(part).require(
            Card("units", other.card), f"init.{role}: its units would not be those of {checkpoint}", advice
        )
    said = [
        note,
        f"copies of its embeddings: {few(copied)}" if copied else "",
        f"new: {few(new)}" if new else "",
        f"left there: {few(left)}" if left else "",
    ]
    return "; ".join([f"{role}: {len(weights)} tensors from {checkpoint}", *filter(None, said)])


def _load_encoder(extractor: Any, other: _Other) -> str:
    """The encoder of a unit extractor, which is to be fitted, from a run that trained it and has no units."""
    encoder = getattr(extractor, "encoder", None)
    if encoder is None:
        raise UserError(
            f"init.unit_extractor: {other.checkpoint} holds no unit_extractor, and its speech_encoder is of no use to "
            "one that clusters log-mels; set unit_extractor=encoder"
        )
    weights = {
        key.removeprefix("speech_encoder."): value
        for key, value in other.content["state_dict"].items()
        if key.startswith("speech_encoder.")
    }
    if problem := misfit(encoder.state_dict(), weights):
        raise UserError(
            f"init.unit_extractor: the speech_encoder of {other.checkpoint} does not fit unit_extractor.encoder; "
            f"{problem}"
        )
    encoder.load_state_dict(weights)
    return f"unit_extractor.encoder: {len(weights)} tensors from the speech_encoder of {other.checkpoint}"


def _load_heads(task: Task, other: _Other) -> list[str]:
    """What belongs to the task itself, such as a CTC head, where the other has it in the same shapes."""
    own = {key: value for key, value in task.state_dict().items() if key.partition(".")[0] not in task.parts()}
    there = {key: value for key, value in other.content["state_dict"].items() if key in own}
    if not own or misfit(own, there):
        return []
    task.load_state_dict(there, strict=False)
    return [f"heads: {len(there)} tensors from {other.checkpoint}"]


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
