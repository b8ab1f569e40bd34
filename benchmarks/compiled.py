"""`torch.compile` of transformers' model as a peer: where this machine can do it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from .harness import Options, Other

NAME = "transformers, torch.compile"


def compiled(module: Any, run: Callable[[Any], Callable[[], Any]], options: Options) -> dict[str, Other]:
    """The row of a module compiled for the shapes that it is given; compiled here, before anything is timed.

    Args:
        run: makes what is timed out of the compiled module.
    """
    if not options.has_others or options.quick or options.brief:  # half a minute for each
        return {}
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return {NAME: Other(None, note=f"no C++ compiler ({compiler}) for torch.compile")}
    if "ATEN_CPU_CAPABILITY" in os.environ:  # the C++ that it writes for that crashes on a processor that has more
        return {NAME: Other(None, note="torch.compile builds for the processor that is there")}
    timed = run(torch.compile(module, dynamic=False))
    try:
        timed()
    except Exception as error:  # what a compiler may raise has no bounds, and the other rows are worth having
        return {NAME: Other(None, note=f"torch.compile ends with {type(error).__name__}")}
    return {NAME: Other(timed)}
