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

from .harness import SIDES, Options, arguments, options_of, peak_growth, quiet

Growth = dict[str, dict[str, float]]
"""Case -> side -> bytes."""


def measure_apart(path: str, options: Options) -> Growth:
    """Peak growth of each case of a path, both sides, measured by another process."""
    words = [path, "--threads", str(options.threads), "--dtype", options.dtype]
    words += ["--full"] * options.full + ["--quick"] * options.quick + ["--no-pack"] * (not options.pack)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{path}: the process that measures memory ended with {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("path")
    args = parser.parse_args(argv)
    options = options_of(args)
    quiet(options)
    found: Growth = {}
    for case in importlib.import_module(f".{args.path}", __package__).cases(options):
        if not case.memory:
            continue
        found[case.name] = {}
        for side, run in zip(SIDES, (case.peer, case.ours), strict=True):
            run()  # what the first run alone makes
            found[case.name][side] = float(peak_growth(run))
            gc.collect()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
