"""Original checkpoints (`.pt`): which reader takes one, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import UserError
from .fairseq2 import from_fairseq2
from .fairseq_hubert import from_fairseq_encoder, is_fairseq_encoder
from .files import SETTINGS_CLASSES, read_pickle
from .published import PublishedModel


def from_original(
    path: str | Path, vocoder: str | Path | None = None, *, dtype: torch.dtype = torch.float32
) -> PublishedModel:
    """Read a checkpoint of the original SeamlessM4T (`from_fairseq2`), or of fairseq's HuBERT or wav2vec 2.0
    (`from_fairseq_encoder`).

    Raises:
        UserError: as they; a vocoder beside an encoder.
    """
    content = read_pickle(Path(path), settings=SETTINGS_CLASSES)
    tensors = content.get("model", content)
    if isinstance(tensors, Mapping) and is_fairseq_encoder(tensors):
        if vocoder is not None:
            raise UserError(f"--vocoder {vocoder}: {path} is a speech encoder of fairseq, which has none")
        return from_fairseq_encoder(path, dtype=dtype)
    return from_fairseq2(path, vocoder, dtype=dtype)
