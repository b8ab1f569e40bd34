"""Memory of a path's cases, in a process of its own.

glibc keeps what is freed in holes of its heap, and counts them as resident: in a process that has timed anything, the
peak of a run is that of all runs before it. Here every large block is mapped by itself from the first line on, and goes
back when it is freed, so that a peak is what was alive at one time. Timing so would measure the mapping.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from .growth import peak_growth
from .options import Options, arguments, options_of

Growth = dict[str, dict[str, float]]
"""Case -> "peer" (transformers) or "ours" -> bytes."""


def quiet(options: Options) -> None:
    """Threads, and no bars and advice of transformers."""
    from transformers.utils import logging

    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def measure_apart(path: str, options: Options) -> Growth:
    """Peak growth of each case of a path, both sides, measured by another process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    # Not `-m`: the package imports this module, and it would be there twice.
    command = [sys.executable, "-c", f"from {__name__} import main; main()", path, "--no-others", *options.words()]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{path}: the process that measures memory ended with {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """The process: print a `Growth` as JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("path")
    args = parser.parse_args(argv)
    options = options_of(args)
    quiet(options)
    found: Growth = {}
    warm = False
    for case in importlib.import_module(f"benchmarks.{args.path}").cases(options):
        if not case.memory:
            continue
        found[case.name] = {}
        for side, run in (("peer", case.peer), ("ours", case.ours)):
            if not warm:
                run()  # what the first run alone makes: of the libraries, and in training the state of the optimiser
            found[case.name][side] = float(peak_growth(run))
            gc.collect()
        warm = True
    print(json.dumps(found))
