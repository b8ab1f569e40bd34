"""What comes along with the parts that `from` names and is no part: the vocabulary, and the files of a published
model."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ...components.converters.files import published_folder
from ...components.converters.published import carried_files
from ...components.errors import UserError
from ...configs.source import KEY
from ..checkpoints.files import read_checkpoint, write_atomically
from ..task import FILES
from .run import find_checkpoint


def take_tokenizer(config: DictConfig) -> None:
    """Write the vocabulary of `init.tokenizer`, a run, to `tokenizer.model` of this one where it is not yet.

    Raises:
        UserError: that run carries no vocabulary.
    """
    source = OmegaConf.select(config, "init.tokenizer")
    if source is None or "tokenizer" not in config.task or Path(config.tokenizer.model).exists():
        return
    _, checkpoint = find_checkpoint(Path(source))
    content = read_checkpoint(checkpoint, states=False)["voxzoo"]["assets"].get("tokenizer")
    if content is None:
        raise UserError(f"init.tokenizer={source}: {checkpoint} carries no vocabulary")
    write_atomically(Path(config.tokenizer.model), lambda file: file.write(content.numpy().tobytes()))


def files_of_source(config: DictConfig) -> dict[str, torch.Tensor]:
    """Files of the published model that a run began with, for its export; none where `from` names none, or where
    something of it was replaced."""
    source = config.get(KEY)
    if source is None or config.get("model_type") is None:
        return {}
    path = Path(source)
    if not (path.is_file() or (path / "config.yaml").is_file()):
        return carried_files(published_folder(source))
    _, checkpoint = find_checkpoint(path)
    assets = read_checkpoint(checkpoint, states=False)["voxzoo"]["assets"]
    return {name.removeprefix(FILES): value for name, value in assets.items() if name.startswith(FILES)}
