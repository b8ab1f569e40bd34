"""What a run would leave out of its manifests: by their languages, lengths and tokens, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...components.errors import UserError
from ...configs.build import build
from ...configs.targets import allow_list, class_of
from ...datamodules.datamodule import SpeechTranslationData
from ...datamodules.selection import UNREADABLE
from ...datamodules.validation import Finding
from ..runs.run import Run
from ..task import Task
from .rehearsal import GuessedTokenizer, tokenizer_of, unmade

MOST_ROWS = 50_000
"""Of a split that `voxzoo check` looks at: about three seconds."""
_KEPT = ("tasks", "min_seconds", "max_seconds", "max_tokens", "speed_perturb", "units")


@dataclass(frozen=True)
class LeftOut:
    """What training would leave out of a split.

    Attributes:
        rows: that were looked at.
        is_all: whether there are no more.
        reasons: reason -> ids.
    """

    rows: int
    is_all: bool
    reasons: dict[str, list[str]]


def left_out_of(config: DictConfig, task: Task) -> dict[str, LeftOut]:
    """Split -> what of its first `MOST_ROWS` rows training, or validation, would leave out; empty where the data are no
    manifests. Reads no audio, so that rows which do not say their duration are of any.

    Args:
        config: composed and checked.
        task: of the config; need not have weights.

    Raises:
        UserError: rows that training refuses, or of which it could use none.
    """
    allowed, kind = allow_list(config), class_of(config.data, config)
    if kind is None or not issubclass(kind, SpeechTranslationData) or config.data.get("corpus") is not None:
        return {}
    tokenizer = tokenizer_of(config, allowed)
    try:
        data = build(config.data, allowed=allowed, tokenizer=tokenizer, frontend=None)
    except UserError:
        return {}  # no data yet
    data.most_rows = MOST_ROWS
    data.longest_seconds = task.longest_seconds
    if isinstance(tokenizer, GuessedTokenizer):
        data.max_tokens = None  # a vocabulary that is not there yet counts nothing
    elif tokenizer is not None:
        positions = getattr(task.parts().get("text_seq2seq"), "max_positions", None)
        data.longest_text = None if positions is None else positions - tokenizer.prefix_length
    needs = frozenset(task.needs) - unmade(data)
    found = {}
    for split in ("train", "valid"):
        if split in data.splits():
            reasons = data.judge(split, needs)
            rows = len(data.rows(split))
            found[split] = LeftOut(rows, rows < MOST_ROWS, reasons)
            if sum(map(len, reasons.values())) == rows * len(data.tasks):
                named = "; ".join(f"{len(ids)} {reason}" for reason, ids in reasons.items())
                raise UserError(f"data.{split}: none of {rows} rows can be used: {named}")
    return found


def left_out_by(run: Run, manifest: str | list[str]) -> list[Finding]:
    """The rows of a manifest, or of several as one, that a run would not train on, by reason; those that cannot be read
    are found by `validate`.

    Args:
        run: loaded; what its task and tokenizer take counts, and its settings of data.
        manifest: taken for all of the training data.
    """
    settings: Any = OmegaConf.to_container(run.config.data, resolve=True)
    node = {key: settings[key] for key in _KEPT if settings.get(key) is not None}
    frontend = run.config.get("frontend")
    data = SpeechTranslationData(
        train=manifest,
        frontend=build(frontend, allowed=run.allowed) if frontend is not None else None,
        tokenizer=run.task.tokenizer,
        batch_size=1,
        on_error="skip",
        **node,
    )
    data.longest_seconds = getattr(run.task, "longest_seconds", None)
    data.longest_text = run.task.longest_text
    try:
        reasons = data.judge("train", run.task.needs)
    except UserError as error:  # of the manifest, which `validate` has said
        return [Finding("cannot be used", True, [str(error).splitlines()[0]])]
    return [
        Finding(f"left out by the run: {reason}", False, ids)
        for reason, ids in reasons.items()
        if not reason.startswith(UNREADABLE)
    ]
