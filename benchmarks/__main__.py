"""All paths: `python -m benchmarks` prints the table; `--save` appends the run to the history, `--out FILE` writes
everything as JSON.

`python -m benchmarks history` says what moved since the runs before, `table` renders the table of its page from
the history, `scale` measures what grows with the size of data and models, and `plan` compares the memory that `voxzoo
check` plans with a measured peak.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from .harness.case import Unequal
from .harness.compare import run_path
from .harness.machine import elsewhere, without_isa
from .harness.options import Options, arguments, options_of
from .harness.report import report

PATHS = (
    "speech_encoder",
    "s2tt_training",
    "text_beam",
    "s2tt_beam",
    "s2st",
    "vocoder",
    "speech_lm",
    "codec",
    "hubert",
    "whisper",
)
VERBS = {"plan": ".plan", "history": ".harness.history", "table": ".harness.page", "scale": ".scale"}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in VERBS:
        return importlib.import_module(VERBS[words[0]], __package__).main(words[1:])
    parser = arguments(__doc__ or "")
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)} (default: all)")
    args = parser.parse_args(words)
    unknown = sorted(set(args.paths) - set(PATHS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such path; there are {', '.join(PATHS)}")
    if args.isa:
        return elsewhere(args.isa, "benchmarks", without_isa(words))
    options = options_of(args)
    results, errors, killed = run_all(args.paths or PATHS, options)
    # A path that was killed has no row; one whose outputs differ leaves the history alone.
    return report(results, options, args.out, errors, save=args.save and len(errors) == killed)


def run_all(
    paths: Sequence[str], options: Options, run: Callable[[str, Options], list[dict[str, Any]]] = run_path
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Run paths, each in a new process: what one leaves in the allocator makes the next up to twice as fast or slow, on
    either side.

    Returns:
        Results, one line for each path that ended otherwise, and how many of these were killed.
    """
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    killed = 0
    for path in paths:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            try:
                results += process.submit(run, path, options).result()
                continue
            except Unequal as error:  # the others are still worth knowing
                errors.append(str(error))
            except BrokenProcessPool:
                killed += 1
                errors.append(f"{path}: its process was killed: out of memory, or one of the peers crashed")
        print(errors[-1], file=sys.stderr, flush=True)
    return results, errors, killed


if __name__ == "__main__":
    sys.exit(main())
