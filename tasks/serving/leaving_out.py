"""What a run would leave out of a manifest: by its languages, lengths and tokens, without training."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from ...components.errors import UserError
from ...configs.build import build
from ...datamodules.datamodule import SpeechTranslationData
from ...datamodules.selection import UNREADABLE
from ...datamodules.validation import Finding
from ..runs.run import Run

_KEPT = ("tasks", "min_seconds", "max_seconds", "max_tokens", "speed_perturb", "units")


def left_out_by(run: Run, manifest: str) -> list[Finding]:
    """The rows of a manifest that a run would not train on, by reason; those that cannot be read are found by
    `validate`.

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
        data.plan(run.task.needs)
    except UserError as error:
        if not data.dropped.get("train"):  # of the manifest, which `validate` has said
            return [Finding("cannot be used", True, [str(error).splitlines()[0]])]
    return [
        Finding(f"left out by the run: {reason}", False, ids)
        for reason, ids in data.dropped.get("train", {}).items()
        if not reason.startswith(UNREADABLE)
    ]
