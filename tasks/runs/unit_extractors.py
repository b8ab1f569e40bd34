"""A unit extractor as a folder, or as part of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...components.errors import UserError, faults_of
from ...components.roles import UnitExtractor
from ...configs.build import build
from ...configs.check import require_valid
from ...configs.compose import compose
from ...configs.targets import FOREIGN, allow_list
from ..checkpoints.files import misfit
from ..units import card_of
from .extractor_files import CONFIG, WEIGHTS, is_extractor, read_config, read_weights, write_extractor
from .initial import load_pretrained_encoder
from .run import load_run


def new_extractor(
    overrides: Sequence[str], encoder: Path | str | None = None, layer: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """An extractor that is not fitted yet, and the config to build it again from.

    Args:
        overrides: config overrides; without a choice of `unit_extractor` it is `log_mel`.
        encoder: a run whose speech encoder's states are clustered, instead of log-mels.
        layer: of that encoder, counted from 1.

    Raises:
        UserError: a faulty config, a run without a speech encoder.
    """
    choice = [] if any(word.startswith("unit_extractor=") for word in overrides) else ["unit_extractor=log_mel"]
    composed = compose([*choice, *overrides])
    source = None
    if encoder:
        source = load_run(encoder)
        if getattr(source.task, "speech_encoder", None) is None:
            raise UserError(f"--encoder {encoder}: this run has no speech encoder")
        OmegaConf.set_struct(composed, False)
        composed.speech_encoder = OmegaConf.create(OmegaConf.to_container(source.config.speech_encoder, resolve=True))
        composed.frontend = OmegaConf.create(OmegaConf.to_container(source.config.frontend, resolve=True))
        composed.unit_extractor.update(
            features="encoder", encoder=composed.speech_encoder, frontend=composed.frontend, layer=layer
        )
    require_valid(composed)
    config = OmegaConf.to_container(composed.unit_extractor, resolve=True)
    assert isinstance(config, dict)
    if config.get("_target_") is None:
        raise UserError("unit_extractor=none: there is nothing to fit")
    extractor = build(config, allowed=allow_list(composed))
    if source is not None:
        extractor.encoder.load_state_dict(source.task.speech_encoder.state_dict())  # pyright: ignore
    else:
        for line in load_pretrained_encoder(extractor, composed):
            print(line, file=sys.stderr)
    return extractor.eval(), {str(key): value for key, value in config.items()}


def save_extractor(extractor: UnitExtractor, config: dict[str, Any], folder: Path | str) -> None:
    """Write an extractor: its config (with `_target_`) and card as JSON, its tensors as safetensors."""
    write_extractor(Path(folder), config, card_of(extractor), extractor.state_dict())


def load_extractor(path: Path | str, allowed: tuple[str, ...] = FOREIGN) -> UnitExtractor:
    """Load an extractor from a folder of `save_extractor`, or from a run that holds one, in evaluation mode.

    Raises:
        UserError: neither, or a run whose task has no unit extractor.
    """
    path = Path(path)
    if is_extractor(path):
        settings, _ = read_config(path)
        with faults_of(path / CONFIG):
            extractor = build(settings, allowed=allowed, wanted=UnitExtractor)
        weights = read_weights(path)
        if words := misfit(extractor.state_dict(), weights):
            raise UserError(f"{path / WEIGHTS}: does not fit {CONFIG} ({words})")
        extractor.load_state_dict(weights)
        return extractor.eval()
    from .run import load_run

    extractor = getattr(load_run(path).task, "unit_extractor", None)
    if extractor is None:
        raise UserError(f"{path}: this run has no unit extractor; fit one with `voxzoo units fit`")
    return extractor.eval()
