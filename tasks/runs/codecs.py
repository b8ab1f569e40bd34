"""A codec out of a run."""

from __future__ import annotations

from pathlib import Path

from ...components.errors import UserError
from ...components.roles import Codec
from .run import load_run


def load_codec(path: Path | str) -> Codec:
    """The codec of a run folder or a checkpoint, in evaluation mode.

    Raises:
        UserError: the path is no run, or one without a codec.
    """
    codec = load_run(path).task.parts().get("codec")
    if not isinstance(codec, Codec):
        raise UserError(f"{path}: this run holds no codec; give one that was trained or imported with codec=...")
    return codec.eval()
